"""The loss against the plain float64 implementation of DAPO Eq. 8."""

import pytest
import torch
from paper import StepRecorder, gradient_error, paper_gradient
from test_trainer import RecordingTrainer, make_trainer
from tiny import first_token_reward

from trl_dapo.loss.normalization import ROW_NUMBER


class RecordingSteps(StepRecorder, RecordingTrainer):
    pass


def train_with_sgd(tmp_path, **overrides):
    trainer = make_trainer(
        tmp_path,
        cls=RecordingSteps,
        **{
            "optim": "sgd",
            "learning_rate": 0.5,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "max_steps": 6,
        }
        | overrides,
    )
    trainer.train()
    return trainer


def gradient_errors(trainer, by_group=False):
    return [
        gradient_error(gradient, paper_gradient(before, rows, by_group)) for before, rows, gradient in trainer.steps
    ]


@pytest.mark.supports("accumulation", "iterations", "by_group")
@pytest.mark.parametrize("normalization", ["batch", "group"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"steps_per_generation": 4},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
        {"steps_per_generation": 2, "num_iterations": 2},
        {"steps_per_generation": 2, "mask_truncated_completions": True},
        {"steps_per_generation": 2, "mask_truncated_completions": True, "truncated_in_statistics": False},
        {"steps_per_generation": 2, "surplus": "carry", "refill_confidence": 0.99, "max_prompts_per_round": 50},
        {"steps_per_generation": 2, "max_generation_rounds": 1, "max_prompts_per_round": 4},
        {"steps_per_generation": 2, "dynamic_sampling": False},
        {"per_device_train_batch_size": 2, "steps_per_generation": 8, "gradient_accumulation_steps": 4},
    ],
    ids=str,
)
def test_every_optimizer_step_has_the_gradient_of_the_paper(tmp_path, shape, normalization):
    trainer = train_with_sgd(tmp_path, loss_normalization=normalization, **shape)
    assert max(gradient_errors(trainer, by_group=normalization == "group")) < 1e-5
    ratios_moved = any(row["old_logps"] is not None for _, rows, _ in trainer.steps for row in rows)
    assert ratios_moved == (shape != {})


def test_the_two_normalizations_are_different_ones(tmp_path):
    # The test above can fail.
    trainer = train_with_sgd(tmp_path, steps_per_generation=2)
    assert min(gradient_errors(trainer, by_group=True)) > 1e-3
    trainer = train_with_sgd(tmp_path, steps_per_generation=4, loss_normalization="generation_batch")
    assert max(gradient_errors(trainer)) > 1e-2


def test_by_group_every_optimizer_step_has_whole_groups_in_random_order(tmp_path):
    trainer = train_with_sgd(tmp_path, steps_per_generation=4, loss_normalization="group", max_steps=8)
    orders = []
    for _, rows, _ in trainer.steps:
        prompts = [row["key"][0] for row in rows]
        assert all(prompts.count(prompt) == 4 for prompt in prompts)
    for start in (0, 4):
        orders.append([row["key"] for _, rows, _ in trainer.steps[start : start + 4] for row in rows])
    for order, (_, (_, _, completion_ids), output) in zip(orders, trainer.batches, strict=True):
        trained = sorted(completion for _, completion in order)
        assert trained == sorted(tuple(ids) for ids in completion_ids)
        assert [completion for _, completion in order] != [tuple(ids) for ids in completion_ids]
        assert output[ROW_NUMBER].tolist() == list(range(32))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loss_type": "grpo", "loss_normalization": "batch"}, "loss_type='grpo' has a denominator of its own"),
        ({"loss_type": "bnpo", "loss_normalization": "group"}, "loss_type='bnpo' has a denominator of its own"),
        pytest.param(
            {"loss_normalization": "group", "beta": 0.1},
            "beta is 0.1, but must be 0",
            marks=pytest.mark.refuses("by_group_kl"),
        ),
        (
            {"loss_normalization": "group", "per_device_train_batch_size": 6, "steps_per_generation": 4},
            r"the 6 completions of a process in an optimizer step .* are no multiple of num_generations \(4\)",
        ),
        ({"truncated_in_statistics": False}, "truncated_in_statistics is False, but mask_truncated_completions"),
    ],
)
def test_combination_that_cannot_be_exact_is_refused(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **overrides)


# What a row of N with a completion of n tokens, of T in all, weighs in each loss while the ratio is 1: the gradient is then
# minus the sum over rows of weight * advantage * the gradient of the completion's log-probability. L is the length limit.
ROW_WEIGHTS = {
    "dapo": lambda N, n, T, L: 1 / T,
    "bnpo": lambda N, n, T, L: 1 / T,
    "cispo": lambda N, n, T, L: 1 / T,
    "vespo": lambda N, n, T, L: 1 / T,
    "grpo": lambda N, n, T, L: 1 / (N * n),
    "sapo": lambda N, n, T, L: 1 / (N * n),
    "dr_grpo": lambda N, n, T, L: 1 / (N * L),
    "luspo": lambda N, n, T, L: 1 / N,
}


@pytest.mark.supports("losses")
@pytest.mark.parametrize("loss_type", ROW_WEIGHTS)
def test_every_loss_type_of_trl_weighs_the_rows_of_informative_groups_as_it_should(tmp_path, loss_type):
    extras = {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    # CISPO has no trust region: its one bound is on the ratio itself.
    trainer = train_with_sgd(tmp_path, loss_type=loss_type, epsilon_high=5.0, max_steps=3, **extras)
    assert len(trainer.steps) == 3
    for before, rows, gradient in trainer.steps:
        lengths = [len(row["key"][1]) for row in rows]
        num_tokens = sum(lengths)
        assert len(rows) == 8
        weights = [ROW_WEIGHTS[loss_type](len(rows), length, num_tokens, 8) for length in lengths]
        # `paper_gradient` divides by the tokens of all rows.
        weighted = [
            row | {"advantage": row["advantage"] * weight * num_tokens}
            for row, weight in zip(rows, weights, strict=True)
        ]
        assert gradient_error(gradient, paper_gradient(before, weighted)) < 1e-5


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "sapo", "luspo", "cispo", "vespo"])
def test_loss_types_of_trl_train_with_dynamic_sampling(tmp_path, loss_type):
    extras = {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    trainer = make_trainer(tmp_path, loss_type=loss_type, steps_per_generation=2, max_steps=2, **extras)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert trainer.args.loss_normalization == ("batch" if loss_type in ("cispo", "vespo") else None)
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


def test_groups_that_were_not_found_do_not_dilute_a_mean_over_rows(tmp_path):
    trainer = train_with_sgd(
        tmp_path,
        steps_per_generation=1,
        loss_type="dr_grpo",
        max_generation_rounds=1,
        max_prompts_per_round=2,
        soft_punish_cache=0,
    )
    partial = [n for n, (_, rows, _) in enumerate(trainer.steps) if 0 < len({row["key"][0] for row in rows}) < 2]
    assert partial, "the seed no longer gives a partial batch"
    for number in partial:
        before, rows, gradient = trainer.steps[number]
        # The one group found, with advantages of its own; Dr. GRPO sums tokens, over the live rows times the length limit.
        rewards = torch.tensor(first_token_reward([row["key"][1] for row in rows]), dtype=torch.float64)
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        rows = [row | {"advantage": value} for row, value in zip(rows, advantages.tolist(), strict=True)]
        num_tokens = sum(len(row["key"][1]) for row in rows)
        by_tokens = paper_gradient(before, rows)
        expected = {name: value * num_tokens / (len(rows) * 8) for name, value in by_tokens.items()}
        assert gradient_error(gradient, expected) < 1e-5


def test_optimizer_step_without_tokens_moves_nothing_under_any_loss(tmp_path):
    # One group is found for a batch of four, so that some of the steps have none of its rows.
    trainer = make_trainer(
        tmp_path, cls=RecordingSteps, loss_type="dr_grpo", per_device_train_batch_size=2, steps_per_generation=8,
        max_generation_rounds=1, max_prompts_per_round=1, max_steps=24, weight_decay=0.1, num_rows=60,
    )  # fmt: skip
    trainer.train()
    states = [state for state, _, _ in trainer.steps] + [trainer.model.state_dict()]
    empty = [number for number, (_, rows, _) in enumerate(trainer.steps) if not rows]
    # Steps with tokens before an empty one: Adam has a momentum that would move the weights.
    assert any(any(trainer.steps[earlier][1] for earlier in range(number)) for number in empty)
    for number in empty:
        for before, after in zip(states[number].values(), states[number + 1].values(), strict=True):
            assert torch.equal(before, after)
