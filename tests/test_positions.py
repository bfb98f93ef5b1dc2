"""Padded prompts of models that learn an embedding of each position: scored at the positions at which they were sampled."""

import pytest
import torch
from datasets import Dataset
from tiny import first_token_reward, tiny_tokenizer, training_arguments
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

from trl_dapo import DAPOConfig, DAPOTrainer


SIZE = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.5}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=16, n_layer=2, n_head=2, **SIZE))


def gpt_neo():
    config = GPTNeoConfig(
        max_position_embeddings=64,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global"], 2]],
        **SIZE,
    )
    return GPTNeoForCausalLM(config)


@pytest.mark.parametrize("make_model", [gpt2, gpt_neo])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_padded_prompt_is_scored_as_if_it_were_alone(tmp_path, make_model, beta):
    torch.manual_seed(0)
    batches = []

    class Keeping(DAPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batches.append(super()._generate_and_score_completions(inputs))
            return batches[-1]

    # TRL reads the reference model from the same folder.
    make_model().save_pretrained(tmp_path / "model")
    prompts = ["w1 " * (1 + row % 6) for row in range(24)]
    options = {"steps_per_generation": 2, "max_steps": 2, "learning_rate": 0.0, "beta": beta}
    options |= {"per_device_train_batch_size": 16}
    trainer = Keeping(
        model=str(tmp_path / "model"),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path, **options)),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    (batch,) = batches
    assert (batch["prompt_mask"] == 0).any()
    for row in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.cat([prompt, completion]).unsqueeze(0)).logits[
                0, len(prompt) - 1 : -1
            ]
        alone = logits.log_softmax(-1).gather(1, completion.unsqueeze(1)).squeeze(1)
        for column in ["old_per_token_logps"] + ["ref_per_token_logps"] * (beta > 0):
            torch.testing.assert_close(batch[column][row, : len(completion)], alone, rtol=1e-4, atol=1e-4)
