"""Reward functions that raise, return what they should not, lose their workers or never end."""

import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import assert_nothing_is_left, batches, exit_code, is_running, outcome, run, said, start
from test_resume import assert_same_run
from test_resume import make_trainer as resumable
from test_trainer import make_trainer
from tiny import first_token_reward
from transformers import BatchFeature, LlamaConfig

from trl_dapo.grading.pool import shared_pool
from trl_dapo.rewards import accuracy_reward


@pytest.mark.fault(
    "a reward function returns a wrong count or type", "grading", "`ValueError` or `TypeError` that names the function"
)
@pytest.mark.parametrize("dynamic_sampling", [True, False])
@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (lambda rewards: rewards[:-1], ValueError),
        (lambda rewards: [*rewards, 0.0], ValueError),
        (lambda rewards: None, TypeError),
        (lambda rewards: 1.0, TypeError),
        (lambda rewards: ["good"] * len(rewards), TypeError),
        (lambda rewards: [[reward] for reward in rewards], TypeError),
        (lambda rewards: [1j] * len(rewards), TypeError),
        (lambda rewards: dict(enumerate(rewards)), TypeError),
        (lambda rewards: set(rewards), TypeError),
        (lambda rewards: (reward for reward in rewards[1:]), TypeError),
        (lambda rewards: "1" * len(rewards), TypeError),
        (lambda rewards: torch.tensor(1.0), TypeError),
    ],
    ids=[
        "too few",
        "too many",
        "none",
        "a number",
        "texts",
        "lists",
        "complex",
        "a dict",
        "a set",
        "a short generator",
        "a text",
        "no axis",
    ],
)
def test_what_is_no_reward_is_refused_with_the_name_of_the_function(tmp_path, returned, error, dynamic_sampling):
    def strange(completion_ids, **kwargs):
        return returned(first_token_reward(completion_ids))

    trainer = make_trainer(tmp_path, strange, dynamic_sampling=dynamic_sampling)
    with pytest.raises(error, match="The reward function 'strange' returned") as caught:
        trainer.train()
    assert "completions were computed by strange" in caught.value.__notes__[0]


@pytest.mark.parametrize("returned", [1.0, {"reward": 1.0}, "good", ["1"] * 28])
def test_what_an_async_function_returns_is_checked_too(tmp_path, returned):
    async def strange(completion_ids, **kwargs):
        return returned

    trainer = make_trainer(tmp_path, strange)
    with pytest.raises(TypeError, match="The reward function 'strange' returned"):
        trainer.train()


@pytest.mark.parametrize(
    "as_what", [torch.tensor, np.array, tuple, iter], ids=["tensor", "array", "tuple", "iterator"]
)
def test_any_sequence_of_numbers_is_a_reward(tmp_path, as_what):
    def in_disguise(completion_ids, **kwargs):
        return as_what(first_token_reward(completion_ids))

    weights = []
    for reward in (first_token_reward, in_disguise):
        trainer = make_trainer(tmp_path / reward.__name__, reward, max_steps=2)
        trainer.train()
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.model.parameters()]))
    assert torch.equal(*weights)


def unscored(value):
    def some_unscored(completion_ids, **kwargs):
        rewards = first_token_reward(completion_ids)
        return [value if len(ids) % 3 == 0 else reward for ids, reward in zip(completion_ids, rewards, strict=True)]

    return some_unscored


@pytest.mark.fault("a reward is NaN or infinite", "grading", "counts as no reward")
def test_rewards_that_are_not_finite_count_as_none(tmp_path):
    weights = {}
    for name, value in {"none": None, "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "1e300": 1e300}.items():
        trainer = make_trainer(tmp_path / name, unscored(value), soft_punish_cache=0, max_steps=6)
        trainer.train()
        trained = [len(ids) % 3 for _, (_, _, completion_ids), _ in trainer.batches for ids in completion_ids]
        assert 0 in trained, "the seed no longer trains on an unscored completion"
        weights[name] = torch.cat([parameter.flatten() for parameter in trainer.model.parameters()])
    assert weights["none"].isfinite().all()
    for name in weights:
        assert torch.equal(weights[name], weights["none"]), name


@pytest.mark.fault("a reward function raises", "grading", "its error, with what was computed; resumes exactly")
def test_run_whose_reward_raised_is_resumed_as_if_it_had_not(tmp_path):
    straight = resumable(tmp_path / "a", steps_per_generation=2)
    straight.train()
    raising = resumable(tmp_path / "b", steps_per_generation=2)
    calls = []

    def fails_once(completion_ids, **kwargs):
        calls.append(len(completion_ids))
        if len(calls) == 4:
            raise ConnectionError("the judge does not answer")
        return first_token_reward(completion_ids)

    raising.reward_funcs = [fails_once, *raising.reward_funcs[1:]]
    with pytest.raises(ConnectionError) as caught:
        raising.train()
    assert f"A run can be resumed from {tmp_path / 'b'}/checkpoint-" in caught.value.__notes__[0]
    step = raising.state.global_step
    assert 0 < step < 8
    resumed = resumable(tmp_path / "b", steps_per_generation=2)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(resumed, straight, step)


def test_crash_of_a_reward_model_names_it_and_promises_no_checkpoint(tmp_path):
    class Crashing(torch.nn.Module):
        config = LlamaConfig(name_or_path="judges/crashing")

        def forward(self, **inputs):
            raise RuntimeError("out of memory")

    def loading(*args, **kwargs):
        return BatchFeature({"input_ids": torch.ones(1, 1, dtype=torch.long)})

    trainer = make_trainer(tmp_path, [first_token_reward, Crashing()], max_steps=1)
    trainer.reward_processing_classes[1] = loading
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        trainer.train()
    (note,) = caught.value.__notes__
    assert note.splitlines()[0].endswith(" completions were computed by crashing.")
    assert note.splitlines()[1:] == ["There is no checkpoint."]


def hangs(completion_ids, trainer_state, **kwargs):
    if trainer_state.global_step == 2:
        Path("hanging").touch()
        time.sleep(3600)
    return first_token_reward(completion_ids)


@pytest.mark.fault("SIGTERM while a reward function hangs", "grading", "ends at once; resumes exactly")
def test_run_whose_reward_hangs_ends_when_it_is_told_to_and_is_resumed(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    assert run(tmp_path / "a", options) == [0], said(tmp_path / "a")
    process = start(tmp_path / "b", options, reward=hangs)
    while not (tmp_path / "b" / "hanging").exists():
        assert process.is_alive(), said(tmp_path / "b")
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert exit_code(process, 30) == -signal.SIGTERM
    assert_nothing_is_left(tmp_path / "b")
    assert run(tmp_path / "b", options) == [0], said(tmp_path / "b")
    mine, its = outcome(tmp_path / "b"), outcome(tmp_path / "a")
    assert mine["first_step"] == 2
    assert mine["weights"] == its["weights"]
    assert batches(tmp_path / "b") == batches(tmp_path / "a")


@pytest.mark.fault("grading workers are killed", "grading", "the same rewards")
def test_killed_grading_workers_change_nothing(tmp_path):
    def graded(is_murderous):
        def by_algebra(completion_ids, row, log_extra, log_metric, **kwargs):
            # Too hard for the exact path: equal if the first token is the row's, n sqrt(2) and sqrt(2 n^2).
            texts = [rf"\boxed{{{ids[0] % 2 + 2}\sqrt{{2}}}}" for ids in completion_ids]
            golds = [rf"$\sqrt{{{2 * (number % 2 + 2) ** 2}}}$" for number in row]
            rewards = accuracy_reward(completions=texts, solution=golds, log_extra=log_extra, log_metric=log_metric)
            if is_murderous:
                for pid in shared_pool().pids:
                    os.kill(pid, signal.SIGKILL)
            expected = [float(ids[0] % 2 == number % 2) for ids, number in zip(completion_ids, row, strict=True)]
            assert rewards == expected
            return rewards

        return by_algebra

    weights = []
    for is_murderous in (False, True):
        trainer = make_trainer(tmp_path / str(is_murderous), graded(is_murderous), max_steps=3)
        trainer.train()
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.model.parameters()]))
    assert torch.equal(*weights)


def dies_while_workers_run(completion_ids, row, log_extra, log_metric, trainer_state, **kwargs):
    texts = [rf"\boxed{{{ids[0] % 2 + 2}\sqrt{{2}}}}" for ids in completion_ids]
    golds = [rf"$\sqrt{{{2 * (number % 2 + 2) ** 2}}}$" for number in row]
    rewards = accuracy_reward(completions=texts, solution=golds, log_extra=log_extra, log_metric=log_metric)
    if trainer_state.global_step == 2 and not Path("has died").exists():
        Path("has died").write_text(json.dumps(shared_pool().pids))
        os.kill(os.getpid(), signal.SIGKILL)
    return rewards


@pytest.mark.fault("kill -9", "grading, while workers run", "resumes exactly; the workers end too")
def test_workers_of_a_killed_run_end_with_it(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    straight, killed = tmp_path / "a", tmp_path / "b"
    straight.mkdir()
    (straight / "has died").touch()
    assert run(straight, options, reward=dies_while_workers_run) == [0], said(straight)
    assert run(killed, options, reward=dies_while_workers_run) == [-signal.SIGKILL]
    workers = json.loads((killed / "has died").read_text())
    assert workers
    assert [pid for pid in workers if is_running(pid)] == []
    assert run(killed, options, reward=dies_while_workers_run) == [0], said(killed)
    assert outcome(killed)["first_step"] == 2
    assert outcome(killed)["weights"] == outcome(straight)["weights"]
