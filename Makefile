# Everything sets itself up: the first target that needs the environment makes it.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two OpenMP threads on busy cores are several times slower than one.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: quickstart test test-slow quality style bench wheel clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

quickstart: $(STAMP)  ## DAPO teaches a tiny model, on a CPU, in minutes
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --cpu \
		examples/dapo_gsm8k.py --config examples/recipes/quickstart.yaml $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout=3600

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## hours: see benchmarks/README.md for each
	$(BIN)/python benchmarks/refill.py
	$(BIN)/python benchmarks/split_invariance.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/dynamic_sampling.py

wheel: $(STAMP)
	$(BIN)/python -m build
	$(BIN)/twine check dist/*

clean:
	rm -rf $(VENV) build dist *.egg-info out
