"""Programs of this folder in processes of their own: what they find in their environment, and two ranks of one."""

import os
import subprocess
import sys
from pathlib import Path

from tiny_engine import CPU_ENGINE


FOLDER = Path(__file__).parent


def environment():
    """Returns the variables of this process, with the folders of the tests, for training and vLLM on a CPU."""
    paths = [str(FOLDER), str(FOLDER.parent), str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")]
    fixed = {"ACCELERATE_USE_CPU": "true", "CI": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return os.environ | CPU_ENGINE | fixed


def run_two_ranks(program, *arguments, max_seconds=500):
    """Runs a program of this folder as two ranks under torchrun; fails with what they printed if one fails."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(FOLDER / program), *map(str, arguments)]
    finished = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=max_seconds, check=False
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
