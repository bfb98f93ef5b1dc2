"""
The quickstart over several seeds, DAPO beside TRL's GRPO from the same start, as one table and one JSON.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 --output benchmarks/quickstart_seeds.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "dapo_gsm8k.py"
RECIPE = ROOT / "examples" / "recipes" / "quickstart.yaml"


def run(seed: int, overrides: list[str]) -> dict[str, float]:
    """Runs the quickstart with one seed and returns its `results.json`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SCRIPT), "--config", str(RECIPE), "--compare_grpo", "true"]
        command += ["--output_dir", folder, "--seed", str(seed), "--disable_tqdm", "true", *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return json.loads(Path(folder, "results.json").read_text())


def main() -> None:
    """Runs the seeds one after the other and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "quickstart_seeds.json")
    args, overrides = parser.parse_known_args()
    results = [run(seed, overrides) for seed in args.seeds]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    packages = ("torch", "transformers", "trl", "accelerate")
    record = {
        "commit": commit,
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "overrides": overrides,
        "results": results,
    }
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    columns = list(results[0])
    print(" | ".join(columns))
    for result in results:
        print(" | ".join(f"{result[column]:.3g}" for column in columns))
    gains = [result["accuracy_after"] - result["accuracy_before"] for result in results]
    grpo_gains = [result["grpo_accuracy_after"] - result["accuracy_before"] for result in results]
    print(f"mean gain: DAPO {statistics.mean(gains):.3f}, GRPO {statistics.mean(grpo_gains):.3f}")


if __name__ == "__main__":
    main()
