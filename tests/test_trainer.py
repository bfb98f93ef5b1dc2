"""The real trainer on a real, tiny model: what dynamic sampling promises, on one rank."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer, RefillExhaustedError, TrainingStoppedError
from trl_dapo.publishing.facts import RunFacts
from trl_dapo.refill.assembly import GenerationBatch
from trl_dapo.sampling.prompt_stream import PromptStream
from trl_dapo.trl_seams import as_list


class RecordingTrainer(DAPOTrainer):
    """Keeps what was sampled and what was trained, as TRL saw them."""

    def __init__(self, *args, **kwargs):
        self.sampled_rounds = []
        self.batches = []
        self.trained_record = None
        super().__init__(*args, **kwargs)
        compute = self.reward_calls.compute

        def compute_and_record(inputs, prompts, completions, completion_ids):
            rewards = compute(inputs, prompts, completions, completion_ids)
            self.sampled_rounds.append(
                ([row["row"] for row in inputs], rewards.tolist(), [*map(as_list, completion_ids)])
            )
            return rewards

        self.reward_calls.compute = compute_and_record

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if isinstance(self._batch, GenerationBatch):
            ids = [*map(as_list, completion_ids_list)]
            self.trained_record = [row["row"] for row in inputs], rewards.tolist(), ids
        return rewards

    def _generate_and_score_completions(self, inputs):
        self.sampled_rounds = []
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.batches.append((self.sampled_rounds, self.trained_record, output))
        return output


def make_trainer(tmp_path, reward_funcs=first_token_reward, num_rows=50, cls=RecordingTrainer, **overrides):
    extras = {name: overrides.pop(name) for name in ("eval_dataset", "peft_config", "callbacks") if name in overrides}
    return cls(
        model=tiny_model(),
        reward_funcs=reward_funcs,
        args=DAPOConfig(**training_arguments(tmp_path, **overrides)),
        train_dataset=numbered_prompts(num_rows),
        processing_class=tiny_tokenizer(),
        **extras,
    )


def rare_reward(completion_ids, **kwargs):
    """1 for about one completion in twenty."""
    return [float(ids[0] == 4) for ids in completion_ids]


def all_wrong(completion_ids, **kwargs):
    return [0.0] * len(completion_ids)


def all_correct(completion_ids, **kwargs):
    return [1.0] * len(completion_ids)


@pytest.mark.supports("dataset")
@pytest.mark.parametrize("reward", [first_token_reward, rare_reward])
def test_batch_is_full_of_mixed_groups_in_stream_order(tmp_path, reward):
    trainer = make_trainer(tmp_path, reward, max_steps=8, steps_per_generation=2, max_generation_rounds=50)
    trainer.train()
    assert len(trainer.batches) == 4
    stream = [draw.index for draw in PromptStream(50, seed=7).peek(5000)]
    cursor = 0
    for rounds, (trained_rows, trained_rewards, trained_ids), _ in trainer.batches:
        # Every round continues the stream where the one before stopped.
        sampled_rows = [row for rows, _, _ in rounds for row in rows[::4]]
        assert sampled_rows == stream[cursor : cursor + len(sampled_rows)]
        rewards = [reward[0] for _, matrix, _ in rounds for reward in matrix]
        ids = [completion for _, _, completions in rounds for completion in completions]
        mixed = [g for g in range(len(sampled_rows)) if 0 < sum(rewards[4 * g : 4 * g + 4]) < 4][:4]
        assert len(mixed) == 4
        assert trained_rows[::4] == [sampled_rows[g] for g in mixed]
        assert trained_ids == [completion for g in mixed for completion in ids[4 * g : 4 * g + 4]]
        assert [r[0] for r in trained_rewards] == [r for g in mixed for r in rewards[4 * g : 4 * g + 4]]
        cursor += mixed[-1] + 1


def test_advantages_are_those_of_the_paper(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, soft_punish_cache=4, overlong_penalty_factor=0.5)
    trainer.train()
    for _, (_, rewards, completion_ids), output in trainer.batches:
        expected = []
        for start in range(0, len(rewards), 4):
            # L_max = 8, L_cache = 4: 0 up to 4 tokens, then -1/8 a token down to -1/2.
            totals = [
                rewards[row][0] + 0.5 * -max(0, len(completion_ids[row]) - 4) / 4 for row in range(start, start + 4)
            ]
            expected += list((np.array(totals) - np.mean(totals)) / (np.std(totals, ddof=1) + 1e-4))
        np.testing.assert_allclose(output["advantages"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_old_logps_are_those_of_the_policy_that_sampled(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, steps_per_generation=2, learning_rate=0.0)
    trainer.train()
    output = trainer.batches[0][2]
    input_ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = tiny_model()(input_ids=input_ids, attention_mask=mask).logits.double()
    width = output["completion_ids"].shape[1]
    logps = logits[:, -width - 1 : -1].log_softmax(-1).gather(2, output["completion_ids"].unsqueeze(2)).squeeze(2)
    live = output["completion_mask"].bool()
    torch.testing.assert_close(output["old_per_token_logps"][live].double(), logps[live], rtol=1e-4, atol=1e-5)


def test_penalty_never_makes_a_group_informative(tmp_path):
    # Lengths differ inside every group, and so does the shaped sum; correctness never does.
    trainer = make_trainer(tmp_path, all_wrong, max_steps=1, max_generation_rounds=2, soft_punish_cache=8)
    trainer.train()
    rounds = trainer.batches[0][0]
    penalties = np.array([reward[1] for _, matrix, _ in rounds for reward in matrix])
    assert penalties.std() > 0.1
    logs = trainer.state.log_history[0]
    assert logs["dapo/acceptance_rate"] == 0.0
    assert logs["dapo/frac_all_wrong"] == 1.0


@pytest.mark.parametrize(
    ("reward", "share"), [(all_wrong, "dapo/frac_all_wrong"), (all_correct, "dapo/frac_all_correct")]
)
def test_nothing_to_learn_leaves_weights_and_optimizer_alone(tmp_path, reward, share):
    trainer = make_trainer(tmp_path, reward, max_steps=3, max_generation_rounds=2, weight_decay=0.1)
    trainer.train()
    for before, after in zip(tiny_model().parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(before, after)
    assert not trainer.optimizer.state_dict()["state"]
    logs = [entry for entry in trainer.state.log_history if share in entry]
    assert [entry[share] for entry in logs] == [1.0] * 3
    assert [entry["dapo/exhausted"] for entry in logs] == [1.0] * 3


@pytest.mark.parametrize("reward", [all_wrong, all_correct])
def test_run_with_nothing_to_learn_stops_with_a_diagnosis_and_a_checkpoint(tmp_path, reward):
    trainer = make_trainer(tmp_path, reward, max_steps=50, max_generation_rounds=2)
    with pytest.raises(TrainingStoppedError, match=r"stopped at step 5 of 50") as stopped:
        trainer.train()
    assert trainer.state.global_step == 5
    assert (tmp_path / "checkpoint-5").is_dir()
    assert "5 consecutive generation batches had no informative group" in str(stopped.value)
    assert ("easier prompts" if reward is all_wrong else "harder prompts") in str(stopped.value)
    # More rounds of the same would not have helped: no group was informative.
    assert "max_generation_rounds" not in str(stopped.value)
    facts = RunFacts.read(tmp_path)
    assert facts.stop_reason == stopped.value.reason
    assert "Training was stopped before its end" in (tmp_path / "README.md").read_text()


def test_rounds_by_expected_time_fill_the_batch(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=6, refill_confidence=None)
    trainer.train()
    assert trainer.dynamic_sampler.last_plan.expected_seconds > 0
    for _, (_, rewards, _), _ in trainer.batches:
        assert all(0 < sum(reward[0] for reward in rewards[start : start + 4]) < 4 for start in (0, 4))


def test_partial_batch_trains_what_was_found_and_nothing_else(tmp_path, caplog):
    trainer = make_trainer(tmp_path, rare_reward, max_steps=3, steps_per_generation=2, max_generation_rounds=1,
                           max_prompts_per_round=4)  # fmt: skip
    trainer.train()
    partial = [batch for batch in trainer.batches if 0 < batch[2]["completion_mask"].any(dim=1).sum() < 16]
    assert partial, "the seed no longer gives a partial batch"
    for _, (_, rewards, completion_ids), output in partial:
        is_live = output["completion_mask"].any(dim=1)
        is_found = torch.tensor([not math.isnan(reward[0]) for reward in rewards])
        assert torch.equal(is_live, is_found)
        assert (output["advantages"][~is_live] == 0).all()
        num_live_tokens = sum(len(ids) for ids, live in zip(completion_ids, is_live, strict=True) if live)
        assert output["num_items_in_batch"].item() == num_live_tokens
    assert caplog.text.count("informative groups after 1 generation round ") == 1


def test_exhaustion_raises_with_the_counts(tmp_path):
    trainer = make_trainer(tmp_path, all_wrong, on_exhausted="error", max_generation_rounds=3)
    with pytest.raises(RefillExhaustedError, match="0 of 2 informative groups after 3 generation rounds") as caught:
        trainer.train()
    assert caught.value.verdict_counts["all_wrong"] == sum(caught.value.verdict_counts.values()) > 0


def test_evaluation_is_unshaped_and_samples_every_problem_once(tmp_path):
    graded = []

    def counting_reward(completion_ids, row, **kwargs):
        graded.extend(row)
        return first_token_reward(completion_ids)

    trainer = make_trainer(
        tmp_path, counting_reward, eval_dataset=numbered_prompts(6), per_device_eval_batch_size=8, soft_punish_cache=8
    )
    metrics = trainer.evaluate()
    assert sorted(graded) == sorted(list(range(6)) * 4)
    assert metrics["eval_reward"] == pytest.approx(metrics["eval_rewards/counting_reward/mean"])
    assert not any("overlong" in name for name in metrics)
    assert not any("dapo/" in name for name in metrics)


def test_filter_reward_is_taken_by_name(tmp_path):
    trainer = make_trainer(tmp_path, [all_wrong, first_token_reward], filter_reward="first_token_reward", max_steps=2)
    trainer.train()
    for _, (_, rewards, _), _ in trainer.batches:
        for start in range(0, len(rewards), 4):
            assert len({reward[1] for reward in rewards[start : start + 4]}) == 2


@pytest.mark.supports("rewards")
def test_async_weighted_and_unscorable_rewards_work_as_in_trl(tmp_path):
    async def async_reward(completion_ids, **kwargs):
        return [None if ids[0] == 5 else 0.25 for ids in completion_ids]

    trainer = make_trainer(
        tmp_path, [first_token_reward, async_reward], reward_weights=[1.0, 2.0], max_steps=2, soft_punish_cache=0
    )
    trainer.train()
    for _, (_, _rewards, completion_ids), output in trainer.batches:
        totals = np.array(
            [float(ids[0] % 2 == 0) + 2.0 * (0.0 if ids[0] == 5 else 0.25) for ids in completion_ids]
        ).reshape(-1, 4)
        expected = (totals - totals.mean(1, keepdims=True)) / (totals.std(1, ddof=1, keepdims=True) + 1e-4)
        np.testing.assert_allclose(output["advantages"].numpy(), expected.ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_dynamic", [True, False])
def test_reward_function_that_cuts_its_completions_changes_neither_tokens_nor_punishment(tmp_path, is_dynamic):
    def cutting(completion_ids, **kwargs):
        rewards = first_token_reward(completion_ids)
        for ids in completion_ids:
            ids.clear()
        del completion_ids[1:]
        return rewards

    async def length(completion_ids, **kwargs):
        return [float(len(ids)) for ids in completion_ids]

    def reading(completion_ids, **kwargs):
        return first_token_reward(completion_ids)

    weights, logged = [], []
    for reward in (reading, cutting):
        trainer = make_trainer(
            tmp_path, [reward, length], dynamic_sampling=is_dynamic, reward_weights=[1.0, 0.1], max_steps=3
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
        lines = [line for line in trainer.state.log_history if "reward" in line]
        logged.append([(line["rewards/soft_overlong_punishment/mean"], line["rewards/length/mean"]) for line in lines])
    assert logged[0] == logged[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("log_completions", [True, False])
def test_texts_live_until_they_are_graded_and_shown(tmp_path, log_completions):
    seen = {}

    def reward(completions, completion_ids, **kwargs):
        assert type(completion_ids) is list
        assert {type(ids) for ids in completion_ids} == {list}
        seen.update(zip(map(tuple, completion_ids), completions, strict=True))
        return first_token_reward(completion_ids)

    trainer = make_trainer(tmp_path, reward, max_steps=2, log_completions=log_completions, num_groups_to_log=50)
    batches, collect = [], trainer.dynamic_sampler.collect
    trainer.dynamic_sampler.collect = lambda *args: batches.append(collect(*args)) or batches[-1]
    trainer.train()
    rollouts = [rollout for batch in batches for rollout in batch.rollouts]
    assert [rollout.completion for rollout in rollouts] == [None] * 16
    texts = [seen[tuple(rollout.completion_ids.tolist())] for rollout in rollouts]
    # TRL 1.14 decodes what it trains by itself, whoever reads it.
    expected = [texts[8:]] if log_completions else [texts[8:], [None] * 8]
    assert list(trainer._logs["completion"]) in expected
    # The record was shown them, those of groups that did not train too.
    recorded = pd.read_parquet(tmp_path / "rollouts")["completion"].tolist()
    assert len(recorded) > 16
    assert sorted(recorded) == sorted(
        seen[tuple(ids)] for rounds, _, _ in trainer.batches for _, _, all_ids in rounds for ids in all_ids
    )


def test_prompts_that_nobody_can_score_are_skipped_counted_and_reported_once(tmp_path, caplog):
    def odd_rows_only(completion_ids, row, **kwargs):
        return [None if number % 2 else r for number, r in zip(row, first_token_reward(completion_ids), strict=True)]

    trainer = make_trainer(tmp_path, odd_rows_only, max_steps=4)
    trainer.train()
    assert all(row % 2 == 0 for _, (rows, _, _), _ in trainer.batches for row in rows)
    assert any(entry.get("dapo/frac_unscorable", 0) > 0 for entry in trainer.state.log_history)
    assert caplog.text.count("got a reward: the gold answer could not be read") == 1


def test_logged_columns_stay_with_their_completions(tmp_path):
    def logging_reward(completion_ids, row, log_extra, log_metric, **kwargs):
        log_extra("row_seen", list(row))
        log_extra("ids_seen", [str(ids) for ids in completion_ids])
        log_metric("my_metric", 3.0)
        return first_token_reward(completion_ids)

    trainer = make_trainer(tmp_path, logging_reward, max_steps=3, log_completions=True)
    trainer.train()
    tokenizer = tiny_tokenizer()
    tables = sorted((tmp_path / "completions").glob("*.parquet"))
    assert len(tables) == 3
    for table in map(pd.read_parquet, tables):
        assert len(table) == 8
        for _, entry in table.iterrows():
            assert entry["prompt"] == f"w{entry['row_seen'] % 17} w{entry['row_seen'] // 17 % 17}"
            assert entry["completion"] == tokenizer.decode(json.loads(entry["ids_seen"]), skip_special_tokens=True)
    assert trainer.state.log_history[0]["my_metric"] == 3.0


def test_generation_never_holds_more_rows_than_trl_would(tmp_path):
    trainer = make_trainer(tmp_path, rare_reward, max_steps=1, max_generation_rounds=3)
    sizes = []
    generate = trainer.model.generate
    trainer.model.generate = lambda *args, **kwargs: (
        sizes.append(len(kwargs["input_ids"])) or generate(*args, **kwargs)
    )
    trainer.train()
    assert max(sizes) <= 8
    assert sum(sizes) == 4 * trainer.state.log_history[0]["dapo/prompts_drawn"]


def test_length_metrics_describe_every_sampled_completion(tmp_path):
    trainer = make_trainer(tmp_path, rare_reward, max_steps=1, max_generation_rounds=5)
    trainer.train()
    lengths = [len(ids) for _, _, completions in trainer.batches[0][0] for ids in completions]
    logs = trainer.state.log_history[0]
    assert logs["completions/mean_length"] == pytest.approx(np.mean(lengths))
    assert logs["completions/min_length"] == min(lengths)
    assert logs["dapo/overlong/frac"] == pytest.approx(np.mean([length > 8 - 1 for length in lengths]))


def test_resumed_run_goes_on_in_the_stream(tmp_path):
    straight = make_trainer(tmp_path / "a", max_steps=4, save_strategy="steps", save_steps=2)
    straight.train()
    resumed = make_trainer(tmp_path / "a", max_steps=4, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert len(resumed.batches) == 2
    first_draw = straight.batches[2][0][0][0][0]
    assert resumed.batches[0][0][0][0][0] == first_draw


@pytest.mark.supports("lora")
def test_lora_trains_the_adapter_only(tmp_path):
    from peft import LoraConfig

    trainer = make_trainer(tmp_path, max_steps=2, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora" in name for name in moved)


def test_model_card_says_dapo_and_cites_it(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    card = Path(tmp_path / "README.md").read_text()
    assert "trained with [DAPO]" in card
    assert "2503.14476" in card
    assert "- dapo" in card
    assert "yu2025dapo" in card
