"""The metrics in trackers that need no account: what they hold is what the trainer logged."""

import json
import os
import subprocess
import sys

import pytest
from checkout import ROOT
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer


def train(output_dir, tracker):
    """Trains, and returns the metrics under `dapo/` of each line of the log."""
    trainer = DAPOTrainer(
        model=tiny_model(),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(output_dir, report_to=tracker, project="dapo", run_name="tiny")),
        train_dataset=numbered_prompts(50),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(lines) == 4
    return [{name: value for name, value in line.items() if name.startswith("dapo/")} for line in lines]


def test_tensorboard_holds_the_metrics_and_is_given_no_gaps(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = train(tmp_path / "out", "tensorboard")
    # Here no token is ever clipped, so the probability of clipped tokens has no value.
    assert not any(name.startswith("dapo/clip_high/token_prob") for line in logged for name in line)
    assert not any(value is None for line in logged for value in line.values())
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    for name in {name for line in logged for name in line}:
        expected = [line[name] for line in logged if name in line]
        assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx(expected)


def test_trackio_holds_the_metrics_offline_in_one_group(tmp_path):
    pytest.importorskip("trackio")
    # In a process of its own: it keeps the folder that was set when it was imported.
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    code = f"import test_tracking; test_tracking.train_with_trackio({str(tmp_path)!r})"
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["stored"]) == len(found["logged"]) == 4
    for stored, line in zip(found["stored"], found["logged"], strict=True):
        ours = {name.removeprefix("train/"): stored[name] for name in stored if name.startswith("train/dapo/")}
        assert ours == pytest.approx(line)
    assert found["group"] == sorted({f"train/{name}" for line in found["logged"] for name in line})


def train_with_trackio(folder):
    """Writes what was logged, what trackio holds, and the metrics that its page shows in one group."""
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import order_metrics_by_plot_preference

    logged = train(os.path.join(folder, "out"), "trackio")
    stored = [entry for entry in SQLiteStorage.get_logs("dapo", "tiny") if "train/loss" in entry]
    _, groups = order_metrics_by_plot_preference(sorted({name for entry in stored for name in entry}))
    found = {"logged": logged, "stored": stored, "group": groups["train"]["subgroups"]["dapo"]}
    with open(os.path.join(folder, "found.json"), "w") as file:
        json.dump(found, file)
