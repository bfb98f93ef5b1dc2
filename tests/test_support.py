"""What TRL's trainer can be combined with, with dynamic sampling: each against a value computed another way."""

import pytest
import torch
from test_trainer import RecordingTrainer, make_trainer
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from transformers import LlamaConfig, LlamaForSequenceClassification

from trl_dapo import DAPOConfig


@pytest.mark.supports("checkpointing")
def test_layers_that_are_computed_twice_give_the_same_weights(tmp_path):
    options = {"max_steps": 3, "steps_per_generation": 2, "surplus": "carry"}
    calls, weights = [0, 0], []
    for number, is_checkpointed in enumerate([False, True]):
        trainer = make_trainer(tmp_path, gradient_checkpointing=is_checkpointed, **options)

        def count(*_, number=number):
            # Those that are computed for a gradient: sampling and scoring keep none.
            calls[number] += torch.is_grad_enabled()

        trainer.model.model.layers[0].mlp.register_forward_pre_hook(count)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert calls[1] == 2 * calls[0] > 0
    for mine, its in zip(*(state.values() for state in weights), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)


@pytest.mark.supports("reward_model")
def test_reward_model_scores_each_completion_and_the_function_beside_it_filters(tmp_path):
    torch.manual_seed(1)
    reward_model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, pad_token_id=0, num_labels=1, initializer_range=0.5, name_or_path="me/judge",
        )
    )  # fmt: skip
    tokenizer = tiny_tokenizer()
    trainer = RecordingTrainer(
        model=tiny_model(),
        reward_funcs=[first_token_reward, reward_model],
        reward_processing_classes=[None, tiny_tokenizer()],
        args=DAPOConfig(**training_arguments(tmp_path, max_steps=2, soft_punish_cache=0, reward_weights=[1.0, 0.5])),
        train_dataset=numbered_prompts(50),
        processing_class=tokenizer,
    )
    trainer.train()
    reward_model.eval()
    texts = numbered_prompts(50)["prompt"]
    for _, (rows, rewards, completion_ids), output in trainer.batches:
        scores = []
        for row, ids in zip(rows, completion_ids, strict=True):
            # As TRL reads it: the two texts, one after the other, without special tokens.
            text = texts[row] + tokenizer.decode(ids, skip_special_tokens=True)
            with torch.no_grad():
                scores.append(reward_model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item())
        assert [reward[1] for reward in rewards] == pytest.approx(scores, rel=1e-4, abs=1e-5)
        firsts = torch.tensor(first_token_reward(completion_ids)).view(-1, 4)
        assert ((firsts.sum(dim=1) > 0) & (firsts.sum(dim=1) < 4)).all()
        totals = firsts + 0.5 * torch.tensor(scores).view(-1, 4)
        expected = (totals - totals.mean(dim=1, keepdim=True)) / (totals.std(dim=1, keepdim=True) + 1e-4)
        torch.testing.assert_close(output["advantages"], expected.flatten(), rtol=1e-3, atol=1e-4)


@pytest.mark.supports("eval_sets")
def test_each_of_several_evaluation_sets_has_the_figures_of_an_evaluation_of_its_own(tmp_path):
    sets = {"small": numbered_prompts(2), "large": numbered_prompts(6)}
    options = {"per_device_eval_batch_size": 8, "generation_kwargs": {"do_sample": False}}
    trainer = make_trainer(tmp_path, eval_dataset=sets, **options)
    together = trainer.evaluate()
    for name, dataset in sets.items():
        alone = make_trainer(tmp_path, eval_dataset=dataset, **options)
        metrics = alone.evaluate()
        for figure in ("avg@4", "pass@4"):
            assert together[f"eval_{name}_{figure}"] == pytest.approx(metrics[f"eval_{figure}"])
        # TRL's own figures have a log line for each set, and no name in it.
        (line,) = [entry for entry in trainer.state.log_history if f"eval_{name}_avg@4" in entry]
        for figure in ("eval_reward", "eval_entropy", "eval_completions/mean_length"):
            assert line[figure] == pytest.approx(alone.state.log_history[0][figure])


@pytest.mark.supports("continuous_batching")
def test_continuous_batching_trains_mixed_groups_with_the_completions_of_their_prompts(tmp_path):
    # Greedy, so that a completion shows which prompt it belongs to; mixed by its place in the group.
    def by_place(completion_ids, **kwargs):
        return [float(place % 2) for place in range(len(completion_ids))]

    trainer = make_trainer(
        tmp_path, by_place, use_transformers_continuous_batching=True, max_steps=1, num_rows=20,
        transformers_continuous_batching_config={"block_size": 16, "num_blocks": 64, "max_batch_tokens": 64},
        generation_kwargs={"do_sample": False},
    )  # fmt: skip
    trainer.train()
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = numbered_prompts(20)["prompt"]
    (_, (rows, _, completion_ids), _) = trainer.batches[0]
    for row, ids in zip(rows, completion_ids, strict=True):
        prompt = tokenizer(prompts[row], return_tensors="pt")
        greedy = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert ids == greedy.tolist()
    assert len(rows) == 8
