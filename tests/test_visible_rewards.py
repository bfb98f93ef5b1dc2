"""The reward functions that a trainer shows are those of the caller; the punishment is a column beside them."""

import math

import pytest
import torch
from test_trainer import make_trainer
from tiny import first_token_reward
from trl.rewards import get_soft_overlong_punishment


OFF = {"dynamic_sampling": False}


def no_reward(completion_ids, **kwargs):
    return [None] * len(completion_ids)


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
def test_lists_of_a_trainer_hold_the_functions_of_the_caller_alone(tmp_path, options):
    trainer = make_trainer(tmp_path, first_token_reward, max_steps=1, soft_punish_cache=4, **options)
    for _ in range(2):
        assert trainer.reward_funcs == [first_token_reward]
        assert trainer.reward_func_names == ["first_token_reward"]
        assert trainer.reward_processing_classes == [None]
        assert trainer.reward_weights.tolist() == [1.0]
        trainer.train()


@pytest.mark.parametrize(
    "options", [{}, OFF, OFF | {"multi_objective_aggregation": "normalize_then_sum"}], ids=["on", "off", "each"]
)
def test_punishment_trains_and_logs_as_a_reward_function_of_the_caller_does(tmp_path, options):
    added = make_trainer(tmp_path / "a", first_token_reward, max_steps=3, soft_punish_cache=4, **options)
    added.train()
    theirs = get_soft_overlong_punishment(8, 4)
    listed = make_trainer(
        tmp_path / "b", [first_token_reward, theirs], max_steps=3, soft_punish_cache=0, **options,
        filter_reward="first_token_reward",
    )  # fmt: skip
    listed.train()
    for mine, its in zip(added.model.parameters(), listed.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    mean = f"rewards/{theirs.__name__}/mean"
    values = [line["rewards/soft_overlong_punishment/mean"] for line in added.state.log_history[:3]]
    assert values == [line[mean] for line in listed.state.log_history[:3]]
    assert any(value < 0 for value in values)


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
def test_trl_warns_of_completions_that_no_function_scored(tmp_path, options, caplog):
    trainer = make_trainer(tmp_path, no_reward, max_steps=1, max_generation_rounds=1, soft_punish_cache=4, **options)
    with caplog.at_level("WARNING", logger="trl"):
        trainer.train()
    assert "All reward functions returned None for the following kwargs" in caplog.text
    assert not any(math.isfinite(line.get("reward", math.nan)) for line in trainer.state.log_history)
