"""The same rollouts take the same step, whatever the batch is cut into: compared with float64 loops, and with each other."""

import pytest
import torch
from paper import gradient_error, paper_gradient
from test_distributed import run
from tiny import numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from two_ranks import ScriptedSteps, correct

from trl_dapo import DAPOConfig


SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
# Micro-batch and accumulation: 16 completions an optimizer step.
SPLITS = [(16, 1), (8, 2), (4, 4), (1, 16)]


def train(folder, micro_batch, accumulation, num_updates, **overrides):
    options = {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * num_updates,
        "max_steps": 2 * num_updates,
        "max_generation_rounds": 30,
    } | overrides
    trainer = ScriptedSteps(
        model=tiny_model(),
        reward_funcs=correct,
        args=DAPOConfig(**training_arguments(folder, **SGD, **options)),
        train_dataset=numbered_prompts(61),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return trainer


def gradient_errors(steps, by_group):
    return [gradient_error(gradient, paper_gradient(before, rows, by_group)) for before, rows, gradient in steps]


def steps_of_two_ranks(folder, **options):
    """Returns the optimizer steps of a run on two ranks: each trains the rows of both."""
    run(folder, 2, record_steps=True, max_generation_rounds=30, **options, **SGD)
    ranks = [torch.load(folder / f"steps{rank}.pt", weights_only=True) for rank in range(2)]
    return [(mine[0], [*mine[1], *other[1]], mine[2]) for mine, other in zip(*ranks, strict=True)]


@pytest.mark.supports("accumulation")
@pytest.mark.parametrize("normalization", ["batch", "group"])
@pytest.mark.parametrize("num_updates", [1, 3])
def test_micro_batches_do_not_change_the_steps(tmp_path, num_updates, normalization):
    parameters = []
    for micro_batch, accumulation in SPLITS:
        trainer = train(tmp_path, micro_batch, accumulation, num_updates, loss_normalization=normalization)
        errors = gradient_errors(trainer.steps, by_group=normalization == "group")
        assert len(errors) == 2 * num_updates
        assert max(errors) < 1e-5
        parameters.append([parameter.detach() for parameter in trainer.model.parameters()])
    for split in parameters[1:]:
        for whole, cut in zip(parameters[0], split, strict=True):
            torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_two_ranks_take_the_steps_of_the_paper(tmp_path, normalization):
    steps = steps_of_two_ranks(
        tmp_path / "two",
        loss_normalization=normalization,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        steps_per_generation=8,
        max_steps=4,
    )
    assert [len(rows) for _, rows, _ in steps] == [16] * 4
    assert max(gradient_errors(steps, by_group=normalization == "group")) < 1e-5


@pytest.mark.distributed
def test_groups_that_straddle_ranks_count_once(tmp_path):
    # 6 rows on each rank hold one and a half groups of 4.
    steps = steps_of_two_ranks(
        tmp_path / "two", loss_normalization="group", per_device_train_batch_size=6, max_steps=2
    )
    assert max(gradient_errors(steps, by_group=True)) < 1e-5


def test_epoch_whose_last_batch_is_dropped_leaves_no_part_of_a_step(tmp_path):
    # 61 prompts are 7 generation batches of 8 prompts and a tail; accumulation windows stay whole over epochs.
    trainer = train(tmp_path, 8, 2, 2, max_steps=-1, num_train_epochs=2)
    assert trainer.state.global_step == 2 * 7 * 2
    assert all(len(rows) == 16 for _, rows, _ in trainer.steps)
    assert max(gradient_errors(trainer.steps, by_group=False)) < 1e-5
