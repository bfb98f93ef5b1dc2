"""What has no value is not logged: neither as None nor as the 0 of an empty mean."""

import math

import pytest
from test_trainer import all_wrong, make_trainer, rare_reward
from tiny import numbered_prompts
from transformers import TrainerCallback


# Means over trained rows or tokens, of which an empty batch has none.
OF_TRAINED = {"reward", "reward_std", "frac_reward_zero_std", "entropy", "clip_ratio/low_mean", "kl"}


def unscorable(completion_ids, **kwargs):
    return [None] * len(completion_ids)


@pytest.mark.parametrize("reward", [unscorable, all_wrong])
@pytest.mark.parametrize("options", [{}, {"steps_per_generation": 2}])
def test_empty_batch_logs_nothing_of_what_it_did_not_train(tmp_path, reward, options):
    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = make_trainer(tmp_path, reward, max_steps=2, max_generation_rounds=2, callbacks=[Watch()], **options)
    trainer.train()
    assert len(seen) == 3
    for logs in seen:
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in logs.values())
        assert not OF_TRAINED & logs.keys()
        assert not any(name.startswith("rewards/") for name in logs)
    # What was sampled is logged all the same.
    assert seen[0]["completions/mean_length"] > 0


def test_line_over_an_empty_and_a_full_batch_has_the_values_of_the_full_one(tmp_path):
    calls = []

    def from_the_third_round_on(completion_ids, **kwargs):
        calls.append(len(completion_ids))
        return rare_reward(completion_ids) if len(calls) > 2 else unscorable(completion_ids)

    options = {"max_generation_rounds": 2, "max_prompts_per_round": 60, "num_generations": 8, "learning_rate": 0.0}
    trainer = make_trainer(tmp_path, from_the_third_round_on, max_steps=2, logging_steps=2, **options)
    trainer.train()
    (logs,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    output = trainer.batches[1][2]
    assert output["completion_mask"].any(dim=1).all()
    assert not trainer.batches[0][2]["completion_mask"].any()
    rewards = [row[0] for row in trainer.batches[1][1][1]]
    assert logs["rewards/from_the_third_round_on/mean"] == pytest.approx(sum(rewards) / len(rewards))
    assert logs["entropy"] == pytest.approx(logs["dapo/entropy"], rel=1e-4)


def test_groups_that_were_not_found_are_not_counted_as_groups_with_a_spread(tmp_path):
    def opposite(completion_ids, **kwargs):
        return [-reward for reward in rare_reward(completion_ids)]

    # The sum is 0 in every group, and the filter reward is not.
    trainer = make_trainer(
        tmp_path, [rare_reward, opposite], max_steps=6, steps_per_generation=2, max_generation_rounds=1,
        max_prompts_per_round=4, soft_punish_cache=0,
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if entry.get("dapo/exhausted") == 1.0]
    shares = [entry["frac_reward_zero_std"] for entry in logs if "frac_reward_zero_std" in entry]
    assert shares
    assert shares == [1.0] * len(shares)


def test_lengths_of_completions_that_ended_need_one_that_did(tmp_path):
    options = {"max_completion_length": 1, "soft_punish_cache": 0, "generation_kwargs": {"suppress_tokens": [2]}}
    trainer = make_trainer(tmp_path, max_steps=1, **options)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["completions/clipped_ratio"] == 1.0
    assert not any("terminated" in name for name in logs)


def test_evaluation_without_a_value_logs_none_of_it(tmp_path):
    trainer = make_trainer(tmp_path, unscorable, eval_dataset=numbered_prompts(4), per_device_eval_batch_size=8)
    metrics = trainer.evaluate()
    assert all(isinstance(value, int | float) for value in trainer.state.log_history[-1].values())
    assert "eval_reward" not in metrics
    assert "eval_frac_reward_zero_std" not in metrics
