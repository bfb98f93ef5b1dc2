"""Whole, cut off or damaged: what a checkpoint says of itself, and what is read back from it."""

import hashlib
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from test_resume import make_trainer
from tiny import numbered_prompts, tiny_model
from tiny_vlm import tiny_vlm

from trl_dapo.checkpoints import finalization
from trl_dapo.checkpoints.files import (
    CUT_OFF,
    MANIFEST,
    find_fault,
    last_whole_checkpoint,
    mark_unfinished,
    mark_whole,
    read_state,
    write_state,
)
from trl_dapo.checkpoints.run_state import RunState
from trl_dapo.checkpoints.weights import load_renamed


def write_checkpoint(folder, state=None):
    mark_unfinished(folder)
    records = write_state(folder, "rank0", state or {"step": 3, "ids": torch.arange(4)})
    (folder / "model.safetensors").write_bytes(b"weights")
    # As FSDP2 and torch's distributed checkpoints have it.
    (folder / "optimizer_0").mkdir(exist_ok=True)
    (folder / "optimizer_0" / ".metadata").write_bytes(b"index")
    (folder / "trainer_state.json").write_text("{}")
    mark_whole(folder, records)


def test_state_comes_back_bit_for_bit(tmp_path):
    batch = torch.randn(6, 5).split(2)
    state = {
        "parts": [{"ids": part, "scalar": torch.tensor(7, dtype=torch.int64), "none": None} for part in batch],
        "mask": torch.tensor([True, False]),
        "half": torch.tensor([1 / 3], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "figures": [0.1 + 0.2, math.inf, 2**60, True, "text", "\U0001f600 \u2028", {"deep": [[]]}],
    }
    write_state(tmp_path, "a", state)
    read = read_state(tmp_path, "a")
    assert read["figures"] == state["figures"]
    assert [type(x) for x in read["figures"]] == [type(x) for x in state["figures"]]
    pairs = [(read[name], state[name]) for name in ("mask", "half", "empty", "transposed")]
    pairs += [(mine["ids"], its["ids"]) for mine, its in zip(read["parts"], state["parts"], strict=True)]
    for mine, its in pairs:
        assert mine.dtype == its.dtype
        assert torch.equal(mine, its)
    assert read["parts"][1]["scalar"].item() == 7
    assert read["parts"][1]["none"] is None


def test_nan_comes_back_as_nan(tmp_path):
    write_state(tmp_path, "a", {"x": math.nan, "y": torch.tensor([math.nan, -0.0])})
    read = read_state(tmp_path, "a")
    assert math.isnan(read["x"])
    assert math.isnan(read["y"][0])
    assert math.copysign(1, read["y"][1]) == -1


def test_what_json_does_not_know_is_kept_as_number_or_text(tmp_path):
    write_state(tmp_path, "a", {"type": torch.float64, "scalar": np.float64(0.1), "pair": (1, 2)})
    assert read_state(tmp_path, "a") == {"type": "torch.float64", "scalar": 0.1, "pair": [1, 2]}


def test_manifest_has_the_sizes_and_hashes_of_what_is_read_on_resume(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    names = {"dapo_state/rank0.json", "dapo_state/rank0.safetensors", "model.safetensors", "trainer_state.json"}
    names |= {"optimizer_0/.metadata"}
    assert {file["name"] for file in manifest["files"]} == names
    for file in manifest["files"]:
        content = (tmp_path / file["name"]).read_bytes()
        assert file["num_bytes"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"weightS"),
            "model.safetensors has changed since it was written",
        ),
        (lambda folder: os.truncate(folder / "model.safetensors", 3), "model.safetensors has 3 bytes instead of 7"),
        (lambda folder: (folder / "dapo_state" / "rank0.json").unlink(), "dapo_state/rank0.json is missing"),
        (lambda folder: (folder / "optimizer_0" / ".metadata").unlink(), "optimizer_0/.metadata is missing"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / MANIFEST).write_text("{"), f"its {MANIFEST} cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), f"its {MANIFEST} cannot be read"),
        (mark_unfinished, CUT_OFF),
        (lambda folder: [(folder / name).unlink() for name in (MANIFEST, "trainer_state.json")], CUT_OFF),
        (lambda folder: (folder / MANIFEST).unlink(), None),  # a checkpoint of TRL's own trainer
        (lambda folder: (folder / "README.md").write_text("changed later"), None),
    ],
)
def test_fault_is_found_and_named(tmp_path, damage, fault):
    write_checkpoint(tmp_path)
    assert find_fault(tmp_path) is None
    damage(tmp_path)
    found = find_fault(tmp_path)
    assert found is None if fault is None else found.startswith(fault)


def test_last_whole_checkpoint_is_the_newest_by_number(tmp_path):
    for step in (9, 10, 11, 100):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    mark_unfinished(tmp_path / "checkpoint-100")
    os.truncate(tmp_path / "checkpoint-11" / "model.safetensors", 1)
    (tmp_path / "checkpoint-200x").mkdir()
    found, faults = last_whole_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-10"
    assert list(faults) == [str(tmp_path / "checkpoint-100"), str(tmp_path / "checkpoint-11")]


def test_parts_are_given_back_to_their_owners(tmp_path):
    PartialState()  # for the log
    given = {}
    state = RunState(0, {"num_ranks": 1})
    state.add("stream", lambda: {"position": 5}, lambda part: given.update(part))
    state.add("tails", lambda: {"ids": [torch.tensor([1, 2])]}, lambda part: given.update(part), needs_layout=True)
    state.save(tmp_path)
    assert state.load(tmp_path)
    assert given["position"] == 5
    assert given["ids"][0].tolist() == [1, 2]
    # A second rank has no file of its own: it gets what describes the run as a whole, and no more.
    given.clear()
    other = RunState(1, {"num_ranks": 2})
    other.add("stream", dict, lambda part: given.update(part))
    other.add("tails", dict, lambda part: given.update(part), needs_layout=True)
    other.add("later", dict, lambda part: given.update(part))
    assert not other.load(tmp_path)
    assert given == {"position": 5}


def test_state_of_the_first_release_is_refused(tmp_path):
    (tmp_path / "dapo_state.json").write_text("{}")
    with pytest.raises(ValueError, match="has version 1, but this release reads version 2"):
        RunState(0, {"num_ranks": 1}).load(tmp_path)


def test_files_above_64_mib_are_known_by_their_size(tmp_path):
    for name, num_bytes in (("at.bin", 2**26), ("above.bin", 2**26 + 1)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, num_bytes)  # a hole: takes no disk
    mark_whole(tmp_path, [])
    files = {file["name"]: file for file in json.loads((tmp_path / MANIFEST).read_text())["files"]}
    assert files["above.bin"] == {"name": "above.bin", "num_bytes": 2**26 + 1, "sha256": None}
    assert files["at.bin"]["sha256"] == hashlib.sha256(bytes(2**26)).hexdigest()
    os.truncate(tmp_path / "above.bin", 2**26)
    assert find_fault(tmp_path) == f"above.bin has {2**26} bytes instead of {2**26 + 1}"


# Through the trainer


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, max_steps=3, save_total_limit=2, steps_per_generation=2).train()
    return folder


def resumed_step(folder, checkpoint=True, **overrides):
    """Returns the step from which a run of 3 steps resumes, or 0."""
    trainer = make_trainer(folder, max_steps=3, save_strategy="no", steps_per_generation=2, **overrides)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer._initial_global_step


def test_limit_of_checkpoints_is_kept_and_all_are_whole(finished_run):
    folders = sorted(path.name for path in finished_run.glob("checkpoint-*"))
    assert folders == ["checkpoint-2", "checkpoint-3"]
    assert all(find_fault(finished_run / name) is None for name in folders)
    listed = {file["name"] for file in json.loads((finished_run / "checkpoint-3" / MANIFEST).read_text())["files"]}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= listed


def test_resume_passes_over_what_is_not_whole_and_says_so(finished_run, tmp_path, caplog):
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    assert resumed_step(tmp_path, "true") == 3
    mark_unfinished(tmp_path / "checkpoint-3")
    assert resumed_step(tmp_path) == 2
    assert f"{tmp_path / 'checkpoint-3'}: {CUT_OFF}" in caplog.text
    with pytest.raises(ValueError, match="checkpoint-3', which cannot be resumed from: it was cut off"):
        resumed_step(tmp_path, str(tmp_path / "checkpoint-3"))
    # Nothing but unfinished ones: no checkpoint is lost by beginning anew.
    mark_unfinished(tmp_path / "checkpoint-2")
    assert resumed_step(tmp_path) == 0
    # But a damaged one was a checkpoint, and somebody should look.
    (tmp_path / "checkpoint-2" / MANIFEST).write_text("")
    with pytest.raises(ValueError, match="holds no checkpoint that is whole"):
        resumed_step(tmp_path)
    with pytest.raises(ValueError, match="holds no checkpoint that is whole"):
        resumed_step(tmp_path / "nowhere")


# The limit is reached, and it is not.
@pytest.mark.parametrize(("limit", "max_steps"), [(1, 2), (2, 1)])
def test_unfinished_checkpoint_does_not_count_as_one_of_the_limit(tmp_path, limit, max_steps):
    # The folder of a later step, cut off: by number it is the newest.
    mark_unfinished(tmp_path / "checkpoint-9")
    make_trainer(tmp_path, max_steps=max_steps, save_total_limit=limit).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{max_steps}"]


def test_older_checkpoint_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    seen = []

    def rotate(*args, **kwargs):
        seen.append({path.name: find_fault(path) for path in tmp_path.glob("checkpoint-*")})

    monkeypatch.setattr(finalization, "rotate_checkpoints", rotate)
    trainer = make_trainer(tmp_path, max_steps=2, save_total_limit=1)
    trainer.train()
    assert seen == [{"checkpoint-1": None}, {"checkpoint-1": None, "checkpoint-2": None}]
    assert trainer.args.save_total_limit == 1
    saved = torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == 1


def test_best_model_is_kept_and_loaded(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=4, save_total_limit=1, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1,
        metric_for_best_model="eval_reward", greater_is_better=True, eval_dataset=numbered_prompts(8),
    )  # fmt: skip
    trainer.train()
    rewards = {e["step"]: e["eval_reward"] for e in trainer.state.log_history if "eval_reward" in e}
    best = max(rewards, key=rewards.get)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert find_fault(tmp_path / f"checkpoint-{best}") is None


def test_weights_are_found_under_the_names_that_transformers_saved_them_under(tmp_path):
    # Llava's names on disk are those of older releases, and the Trainer reads by today's.
    model = tiny_vlm()
    model.save_pretrained(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    assert not on_disk.keys() & model.state_dict().keys()
    other = tiny_vlm()
    for parameter in other.parameters():
        parameter.data.zero_()
    load_renamed(other, tmp_path)
    for mine, its in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_checkpoint_without_all_weights_is_refused(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"does not hold all weights of the model: \['model.norm.weight'\] are missing"
    ):
        load_renamed(model, tmp_path)
