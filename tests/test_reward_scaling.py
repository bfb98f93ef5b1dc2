"""Advantages that are scaled over the generation batch: the statistics are those of the groups that train."""

import math

import numpy as np
import pytest
from test_trainer import make_trainer, rare_reward
from tiny import first_token_reward


def even_tokens(completion_ids, **kwargs):
    """The share of even tokens."""
    return [np.mean([token % 2 == 0 for token in ids]) for ids in completion_ids]


def scaled_over_batch(rewards, weights):
    """(R - mean of the group) / std of the batch."""
    total = rewards @ weights
    groups = total.reshape(-1, 4)
    return ((groups - groups.mean(axis=1, keepdims=True)) / (total.std(ddof=1) + 1e-4)).ravel()


def normalized_then_summed(rewards, weights):
    """Each reward normalized in its group; their sum normalized over the batch."""
    groups = rewards.reshape(-1, 4, rewards.shape[1])
    each = (groups - groups.mean(axis=1, keepdims=True)) / (groups.std(axis=1, ddof=1, keepdims=True) + 1e-4)
    total = each.reshape(rewards.shape) @ weights
    return (total - total.mean()) / (total.std(ddof=1) + 1e-4)


SCALINGS = [
    ({"scale_rewards": "batch"}, scaled_over_batch),
    ({"multi_objective_aggregation": "normalize_then_sum"}, normalized_then_summed),
]


@pytest.mark.supports("scale_batch")
@pytest.mark.supports("normalize_then_sum")
@pytest.mark.parametrize(("options", "expected"), SCALINGS)
@pytest.mark.parametrize("surplus", ["requeue", "carry"])
def test_advantages_are_scaled_by_the_batch_that_trains(tmp_path, options, expected, surplus):
    options = {"steps_per_generation": 4, "soft_punish_cache": 4, "reward_weights": [1.0, 0.3], **options}
    trainer = make_trainer(tmp_path, [first_token_reward, even_tokens], surplus=surplus, **options)
    trainer.train()
    weights = np.array([1.0, 0.3, 1.0])  # The last one is the punishment's.
    for _, (_, rewards, _), output in trainer.batches:
        assert np.shape(rewards) == (32, 3)
        np.testing.assert_allclose(output["advantages"], expected(np.array(rewards), weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("options", "expected"), SCALINGS)
def test_rows_that_stand_in_for_missing_groups_are_not_in_the_statistics(tmp_path, options, expected):
    shape = {"steps_per_generation": 4, "soft_punish_cache": 4, "max_generation_rounds": 1, "max_steps": 12}
    trainer = make_trainer(tmp_path, rare_reward, **shape, **options)
    trainer.train()
    num_found = []
    for _, (_, rewards, _), output in trainer.batches:
        is_found = ~np.isnan(rewards).all(axis=1)
        num_found.append(int(is_found.sum()))
        found = np.array(rewards)[is_found]
        advantages = output["advantages"].numpy()
        np.testing.assert_allclose(advantages[is_found], expected(found, np.ones(2)), rtol=1e-4, atol=1e-5)
        assert not advantages[~is_found].any()
        assert not output["completion_mask"][~is_found].any()
    assert any(0 < number < 32 for number in num_found)
    logged = [entry["frac_reward_zero_std"] for entry in trainer.state.log_history if "frac_reward_zero_std" in entry]
    assert all(value == 0.0 or math.isnan(value) for value in logged)
