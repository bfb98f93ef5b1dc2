"""What a notebook shows of a run: the metrics of the terminal line, in the table of transformers."""

import importlib
import sys
import types

import pytest
from test_trainer import make_trainer
from tiny import numbered_prompts


@pytest.fixture
def notebook(monkeypatch):
    """Stands in for IPython, and returns transformers' callback for notebooks."""
    display = types.ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda html, display_id=None: types.SimpleNamespace(update=lambda html: None)
    package = types.ModuleType("IPython")
    package.display = display
    for name, module in (("IPython", package), ("IPython.display", display)):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("transformers.utils.notebook", "trl_dapo.report.notebook_progress"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("transformers.utils.notebook")
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", module.NotebookProgressCallback)
    yield module
    for name in ("transformers.utils.notebook", "trl_dapo.report.notebook_progress"):
        sys.modules.pop(name, None)


def train(trainer):
    """Trains, and returns the table as it was at the end."""
    (callback,) = [
        callback for callback in trainer.callback_handler.callbacks if hasattr(callback, "training_tracker")
    ]
    tables = []
    end = callback.on_train_end

    def keep_and_end(*args, **kwargs):
        tables.append(callback.training_tracker.inner_table)
        return end(*args, **kwargs)

    callback.on_train_end = keep_and_end
    trainer.train()
    return tables[0]


def test_table_has_the_learning_curve_and_not_only_the_loss(tmp_path, notebook):
    trainer = make_trainer(tmp_path, max_steps=3, disable_tqdm=False)
    header, *rows = train(trainer)
    assert header[:6] == ["Step", "Sampled accuracy", "Acceptance", "All correct", "All wrong", "Entropy"]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [row[:6] for row in rows] == [
        [
            entry["step"],
            f"{entry['dapo/sampled_accuracy']:.3f}",
            f"{entry['dapo/acceptance_rate']:.2f}",
            f"{entry['dapo/frac_all_correct']:.2f}",
            f"{entry['dapo/frac_all_wrong']:.2f}",
            f"{entry['entropy']:.3f}",
        ]
        for entry in logs
    ]


def test_evaluation_adds_its_accuracy_to_the_row_of_its_step(tmp_path, notebook):
    trainer = make_trainer(
        tmp_path, max_steps=3, disable_tqdm=False, eval_dataset=numbered_prompts(4), eval_strategy="steps", eval_steps=2,
        per_device_eval_batch_size=8,
    )  # fmt: skip
    header, *rows = train(trainer)
    (metrics,) = [entry for entry in trainer.state.log_history if "eval_avg@4" in entry and entry["step"] == 2]
    column = header.index("Held-out avg@4")
    assert [row[0] for row in rows] == [1, 2, 3]
    assert rows[1][column] == f"{metrics['eval_avg@4']:.3f}"
    assert rows[1][header.index("Acceptance")] == f"{trainer.state.log_history[1]['dapo/acceptance_rate']:.2f}"
    assert not any("loss" in name.lower() for name in header)


def test_row_with_fewer_metrics_keeps_its_columns(tmp_path, notebook):
    trainer = make_trainer(tmp_path, max_steps=4, disable_tqdm=False, surplus="carry", max_prompts_per_round=100)
    header, *rows = train(trainer)
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    # A batch that was carried sampled nothing, and so has no accuracy.
    carried = [
        entry for entry in trainer.state.log_history if "loss" in entry and "dapo/sampled_accuracy" not in entry
    ]
    for entry in carried:
        row = rows[entry["step"] - 1]
        assert row[header.index("Sampled accuracy")] == "No Log"
        assert row[header.index("Entropy")] == f"{entry['entropy']:.3f}"
    assert carried
