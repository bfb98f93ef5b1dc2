"""The picture of a run: what is drawn, and when."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from published_run import hub, make_trainer, run_folder, trained  # noqa: F401
from transformers import TrainerCallback

from trl_dapo.command_line import main
from trl_dapo.command_line.training_run import _results
from trl_dapo.publishing import card
from trl_dapo.report import curves
from trl_dapo.report.reliability_plot import plot_reliability


pytestmark = pytest.mark.curves


PNG = b"\x89PNG"
EACH_STEP = {"save_strategy": "steps", "save_steps": 1}
OLD_PICTURE = b"the picture of another run"


def drawn_metrics(history):
    return [metric for _, metrics in curves._PANELS for metric in curves._logged(metrics, history)]


def test_what_dapo_logs_is_drawn_instead_of_what_says_less():
    plain = {
        "entropy": 1.0,
        "rewards/accuracy_reward/mean": 0.5,
        "completions/mean_length": 9.0,
        "clip_ratio/high_mean": 0.0,
    }
    ours = {"dapo/entropy": 1.0, "dapo/sampled_accuracy": 0.3, "dapo/length/correct": 8.0}
    assert drawn_metrics([plain]) == [
        "rewards/accuracy_reward/mean",
        "entropy",
        "completions/mean_length",
        "clip_ratio/high_mean",
    ]
    assert drawn_metrics([plain | ours]) == [
        "dapo/sampled_accuracy",
        "dapo/entropy",
        "dapo/length/correct",
        "clip_ratio/high_mean",
    ]


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", PNG), ("b.svg", b"<?xml"), ("c.pdf", b"%PDF"), ("no_suffix", PNG)]
)
def test_picture_of_two_runs_is_written_in_the_format_of_its_suffix(tmp_path, name, start):
    pytest.importorskip("matplotlib")
    runs = {
        "DAPO": [
            {"step": 4, "dapo/entropy": 0.5, "dapo/clip_high/token_prob_max": 0.2},
            {"step": 8, "dapo/entropy": 0.4, "dapo/clip_high/token_prob_max": None},
        ],
        "GRPO": [{"step": 4, "entropy": 0.5}],
    }
    assert curves.plot_curves(runs, tmp_path / name) == tmp_path / name
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture
def without_matplotlib(monkeypatch):
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


def test_missing_matplotlib_is_a_warning_with_the_fix(tmp_path, without_matplotlib, caplog):
    (tmp_path / "a.png").write_bytes(OLD_PICTURE)
    assert curves.plot_curves({"DAPO": [{"step": 1, "dapo/entropy": 0.5}]}, tmp_path / "a.png") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "matplotlib is not installed. Install it (pip install 'trl-dapo[curves]')" in record.getMessage()
    assert (tmp_path / "a.png").read_bytes() == OLD_PICTURE


# When they are drawn


@pytest.fixture
def drawings(monkeypatch):
    """The last step of each history that is drawn."""
    steps = []

    def plot_curves(histories, path, num_columns):
        steps.append(histories["DAPO"][-1]["step"])
        path.write_bytes(f"picture of {len(histories['DAPO'])} log lines".encode())
        return path

    monkeypatch.setattr(card, "plot_curves", plot_curves)
    return steps


def refers_to_picture(text):
    return "![Training curves](curves.png)" in text


class AtSaves(TrainerCallback):
    """Calls a function after each save."""

    def __init__(self, call):
        self.call = call

    def on_save(self, args, state, control, **kwargs):
        self.call(state.global_step)


def test_checkpoints_write_the_card_without_a_picture_and_the_end_of_training_with_it(tmp_path, drawings):
    (tmp_path / "curves.png").write_bytes(OLD_PICTURE)
    trainer = make_trainer(tmp_path, max_steps=3, **EACH_STEP)
    saves = {}

    def look(step):
        text = (tmp_path / "README.md").read_text()
        saves[step] = (f"of step {step} of 3" in text, refers_to_picture(text), (tmp_path / "curves.png").exists())

    trainer.add_callback(AtSaves(look))
    trainer.train()
    assert saves == {1: (True, False, False), 2: (True, False, False), 3: (False, False, False)}
    assert drawings == [3]
    assert refers_to_picture((tmp_path / "README.md").read_text())
    # The summary of the run is among the drawn log lines.
    facts = json.loads((tmp_path / "run_facts.json").read_text())
    assert "train_runtime" in facts["log_history"][-1]
    assert (tmp_path / "curves.png").read_text() == f"picture of {len(facts['log_history'])} log lines"


def test_run_that_saves_nothing_draws_nothing(tmp_path, drawings):
    trainer = make_trainer(tmp_path)
    trainer.train()
    assert drawings == []
    assert not (tmp_path / "README.md").exists()
    trainer.create_model_card()
    assert drawings == [2]
    assert refers_to_picture((tmp_path / "README.md").read_text())


def test_person_who_asks_during_training_gets_a_picture(tmp_path, drawings):
    trainer = make_trainer(tmp_path, **EACH_STEP)
    found = []

    def ask(step):
        trainer.create_model_card()
        found.append(((tmp_path / "curves.png").exists(), refers_to_picture((tmp_path / "README.md").read_text())))

    trainer.add_callback(AtSaves(ask))
    trainer.train()
    assert found == [(True, True)] * 2
    assert drawings == [1, 2, 2]


def test_card_at_the_end_that_cannot_be_written_costs_no_training(tmp_path, monkeypatch, caplog):
    def plot_curves(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card, "plot_curves", plot_curves)
    trainer = make_trainer(tmp_path, **EACH_STEP)
    assert trainer.train().global_step == 2
    assert "Training is complete, but its model card could not be written." in caplog.text
    assert "No space left on device" in caplog.text
    with pytest.raises(OSError, match="No space left"):
        trainer.create_model_card()


def test_run_without_matplotlib_ends_with_a_card_that_names_no_picture(tmp_path, without_matplotlib, caplog):
    trainer = make_trainer(tmp_path, **EACH_STEP)
    trainer.train()
    assert not refers_to_picture((tmp_path / "README.md").read_text())
    assert not (tmp_path / "curves.png").exists()
    assert caplog.text.count("matplotlib is not installed") == 1


# What is pushed


def test_pushed_card_names_the_picture_where_it_is_and_nowhere_else(hub, tmp_path, drawings):
    out = tmp_path / "out"
    out.mkdir()
    (out / "curves.png").write_bytes(OLD_PICTURE)
    options = EACH_STEP | {"push_to_hub": True, "hub_strategy": "every_save", "hub_model_id": "me/curves"}
    trainer = make_trainer(out, hub_always_push=True, **options)
    trainer.train()
    in_training = hub.repositories["me/curves"].branches["main"][1:]
    assert len(in_training) == 2
    for _, _, files in in_training:
        assert "curves.png" not in files
        assert not refers_to_picture(files["README.md"].content.decode())
    trainer.push_to_hub()
    assert drawings == [2, 2]
    files = hub.files("me/curves")
    assert files["curves.png"] == (out / "curves.png").read_bytes() != OLD_PICTURE
    assert refers_to_picture(files["README.md"].decode())


def test_command_draws_the_picture_of_a_run_that_was_killed(hub, run_folder, drawings):
    # What the last save of a run leaves.
    facts = json.loads((run_folder / "run_facts.json").read_text())
    (run_folder / "curves.png").unlink()
    main(["push", "--output_dir", str(run_folder), "--hub_model_id", "me/killed"])
    files = hub.files("me/killed")
    assert drawings == [facts["log_history"][-1]["step"]]
    assert files["curves.png"] == (run_folder / "curves.png").read_bytes()
    assert refers_to_picture(files["README.md"].decode())


def test_command_pushes_the_picture_that_is_there(hub, run_folder, drawings):
    # It may show more than this run, such as the GRPO run that it was compared with.
    (run_folder / "curves.png").write_bytes(b"two runs")
    main(["push", "--output_dir", str(run_folder), "--hub_model_id", "me/compared"])
    assert drawings == []
    assert hub.files("me/compared")["curves.png"] == b"two runs"
    assert refers_to_picture(hub.files("me/compared")["README.md"].decode())


@pytest.mark.parametrize("has_picture", [True, False])
def test_command_pushes_without_matplotlib(hub, run_folder, without_matplotlib, caplog, has_picture):
    if not has_picture:
        (run_folder / "curves.png").unlink(missing_ok=True)
    else:
        (run_folder / "curves.png").write_bytes(b"drawn elsewhere")
    main(["push", "--output_dir", str(run_folder), "--hub_model_id", "me/plain"])
    files = hub.files("me/plain")
    assert ("curves.png" in files) == has_picture
    assert refers_to_picture(files["README.md"].decode()) == has_picture
    assert ("matplotlib is not installed" in caplog.text) == (not has_picture)


def test_run_that_logged_nothing_has_no_picture(tmp_path, drawings):
    trainer = make_trainer(tmp_path)
    (tmp_path / "curves.png").write_bytes(OLD_PICTURE)
    trainer.create_model_card()
    assert drawings == []
    assert not (tmp_path / "curves.png").exists()
    assert "curves.png" not in ModelCard.load(tmp_path / "README.md").text


def test_panels_of_selective_rollout_are_drawn_only_for_runs_that_have_it(tmp_path):
    pytest.importorskip("matplotlib")
    without = [{"step": step, "dapo/entropy": 0.5} for step in (1, 2)]
    with_it = [entry | {"dapo/selection/frac_solved": 0.25} for entry in without]
    heights = []
    for name, history in {"without": without, "with": with_it}.items():
        path = curves.plot_curves({"DAPO": history}, tmp_path / f"{name}.png", num_columns=1)
        # Width and height are in the header of a PNG.
        heights.append(int.from_bytes(path.read_bytes()[20:24], "big"))
    assert heights[1] / heights[0] == pytest.approx(9 / 8, rel=0.01)


def test_reliability_of_predictions_is_drawn(tmp_path, monkeypatch):
    Axes = pytest.importorskip("matplotlib.axes").Axes
    table = [
        {"num_groups": 30.0, "predicted": 0.1, "found": 0.2},
        {"num_groups": 10.0, "predicted": 0.9, "found": 0.8},
    ]
    drawn = []
    monkeypatch.setattr(Axes, "scatter", lambda axes, *args, s, **kwargs: drawn.append((*args, s)))
    assert plot_reliability(table, tmp_path / "reliability.png").read_bytes().startswith(PNG)
    ((predicted, found, sizes),) = drawn
    assert (predicted, found) == ([0.1, 0.9], [0.2, 0.8])
    assert sizes[0] > sizes[1]


def test_results_have_the_reliability_table_where_prompts_were_selected():
    row = {"num_groups": 4.0, "predicted": 0.5, "found": 0.25}
    selection = SimpleNamespace(reliability=SimpleNamespace(table=lambda: [row]))

    def results_with(selection):
        sampler = SimpleNamespace(rollout_efficiency=0.5, source=SimpleNamespace(selection=selection))
        trainer = SimpleNamespace(dynamic_sampler=sampler, stop_reason=None, card_held_out=None)
        trainer.args, trainer.state = SimpleNamespace(seed=0), SimpleNamespace(log_history=[{"train_runtime": 2.0}])
        trainer.reward_func_names = ["accuracy_reward"]
        return _results(trainer, None)

    assert results_with(selection)["reliability"] == [row]
    assert "reliability" not in results_with(None)
