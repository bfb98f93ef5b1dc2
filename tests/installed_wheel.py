"""
Tests an installed wheel as a person has it who has nothing else: run by `make release` in an environment and a folder of its own.

    python tests/installed_wheel.py      # with the Python of that environment, in an empty folder
"""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import distribution, files
from pathlib import Path


def run(*arguments):
    """Runs `trl-dapo` and returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = Path(sys.executable).with_name("trl-dapo")
    start = time.monotonic()
    finished = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True)
    if finished.returncode != 0:
        sys.exit(f"trl-dapo {' '.join(arguments)}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}")
    print(f"trl-dapo {' '.join(arguments)}: {time.monotonic() - start:.1f} s", flush=True)
    return finished.stdout


def check_files():
    """What the wheel must hold, and what it must not."""
    import trl_dapo

    folder = Path(trl_dapo.__file__).parent
    assert "site-packages" in folder.parts, folder
    assert (folder / "py.typed").exists()
    names = [str(path) for path in files("trl-dapo")]
    assert not [name for name in names if name.startswith(("tests/", "examples/", "benchmarks/"))]
    metadata = distribution("trl-dapo").metadata
    assert {url.split(",")[0] for url in metadata.get_all("Project-URL")} >= {"Documentation", "Issues", "Repository"}
    assert "](docs/" not in metadata["Description"]


def check_commands():
    """Help, recipes, grading and the quickstart, which leaves a model with its card."""
    assert "Dynamic sampling" in run("train", "--help")
    assert "quickstart" in run("recipes")
    run("recipes", "quickstart", "mine.yaml")
    Path("rows.jsonl").write_text(json.dumps({"solution": "1/2", "completion": "so \\boxed{0.5}"}) + "\n")
    assert "correct" in run("grade", "--dataset_name", "rows.jsonl")
    steps = os.environ.get("STEPS", "8")
    printed = run("train", "--config", "quickstart", "--max_steps", steps)
    assert "Held-out accuracy" in printed
    out = Path("out/quickstart")
    results = json.loads((out / "results.json").read_text())
    print({name: results[name] for name in ("accuracy_before", "accuracy_after", "train_seconds")})
    assert results["accuracy_after"] > results["accuracy_before"]
    assert (out / "model.safetensors").exists()
    assert (out / "README.md").exists()
    run("train", "--config", "mine.yaml", "--max_steps", "1", "--num_eval_problems", "8", "--output_dir", "out/mine")


if __name__ == "__main__":
    check_files()
    check_commands()
    print("The wheel works.")
