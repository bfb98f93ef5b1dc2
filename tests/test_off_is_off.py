"""With everything of DAPO off, the trainer is TRL's `GRPOTrainer`, bit for bit."""

import pytest
import torch
import transformers
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from transformers import MixtralConfig, MixtralForCausalLM
from trl import GRPOConfig, GRPOTrainer

from trl_dapo import DAPOConfig, DAPOTrainer


OFF = {"dynamic_sampling": False, "soft_punish_cache": 0, "loss_normalization": "generation_batch"}


def run(trainer_class, args, model=None):
    trainer = trainer_class(
        model=model or tiny_model(),
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


def test_optimizer_steps_over_two_batches_equal_those_of_grpo_without_asking_for_its_denominator(tmp_path):
    shape = {"steps_per_generation": 3, "gradient_accumulation_steps": 2}
    arguments = training_arguments(tmp_path, max_steps=5, epsilon_high=0.28, **shape)
    ours = run(DAPOTrainer, DAPOConfig(**arguments, dynamic_sampling=False, soft_punish_cache=0))
    theirs = run(GRPOTrainer, GRPOConfig(**arguments))
    for mine, its in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_auxiliary_loss_of_experts_is_that_of_grpo(tmp_path):
    def tiny_experts():
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, initializer_range=0.2, output_router_logits=True, router_aux_loss_coef=0.1,
        )  # fmt: skip
        return MixtralForCausalLM(config)

    arguments = training_arguments(tmp_path, max_steps=3, epsilon_high=0.28, router_aux_loss_coef=0.1)
    try:
        theirs = run(GRPOTrainer, GRPOConfig(**arguments), tiny_experts())
    except RuntimeError as error:
        if "The size of tensor" not in str(error):
            raise
        pytest.skip(f"GRPOTrainer itself cannot train Mixtral with transformers {transformers.__version__}: {error}")
    # With one optimizer step a generation batch, exact normalization is TRL's.
    ours = run(DAPOTrainer, DAPOConfig(**arguments, dynamic_sampling=False, soft_punish_cache=0), tiny_experts())
    losses = [entry["aux_loss"] for entry in theirs.state.log_history if "aux_loss" in entry]
    assert len(losses) == 3
    assert [entry["aux_loss"] for entry in ours.state.log_history if "aux_loss" in entry] == losses
    for mine, its in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)
