"""
Runs `make quickstart` and stores what came out: `quickstart.json`, and the curves as `quickstart_curves.png`.

    python benchmarks/quickstart.py                          # minutes on 2 CPU cores
    python benchmarks/quickstart.py --run out/quickstart     # takes a run that is there
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from provenance import provenance


ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("quickstart.json")
CURVES = Path(__file__).with_name("quickstart_curves.png")


def main() -> None:
    """Runs it, unless there is a run, and stores figures and curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--run", type=Path, help="folder of a run of the quickstart")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.run or Path(temporary, "quickstart")
        if args.run is None:
            command = [sys.executable, str(ROOT / "examples" / "dapo_gsm8k.py"), "--output_dir", str(folder)]
            command += ["--config", str(ROOT / "examples" / "recipes" / "quickstart.yaml")]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        results = json.loads((folder / "results.json").read_text())
        shutil.copyfile(folder / "curves.png", CURVES)
    RESULTS.write_text(json.dumps(provenance() | results, indent=2) + "\n")
    print(f"{results['accuracy_before']:.1%} before, {results['accuracy_after']:.1%} after: {RESULTS}")


if __name__ == "__main__":
    main()
