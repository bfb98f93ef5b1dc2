"""The picture of a run."""

import pytest

from trl_dapo.report import curves


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


def test_picture_of_two_runs_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    runs = {
        "DAPO": [
            {"step": 4, "dapo/entropy": 0.5, "dapo/clip_high/token_prob_max": 0.2},
            {"step": 8, "dapo/entropy": 0.4, "dapo/clip_high/token_prob_max": None},
        ],
        "GRPO": [{"step": 4, "entropy": 0.5}],
    }
    path = curves.plot_curves(runs, tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")
