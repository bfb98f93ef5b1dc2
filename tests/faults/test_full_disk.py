"""A disk that fills up in the middle of a checkpoint."""

import shutil
import subprocess
from pathlib import Path

import pytest
from processes import outcome, run, said

from trl_dapo.checkpoint_files import CUT_OFF, last_whole_checkpoint


OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2, "surplus": "carry"}


@pytest.fixture
def small_disk(tmp_path):
    """Returns a function that mounts a disk of so many bytes."""
    mounted = []

    def mount(num_bytes):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def size_of(folder):
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in Path(folder).rglob("*") if path.is_file())


# Room for two checkpoints and a part of the third: the disk is full in its first files, in its midst, later.
@pytest.mark.parametrize("part", [0.05, 0.5, 0.75])
def test_run_on_a_full_disk_ends_with_an_error_and_goes_on_elsewhere(tmp_path, small_disk, part):
    straight = tmp_path / "straight"
    assert run(straight, OPTIONS) == [0], said(straight)
    one = size_of(straight / "checkpoint-2")
    others = size_of(straight) - sum(size_of(path) for path in straight.glob("checkpoint-*"))
    disk = small_disk(int(others + (2 + part) * one))
    assert run(disk, OPTIONS) == [1]
    found, faults = last_whole_checkpoint(disk)
    assert found == disk / "checkpoint-2"
    assert faults == {str(disk / "checkpoint-3"): CUT_OFF}
    assert not list(disk.rglob("*.tmp"))
    # Where there is room again.
    room = tmp_path / "room"
    shutil.copytree(disk, room)
    assert run(room, OPTIONS) == [0], said(room)
    assert outcome(room)["first_step"] == 2
    assert outcome(room)["weights"] == outcome(straight)["weights"]
    assert outcome(room)["log"] == outcome(straight)["log"]
