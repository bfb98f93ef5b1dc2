"""The arithmetic of the benchmark of killed runs, and that the documentation shows its table."""

import importlib
import json
import sys

import pytest
import torch
from checkout import ROOT
from safetensors.torch import save_file


@pytest.fixture
def resume(monkeypatch):
    for name in ("benchmarks", "tests/faults"):
        monkeypatch.syspath_prepend(str(ROOT / name))
    yield importlib.import_module("resume")
    sys.modules.pop("resume")


def write_run(folder, trained, end, log):
    """`trained`: (life, optimizer step, rows) in the order in which they were noted."""
    folder.mkdir()
    lines = [json.dumps({"life": life, "step": step, "rows": rows}) for life, step, rows in trained]
    (folder / "trained0.jsonl").write_text("\n".join(lines))
    (folder / "outcome0.json").write_text(json.dumps({"log": log}))
    save_file({"weight": torch.tensor(end)}, folder / "weights.safetensors")


@pytest.mark.bench
def test_a_resumed_run_is_compared_by_what_its_last_lives_trained(tmp_path, resume):
    (tmp_path / "model").mkdir()
    save_file({"weight": torch.tensor([1.0, 1.0])}, tmp_path / "model" / "model.safetensors")
    log = [{"step": 1, "loss": 0.5, "step_time": 1.0}]
    write_run(tmp_path / "straight", [(1, 0, [["p", "a"], ["q", "b"]]), (1, 1, [["r", "c"]])], [4.0, 5.0], log)
    # Step 1 was lost with the first life; in another order the rows of a step are the same.
    killed = [(1, 0, [["q", "b"], ["p", "a"]]), (1, 1, [["r", "c"]]), (2, 1, [["p", "d"]])]
    write_run(tmp_path / "killed", killed, [4.0, 5.5], [log[0] | {"step_time": 2.0}])
    found = resume.compare(resume.Arm(), tmp_path / "killed", tmp_path / "straight", str(tmp_path / "model"))
    # The straight run went from (1, 1) to (4, 5): 5 long.
    assert found == {
        "steps": 1, "num_prompts": 3, "never": 1, "again": 1, "weights": pytest.approx(0.5 / 5),
        "moved": pytest.approx(0.5 / 5), "log": True,
    }  # fmt: skip
    assert not resume.is_same(found)
    itself = resume.compare(resume.Arm(), tmp_path / "straight", tmp_path / "straight", str(tmp_path / "model"))
    assert resume.is_same(itself)
    assert (itself["steps"], itself["never"], itself["again"], itself["moved"]) == (0, 0, 0, 0.0)


def test_every_trial_of_ours_is_the_run_that_was_never_killed_and_the_documentation_shows_it(resume):
    record = json.loads(resume.RESULTS.read_text())
    for name, trials in record["results"].items():
        if name.startswith("DAPOTrainer"):
            assert all(resume.is_same(found) and found["log"] and not found["removed"] for found in trials.values())
    # Nor do two runs differ that nobody killed, ours or TRL's.
    assert all(resume.is_same(found) for found in record["repeated"].values())
    assert resume.markdown(record) in (ROOT / "benchmarks" / "README.md").read_text()
