"""With everything of DAPO off, the trainer is TRL's `GRPOTrainer`, bit for bit."""

import pytest
import torch
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from trl import GRPOConfig, GRPOTrainer

from trl_dapo import DAPOConfig, DAPOTrainer


OFF = {"dynamic_sampling": False, "soft_punish_cache": 0, "loss_normalization": "generation_batch"}


def run(trainer_class, args):
    trainer = trainer_class(
        model=tiny_model(),
        reward_funcs=first_token_reward,
        args=args,
        train_dataset=numbered_prompts(20),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"steps_per_generation": 4},
        {"gradient_accumulation_steps": 2},
        {"steps_per_generation": 2, "num_iterations": 2, "delta": 2.0, "entropy_coef": 0.01},
        # Without padding tokens among the sampled ones: TRL takes a completion that ends in one for finished.
        {
            "steps_per_generation": 2,
            "mask_truncated_completions": True,
            "generation_kwargs": {"suppress_tokens": [0]},
        },
    ],
    ids=str,
)
def test_losses_and_parameters_equal_those_of_grpo(tmp_path, shape):
    arguments = training_arguments(tmp_path, max_steps=5, epsilon_high=0.28, **shape)
    ours = run(DAPOTrainer, DAPOConfig(**arguments, **OFF))
    theirs = run(GRPOTrainer, GRPOConfig(**arguments))
    for mine, its in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    for mine, its in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        timing = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
        # Ours logs more, below `dapo/`.
        assert {k: v for k, v in mine.items() if k not in timing and not k.startswith("dapo/")} == {
            k: v for k, v in its.items() if k not in timing
        }
