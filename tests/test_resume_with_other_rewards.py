"""A resume with other rewards puts no value of an old reward under the name of a new one."""

import pytest
from test_resume import CARRY, make_trainer
from tiny import first_token_reward


def second_token_reward(completion_ids, **kwargs):
    """Never within the range of the other, so that each value tells whose it is."""
    return [10.0 + len(ids) for ids in completion_ids]


def carrying(folder, reward_funcs, **overrides):
    return make_trainer(folder, reward_funcs=reward_funcs, save_steps=2, **CARRY | overrides)


def rewards_by_name(trainer):
    """The values of each reward in all batches that were trained."""
    names = trainer.punishment.names
    rows = [row for _, (_, rewards, _), _ in trainer.batches for row in rewards]
    return {name: {row[column] for row in rows} for column, name in enumerate(names)}


@pytest.mark.parametrize("filter_reward", ["first_token_reward", None])
def test_reordered_rewards_do_not_inherit_the_values_of_carried_groups(tmp_path, filter_reward, caplog):
    straight = carrying(tmp_path, [first_token_reward, second_token_reward])
    straight.train()
    order = [second_token_reward, first_token_reward]
    resumed = carrying(tmp_path, order, filter_reward=filter_reward)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    values = rewards_by_name(resumed)
    assert values["first_token_reward"] <= {0.0, 1.0}
    assert min(values["second_token_reward"]) > 10.0
    assert "The run resumes with another layout (reward_names from ['first_token_reward', 'second_token_reward'" in (
        caplog.text
    )
    assert "carried groups are sampled again" in caplog.text


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"filter_reward": "second_token_reward"}, "filter_reward"),
        ({"filter_range": (0.1, 0.9)}, "filter_range"),
        ({"soft_punish_cache": 4}, "soft_overlong_punishment"),
        ({"soft_punish_cache": 0}, "reward_names"),
    ],
)
def test_carried_groups_are_sampled_again_where_their_verdict_or_reward_would_differ(tmp_path, changed, name, caplog):
    rewards = [first_token_reward, second_token_reward]
    straight = carrying(tmp_path, rewards, max_steps=2)
    straight.train()
    assert straight.dynamic_sampler.carried_state_dict()["groups"]
    resumed = carrying(tmp_path, rewards, **changed)
    resumed.run_state.load(str(tmp_path / "checkpoint-2"))
    assert not resumed.dynamic_sampler.carried_state_dict()["groups"]
    assert f"{name} from " in caplog.text


def test_same_rewards_keep_carried_groups(tmp_path, caplog):
    rewards = [first_token_reward, second_token_reward]
    straight = carrying(tmp_path, rewards, max_steps=2)
    straight.train()
    resumed = carrying(tmp_path, rewards)
    assert resumed.run_state.load(str(tmp_path / "checkpoint-2"))
    assert resumed.dynamic_sampler.carried_state_dict()["groups"]
    assert "another layout" not in caplog.text
