"""The figures of evaluation in training are those of a count by hand, and carry the name of their dataset."""

import statistics
from fractions import Fraction

import pytest
import torch
from test_trainer import make_trainer
from tiny import first_token_reward, numbered_prompts

from trl_dapo.report.evaluation_metrics import EvaluationMetrics


NAN = float("nan")


def test_figures_of_two_batches_are_those_counted_by_hand():
    figures = EvaluationMetrics(3)
    # Two of three say 1, and it is right; a tie of three, one of them right; nobody is scored.
    figures.observe(
        torch.tensor([1.0, 1, 0, 0, 1, 0, NAN, NAN, NAN]), {"answer": list("112") + list("345") + list("666")}
    )
    # The same wrong answer twice, written differently; one completion is not scored.
    figures.observe(torch.tensor([0.0, 1, 0, 1, NAN, -1]), {"answer": ["1/2", "7", "0.5", "8", "9", None]})
    values = figures.flush({"eval_runtime": 1.0}, {})
    assert values["eval_avg@3"] == pytest.approx(statistics.mean([2 / 3, 1 / 3, 1 / 3, 1 / 2]))
    assert values["eval_pass@3"] == 1
    assert values["eval_maj@3"] == pytest.approx(
        float(statistics.mean([Fraction(1), Fraction(1, 3), Fraction(0), Fraction(1)]))
    )
    assert figures.flush({}, {}) == {}


def test_without_answers_there_is_no_vote():
    figures = EvaluationMetrics(2)
    figures.observe(torch.tensor([1.0, 0]), {})
    assert figures.flush({}, {}) == {"eval_avg@2": 0.5, "eval_pass@2": 1.0}


def test_punishment_leaves_the_metrics_only_where_it_means_nothing():
    metrics = {
        "rewards/soft_overlong_punishment/mean": [NAN],
        "rewards/soft_overlong_punishment/std": [NAN],
        "reward": [NAN],
    }
    EvaluationMetrics(2).flush({}, metrics)
    assert list(metrics) == ["reward"]
    metrics = {"rewards/soft_overlong_punishment/mean": [NAN, -0.5]}
    EvaluationMetrics(2).flush({}, metrics)
    assert len(metrics) == 1


@pytest.mark.supports("eval_sets")
def test_trainer_logs_the_figures_of_every_dataset_by_name(tmp_path):
    seen = []

    def reward(completion_ids, row, log_extra, **kwargs):
        values = first_token_reward(completion_ids)
        answers = [str(ids[0]) for ids in completion_ids]
        log_extra("answer", answers)
        seen.extend(zip(row, values, answers, strict=True))
        return values

    trainer = make_trainer(
        tmp_path,
        reward,
        eval_dataset={"small": numbered_prompts(2), "large": numbered_prompts(6)},
        per_device_eval_batch_size=8,
    )
    metrics = trainer.evaluate()
    for name, records in (("small", seen[:8]), ("large", seen[8:])):
        groups = [records[start : start + 4] for start in range(0, len(records), 4)]
        assert all(len({row for row, *_ in group}) == 1 for group in groups)
        values = [[value for _, value, _ in group] for group in groups]
        assert metrics[f"eval_{name}_avg@4"] == pytest.approx(statistics.mean(map(statistics.mean, values)))
        assert metrics[f"eval_{name}_pass@4"] == pytest.approx(statistics.mean(max(group) for group in values))
        assert 0 <= metrics[f"eval_{name}_maj@4"] <= 1
    assert len(seen) == 8 + 24
    logged = [entry for entry in trainer.state.log_history if "eval_small_maj@4" in entry]
    assert len(logged) == 1
