"""`accuracy_reward` in trainers as they are: what they log is what was graded."""

import math

import pytest
from tiny import numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from trl import GRPOConfig, GRPOTrainer

from trl_dapo.rewards import AccuracyReward, accuracy_reward


def is_solution(completions, solution, **kwargs):
    """Whether the one generated word is the solution: what grading has to find out by algebra."""
    return [float(completion == gold) for completion, gold in zip(completions, solution, strict=True)]


@pytest.mark.parametrize(("reward", "scale", "shift"), [(accuracy_reward, 1.0, 0.0), (AccuracyReward(), 2.0, -1.0)])
def test_grpo_trainer_logs_what_was_graded(tmp_path, reward, scale: float, shift: float):
    data = numbered_prompts(40)
    data = data.add_column("solution", [f"w{row % 17}" for row in range(40)])
    arguments = training_arguments(tmp_path, max_completion_length=1, per_device_train_batch_size=32, max_steps=3)
    trainer = GRPOTrainer(
        model=tiny_model(),
        reward_funcs=[reward, is_solution],
        args=GRPOConfig(**arguments),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "rewards/accuracy_reward/mean" in entry]
    assert len(steps) == 3
    means = [entry["rewards/is_solution/mean"] for entry in steps]
    assert any(means)
    assert [entry["rewards/accuracy_reward/mean"] for entry in steps] == pytest.approx(
        [scale * mean + shift for mean in means]
    )
    for entry in steps:
        assert (
            entry["grading/frac_bad_gold"] == entry["grading/frac_gave_up"] == entry["grading/workers_restarted"] == 0
        )
        assert entry["grading/seconds"] > 0


def test_grpo_trainer_leaves_rows_with_a_bad_gold_out(tmp_path):
    data = numbered_prompts(40).add_column("solution", [r"\frac{1}{"] * 40)
    trainer = GRPOTrainer(
        model=tiny_model(),
        reward_funcs=[accuracy_reward, is_solution],
        args=GRPOConfig(**training_arguments(tmp_path, max_steps=1)),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "grading/frac_bad_gold" in entry]
    assert entry["grading/frac_bad_gold"] == 1.0
    mean = entry["rewards/accuracy_reward/mean"]
    assert mean is None or math.isnan(mean)  # nothing was scored
