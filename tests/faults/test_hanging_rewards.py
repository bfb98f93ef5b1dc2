"""Reward functions that never return: the run ends with an error that names them, on all ranks, and is resumed."""

import asyncio
import os
import re
import time

import pytest
from processes import batches, outcome, run, said
from tiny import first_token_reward


OPTIONS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "reward_timeout": 1.0}
TWO_RANKS = OPTIONS | {"per_device_train_batch_size": 4}
FOR_EVER = 10**6
LIMIT = {"grace_seconds": 2.0, "max_seconds": 150}


def is_due(trainer_state):
    return trainer_state.global_step == 2 and os.environ.get("RANK", "1") == "1"


def sleeps(completion_ids, trainer_state, **kwargs):
    while is_due(trainer_state):
        time.sleep(FOR_EVER)
    return first_token_reward(completion_ids)


def swallows_exceptions(completion_ids, trainer_state, **kwargs):
    while is_due(trainer_state):
        try:
            time.sleep(FOR_EVER)
        except Exception:
            continue
    return first_token_reward(completion_ids)


async def waits(completion_ids, trainer_state, **kwargs):
    while is_due(trainer_state):
        await asyncio.sleep(FOR_EVER)
    return first_token_reward(completion_ids)


async def blocks_the_loop(completion_ids, trainer_state, **kwargs):
    return sleeps(completion_ids, trainer_state)


def swallows_everything(completion_ids, trainer_state, **kwargs):
    while is_due(trainer_state):
        try:
            time.sleep(FOR_EVER)
        except BaseException:
            continue
    return first_token_reward(completion_ids)


def raises(completion_ids, trainer_state, **kwargs):
    if is_due(trainer_state):
        raise ConnectionError("the judge does not answer")
    return first_token_reward(completion_ids)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run whose reward function never hangs."""
    folder = tmp_path_factory.mktemp("straight")
    assert run(folder, OPTIONS) == [0], said(folder)
    return folder


def assert_resumes(folder, straight, ranks=1):
    assert run(folder, OPTIONS) == [0], said(folder)
    mine, its = outcome(folder), outcome(straight)
    assert mine["first_step"] == 2
    assert mine["weights"] == its["weights"]
    assert batches(folder) == batches(straight)


@pytest.mark.fault(
    "a reward function hangs", "grading", "`RewardTimeoutError` that names it, after `reward_timeout`; resumes exactly"
)
@pytest.mark.parametrize("reward", [sleeps, swallows_exceptions, waits, blocks_the_loop], ids=lambda f: f.__name__)
def test_run_whose_reward_hangs_ends_with_its_name_and_is_resumed(tmp_path, straight, reward):
    assert run(tmp_path, OPTIONS, reward=reward, **LIMIT) == [1], said(tmp_path)
    printed = said(tmp_path, whole=True)
    message = (
        f"RewardTimeoutError: The reward function {reward.__name__} did not return within reward_timeout=1 seconds"
    )
    assert message in printed
    assert re.search(r"the rewards of \d+ completions at optimizer step 2 on rank 0", printed)
    assert "What all threads are doing:" in printed
    assert_resumes(tmp_path, straight)


@pytest.mark.fault(
    "a reward function hangs and swallows every interruption",
    "grading",
    "the process ends with its name 30 s later; resumes exactly",
)
def test_run_whose_reward_cannot_be_interrupted_ends_all_the_same(tmp_path, straight):
    assert run(tmp_path, OPTIONS, reward=swallows_everything, **LIMIT) == [1], said(tmp_path)
    assert "swallows_everything cannot be interrupted, so that this process ends here." in said(tmp_path)
    assert_resumes(tmp_path, straight)


@pytest.mark.fault(
    "a reward function hangs on one of two ranks",
    "grading",
    "`RewardTimeoutError` there, `RankFailedError` with the cause on the other",
)
@pytest.mark.fault(
    "a reward function raises on one of two ranks",
    "grading",
    "its error there, `RankFailedError` with the cause on the other",
)
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("reward", "cause"),
    [
        (sleeps, "RewardTimeoutError: The reward function sleeps did not return within reward_timeout=1 seconds"),
        (raises, "ConnectionError: the judge does not answer"),
    ],
    ids=["hangs", "raises"],
)
@pytest.mark.parametrize("dynamic_sampling", [True, False])
def test_other_rank_ends_with_the_cause(tmp_path, reward, cause, dynamic_sampling):
    options = TWO_RANKS | {"dynamic_sampling": dynamic_sampling}
    assert run(tmp_path, options, num_ranks=2, reward=reward, **LIMIT) == [1, 1], said(tmp_path)
    assert cause in said(tmp_path, 1, whole=True)
    assert f"RankFailedError: Sampling stopped because process 1 failed with: {cause}" in said(tmp_path, 0)


@pytest.mark.fault("a reward function cannot be interrupted on one of two ranks", "grading", "both end with an error")
@pytest.mark.distributed
def test_other_rank_ends_when_one_cannot_be_interrupted(tmp_path):
    codes = run(tmp_path, TWO_RANKS, num_ranks=2, reward=swallows_everything, **LIMIT)
    assert codes[1] == 1, said(tmp_path, 1)
    assert codes[0] > 0, said(tmp_path, 0)
