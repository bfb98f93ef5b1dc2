"""The figures that the paper's authors steer by, against loops over single tokens."""

import math

import pytest
import torch
from test_distributed import run
from test_loss import RecordingSteps
from test_trainer import make_trainer
from tiny import tiny_model

from trl_dapo.loss.diagnostics import LossDiagnostics


def gather_one(tensor):
    return tensor


def test_figures_by_hand():
    diagnostics = LossDiagnostics(epsilon_low=0.2, epsilon_high=0.28, long_length=2)
    old = torch.log(torch.tensor([[0.1, 0.2, 0.5], [0.4, 0.3, 0.9]]))
    ratio = torch.tensor([[1.5, 1.2, 9.0], [0.5, 1.5, 0.7]])
    diagnostics.observe_tokens(
        logps=old + ratio.log(),
        old_logps=old,
        entropies=torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]]),
        advantages=torch.tensor([2.0, -1.0]),
        mask=torch.tensor([[1, 1, 0], [1, 1, 1]]),
    )
    diagnostics.observe_rows(
        torch.tensor([2.0, -1.0, -0.5, 0.0]), torch.tensor([2, 3, 1, 9]), torch.tensor([True, True, True, False])
    )
    figures = diagnostics.flush(gather_one)
    assert figures == {
        "entropy": pytest.approx((1 + 2 + 3 + 4 + 5) / 5),
        "entropy/positive": pytest.approx(1.5),
        "entropy/negative": pytest.approx(4.0),
        "ratio/mean": pytest.approx((1.5 + 1.2 + 0.5 + 1.5 + 0.7) / 5),
        "ratio/max": pytest.approx(1.5),
        "ratio/min": pytest.approx(0.5),
        # Of the positive row the first token is above 1.28; of the negative one the first and the last are below 0.8.
        "clip_high/token_prob_mean": pytest.approx(0.1),
        "clip_high/token_prob_max": pytest.approx(0.1),
        "clip_high/frac_of_positive": pytest.approx(1 / 2),
        "clip_low/token_prob_mean": pytest.approx((0.4 + 0.9) / 2),
        "clip_low/frac_of_negative": pytest.approx(2 / 3),
        "length/frac_long_given_negative": pytest.approx(1 / 2),
        "advantage/max": 2.0,
        "advantage/min": -1.0,
    }
    assert diagnostics.flush(gather_one) == {}


def test_ranks_are_merged_by_sum_and_count():
    def observed(values):
        diagnostics = LossDiagnostics(0.2, 0.28, None)
        shape = (1, len(values))
        diagnostics.observe_tokens(torch.zeros(shape), None, torch.tensor([values]), torch.ones(1), torch.ones(shape))
        return diagnostics

    sent = []
    observed([5.0]).flush(lambda tensor: sent.append(tensor) or tensor)
    figures = observed([1.0, 2.0, 3.0]).flush(lambda tensor: torch.cat([tensor, sent[0]]))
    assert figures["entropy"] == pytest.approx((1 + 2 + 3 + 5) / 4)


def test_mean_over_nothing_is_nan_and_sequence_ratio_is_the_geometric_mean():
    diagnostics = LossDiagnostics(0.2, 0.28, None, has_clipping=False)
    ratio = torch.tensor([[2.0, 0.5, 4.0]])
    diagnostics.observe_tokens(
        ratio.log(), torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1), torch.ones(1, 3), is_sequence_ratio=True
    )
    figures = diagnostics.flush(gather_one)
    assert [figures["ratio/mean"], figures["ratio/max"]] == pytest.approx([4.0 ** (1 / 3)] * 2)
    assert math.isnan(figures["clip_high/token_prob_mean"])
    assert math.isnan(figures["advantage/max"])


def brute_force(steps, eps_low=0.2, eps_high=0.28):
    """Walks through every trained token of every step, in float64."""
    high, low, positive, negative, entropies, ratios = [], [], 0, 0, [], []
    for before, rows, _ in steps:
        model = tiny_model()
        model.load_state_dict(before)
        model.double()
        for row in rows:
            (prompt, completion), advantage = row["key"], row["advantage"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            logps = logits.log_softmax(-1)
            for position, token in enumerate(completion):
                old = row["old_logps"][position]
                ratio = math.exp(logps[position, token].item() - old)
                entropies.append(-(logps[position].exp() * logps[position]).sum().item())
                ratios.append(ratio)
                positive += advantage > 0
                negative += advantage < 0
                if advantage > 0 and ratio > 1 + eps_high:
                    high.append(math.exp(old))
                if advantage < 0 and ratio < 1 - eps_low:
                    low.append(math.exp(old))
    return {
        "dapo/entropy": sum(entropies) / len(entropies),
        "dapo/ratio/max": max(ratios),
        "dapo/ratio/min": min(ratios),
        "dapo/clip_high/token_prob_mean": sum(high) / len(high),
        "dapo/clip_high/token_prob_max": max(high),
        "dapo/clip_high/frac_of_positive": len(high) / positive,
        "dapo/clip_low/token_prob_mean": sum(low) / len(low),
        "dapo/clip_low/frac_of_negative": len(low) / negative,
    }


def test_logged_figures_equal_a_walk_through_every_token(tmp_path):
    trainer = make_trainer(
        tmp_path, cls=RecordingSteps, steps_per_generation=4, gradient_accumulation_steps=2, num_iterations=2, max_steps=8,
        logging_steps=4, learning_rate=3e-2, soft_punish_cache=4,
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "dapo/entropy" in entry]
    assert len(logs) == 2
    for entry, steps in zip(logs, (trainer.steps[:4], trainer.steps[4:]), strict=True):
        expected = brute_force(steps)
        assert expected["dapo/clip_high/frac_of_positive"] > 0
        assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=2e-3)
    # One generation batch trains between two lines.
    for entry, (_, (_, _, completion_ids), output) in zip(logs, trainer.batches, strict=True):
        advantages = output["advantages"].tolist()
        wrong = [len(ids) > 4 for ids, advantage in zip(completion_ids, advantages, strict=True) if advantage < 0]
        assert entry["dapo/length/frac_long_given_negative"] == pytest.approx(sum(wrong) / len(wrong))
        assert entry["dapo/advantage/max"] == pytest.approx(max(advantages))
        assert entry["dapo/advantage/min"] == pytest.approx(min(advantages))


def test_plain_batches_report_groups_and_lengths_too(tmp_path):
    trainer = make_trainer(tmp_path, dynamic_sampling=False, max_steps=2, soft_punish_cache=4)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "dapo/sampled_accuracy" in entry]
    for entry, (rounds, _, _) in zip(logs, ((b[0], None, None) for b in trainer.batches), strict=True):
        _, rewards, completion_ids = rounds[0]
        is_right = [reward[0] == 1.0 for reward in rewards]
        right = [len(ids) for ids, good in zip(completion_ids, is_right, strict=True) if good]
        wrong = [len(ids) for ids, good in zip(completion_ids, is_right, strict=True) if not good]
        assert entry["dapo/sampled_accuracy"] == pytest.approx(sum(is_right) / len(is_right))
        assert entry["dapo/length/correct"] == pytest.approx(sum(right) / len(right))
        assert entry["dapo/length/wrong"] == pytest.approx(sum(wrong) / len(wrong))
        mixed = [0 < sum(is_right[start : start + 4]) < 4 for start in range(0, len(is_right), 4)]
        assert entry["dapo/acceptance_rate"] == pytest.approx(sum(mixed) / len(mixed))
        overlong = [len(ids) > 4 for ids in completion_ids]
        assert entry["dapo/overlong/frac"] == pytest.approx(sum(overlong) / len(overlong))


@pytest.mark.distributed
def test_two_ranks_log_the_figures_of_one(tmp_path):
    options = {
        "max_steps": 4,
        "max_generation_rounds": 30,
        "learning_rate": 1e-2,
        "num_iterations": 2,
        "logging_steps": 2,
    }
    alone = run(tmp_path / "one", 1, per_device_train_batch_size=16, **options)
    together = run(tmp_path / "two", 2, per_device_train_batch_size=8, **options)
    names = ["entropy", "ratio/mean", "ratio/max", "ratio/min", "advantage/max", "advantage/min", "length/correct",
             "length/wrong", "length/frac_long_given_negative", "entropy/positive", "clip_high/frac_of_positive",
             "clip_low/frac_of_negative", "clip_low/token_prob_mean"]  # fmt: skip
    compared = 0
    for mine, *others in zip(alone[0]["logs"], *(result["logs"] for result in together), strict=True):
        if "dapo/entropy" not in mine:
            continue
        for name in names:
            expected = mine.get(f"dapo/{name}")
            for other in others:
                assert other.get(f"dapo/{name}") == (
                    expected if expected is None else pytest.approx(expected, rel=1e-3)
                )
            compared += 1
    assert compared == 2 * len(names)
