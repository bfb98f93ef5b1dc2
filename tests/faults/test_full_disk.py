"""A disk that fills up in the middle of a checkpoint."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
from processes import outcome, run, said
from test_non_finite import poisoned
from test_trainer import make_trainer
from transformers import TrainerCallback

from trl_dapo.checkpoints.files import CUT_OFF, last_whole_checkpoint


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


def fill(folder):
    """Takes all room that is left on a disk."""
    with Path(folder, "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


def size_of(folder):
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in Path(folder).rglob("*") if path.is_file())


# Room for two checkpoints and a part of the third: the disk is full in its first files, in its midst, later.
@pytest.mark.fault(
    "full disk",
    "checkpoint files",
    "error; the last whole checkpoint stays, and the run resumes exactly where there is room",
)
@pytest.mark.parametrize("part", [0.05, 0.5, 0.75])
def test_run_on_a_full_disk_ends_with_an_error_and_goes_on_elsewhere(tmp_path, small_disk, part):
    straight = tmp_path / "straight"
    assert run(straight, OPTIONS) == [0], said(straight)
    one = size_of(straight / "checkpoint-2")
    # The weights are written down when all is over, and take no room until then.
    late = [straight / "weights.safetensors", *straight.glob("checkpoint-*")]
    others = size_of(straight) - sum(size_of(path) if path.is_dir() else path.stat().st_size for path in late)
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


def weights_of(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.fault("full disk", "record of groups", "a warning; training goes on, what is recorded is whole")
def test_record_of_groups_ends_on_a_full_disk_and_the_run_goes_on(tmp_path, small_disk, caplog):
    straight = make_trainer(tmp_path / "straight", num_groups_to_log=4)
    straight.train()
    disk = small_disk(64 * 1024)
    trainer = make_trainer(disk, num_groups_to_log=4)

    class FullAfterTwoSteps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                fill(disk)

    trainer.add_callback(FullAfterTwoSteps())
    trainer.train()
    assert torch.equal(weights_of(trainer), weights_of(straight))
    assert caplog.text.count("The record of rollout groups ends here") == 1
    assert "No space left on device" in caplog.text
    # What is there is whole, and what is not leaves no trace.
    names = [f"groups-000-{batch:06d}.parquet" for batch in range(2)]
    assert sorted(path.name for path in (disk / "rollouts").iterdir()) == names
    for name in names:
        theirs = pd.read_parquet(tmp_path / "straight" / "rollouts" / name)
        pd.testing.assert_frame_equal(pd.read_parquet(disk / "rollouts" / name), theirs)


@pytest.mark.fault("full disk", "batch of a step that is not finite", "a warning; training goes on")
def test_batch_that_is_not_finite_is_skipped_on_a_full_disk_too(tmp_path, small_disk, caplog):
    straight, disk = poisoned(tmp_path / "straight", {1: float("nan")}), small_disk(64 * 1024)
    straight.train()
    trainer = poisoned(disk, {1: float("nan")})
    fill(disk)
    trainer.train()
    assert torch.equal(weights_of(trainer), weights_of(straight))
    assert "The batch of optimizer step 2 could not be written: " in caplog.text
    assert [path.name for path in disk.rglob("*") if path.is_file()] == ["filler"]


@pytest.mark.curves
@pytest.mark.fault("full disk", "model card and curves", "a warning; training goes on, the old card is whole")
def test_card_and_curves_of_a_full_disk_cost_no_training(tmp_path, small_disk, caplog):
    disk = small_disk(256 * 1024)
    trainer = make_trainer(disk)
    trainer.train()
    trainer.create_model_card()
    before = {name: (disk / name).read_bytes() for name in ("README.md", "run_facts.json", "curves.png")}
    fill(disk)
    trainer.is_in_train = True
    trainer.create_model_card()
    assert "The model card could not be written; training goes on." in caplog.text
    trainer.is_in_train = False
    with pytest.raises(OSError, match="No space left on device"):
        trainer.create_model_card()
    # The old ones are whole.
    assert {path.name for path in disk.iterdir()} == {*before, "filler"}
    assert {name: (disk / name).read_bytes() for name in before} == before
