"""
The wheel as a person has it who has nothing else: `make release` runs this with the Python of an environment of its own.

    RELEASE_PYTHON=.venv-release/bin/python pytest -m slow tests/test_installed_wheel.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest


PYTHON = Path(os.environ.get("RELEASE_PYTHON", "")).absolute()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("RELEASE_PYTHON" not in os.environ, reason="needs an environment with the wheel: make release"),
]

# Run there, with -P: the folder of the program is not on its path.
CONTENT = """
import json
from importlib.metadata import distribution, files
from pathlib import Path
import trl_dapo

metadata = distribution("trl-dapo").metadata
print(json.dumps({
    "folder": str(Path(trl_dapo.__file__).parent),
    "files": [str(path) for path in files("trl-dapo")],
    "urls": [url.split(",")[0] for url in metadata.get_all("Project-URL")],
    "description": metadata["Description"],
}))
"""


def run(folder, *command):
    """Runs a program of that environment, and returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, f"{command}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    return finished.stdout


@pytest.fixture
def trl_dapo(tmp_path):
    """Runs `trl-dapo` in an empty folder."""
    return lambda *arguments: run(tmp_path, PYTHON.with_name("trl-dapo"), *arguments)


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    content = json.loads(run(tmp_path, PYTHON, "-P", "-c", CONTENT))
    assert "site-packages" in Path(content["folder"]).parts
    assert "trl_dapo/py.typed" in content["files"]
    assert not [name for name in content["files"] if name.startswith(("tests/", "examples/", "benchmarks/"))]
    assert set(content["urls"]) >= {"Documentation", "Issues", "Repository"}
    assert "](docs/" not in content["description"]


def test_help_recipes_and_grading_work(trl_dapo, tmp_path):
    assert "Dynamic sampling" in trl_dapo("train", "--help")
    assert "quickstart" in trl_dapo("recipes")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"solution": "1/2", "completion": "so \\boxed{0.5}"}) + "\n")
    assert "correct" in trl_dapo("grade", "--dataset_name", "rows.jsonl")


def test_quickstart_learns_by_its_name_and_by_a_copy(trl_dapo, tmp_path):
    printed = trl_dapo("train", "--config", "quickstart", "--max_steps", os.environ.get("STEPS", "8"))
    assert "Held-out accuracy" in printed
    out = tmp_path / "out" / "quickstart"
    results = json.loads((out / "results.json").read_text())
    assert results["accuracy_after"] > results["accuracy_before"]
    assert (out / "model.safetensors").exists()
    assert "## Reproduce" in (out / "README.md").read_text()
    trl_dapo("recipes", "quickstart", "mine.yaml")
    few = ("--max_steps", "1", "--num_eval_problems", "8", "--output_dir", "out/mine")
    trl_dapo("train", "--config", "mine.yaml", *few)
