"""One of two ranks is killed: the other ends, the launcher ends, nothing is left running."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from doomed_training import PHASES
from forked import PATH
from processes import run, said


pytestmark = pytest.mark.distributed

OPTIONS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}
MARK = "RUN_THAT_IS_TO_LEAVE_NOTHING"


def processes_with(value):
    """The processes that were started, by whomever, below one with this mark in its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if (
                f"{MARK}={value}".encode() in path.read_bytes()
                and "Z" not in (path.parent / "stat").read_text().split()
            ):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.fault(
    "kill -9 of one of two ranks", "generation, checkpoint files", "the other ends with an error within 120 s"
)
@pytest.mark.parametrize(("phase", "number", "doomed_rank"), [("generation", 3000, 0), ("files", 40, 1)])
def test_other_rank_ends_with_an_error(tmp_path, phase, number, doomed_rank):
    assert phase in PHASES
    codes = run(tmp_path, OPTIONS, num_ranks=2, doom=(phase, number), doomed_rank=doomed_rank, max_seconds=120)
    assert codes[doomed_rank] == -9
    assert codes[1 - doomed_rank] > 0, said(tmp_path, 1 - doomed_rank)


@pytest.mark.fault("kill -9 of one of two ranks", "under `torchrun`", "the launcher ends, no process is left")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_launcher_leaves_no_process_behind(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from doomed_training import train\n"
        "rank = int(os.environ['RANK'])\n"
        f"options = {OPTIONS!r}\n"
        "doom = ('generation', 3000) if rank == 1 else ()\n"
        f"train({str(tmp_path / 'run')!r}, options, doom, ranks=(rank, 2, os.environ['MASTER_PORT']))\n"
    )
    environment = os.environ | {MARK: str(tmp_path), "PYTHONPATH": PATH, "CI": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert finished.returncode != 0
    assert "exitcode  : -9" in finished.stderr, finished.stderr[-2000:] + said(tmp_path / "run")
    assert processes_with(tmp_path) == []
