"""What goes wrong in tools, environments and rollout functions leaves a completion without a reward, and ends nothing else."""

import asyncio
import math
import random
import time

import pytest
from tiny_tools import (
    NUM_GENERATIONS,
    ScriptedDAPO,
    calculate,
    call,
    correct,
    digest,
    make_chat_trainer,
    question,
    reply,
    scripted_dapo,
)

from trl_dapo.errors import BadToolCallError, EnvTimeoutError
from trl_dapo.sampling.env_faults import EnvFault


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    scripted_dapo(monkeypatch)


def always_calls(text, sample):
    """Every completion calls the tool once, with its number, then gives the right answer or not."""
    if sample is not None:
        return call(f"{question(text).split()[-1]}+0*{sample}")
    return reply(text.replace("<tool_response>", "<tool_response>"), sample)


def train(folder, monkeypatch, script=reply, **options):
    monkeypatch.setattr(ScriptedDAPO, "script", staticmethod(script))
    trainer = make_chat_trainer(folder, **{"max_steps": 2, "env_timeout": 1.0} | options)
    trainer.train()
    return trainer


def judged(trainer):
    """Returns of each sampled completion: the row of the dataset, its number, its fault and its filter reward."""
    return [
        (group.draw.index, sample, (group.env_faults or [0] * NUM_GENERATIONS)[sample], reward)
        for _, batch, _ in trainer.batches
        for group in batch.ledger.sampled
        for sample, reward in enumerate(group.filter_rewards)
    ]


def sample_of(expression):
    return int(expression.rsplit("*", 1)[1])


def faulty(fault):
    """Returns a calculator in which half of the problems go wrong for completions 2 and 3."""

    def calculate_faultily(expression: str) -> str:
        """
        Computes.

        Args:
            expression: What to compute.
        """
        if digest(expression.split("+")[0]) % 2 and sample_of(expression) >= 2:
            return fault()
        return calculate(expression)

    calculate_faultily.__name__ = "calculate"
    return calculate_faultily


def raises():
    raise OSError("the network is gone")


def hangs():
    time.sleep(600)


def computes_for_ever():
    while True:
        pass


def exits():
    raise SystemExit(3)


def returns_far_too_much():
    return "x" * 10_000_000


@pytest.mark.fault(
    "a tool raises, hangs, exits or returns far too much", "sampling", "its completion has no reward; training goes on"
)
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (raises, EnvFault.RAISED),
        (exits, EnvFault.RAISED),
        (returns_far_too_much, EnvFault.RAISED),
        (hangs, EnvFault.TIMED_OUT),
        (computes_for_ever, EnvFault.TIMED_OUT),
    ],
)
def test_a_tool_that_fails_leaves_its_completion_without_a_reward(tmp_path, monkeypatch, fault, cause):
    # Few, where each takes its time.
    num_steps = 1 if cause is EnvFault.TIMED_OUT else 2
    trainer = train(tmp_path, monkeypatch, tools=[faulty(fault)], max_steps=num_steps)
    found = judged(trainer)
    assert {known for *_, known, _ in found} == {EnvFault.NONE, cause}
    assert all(math.isnan(reward) == (known != EnvFault.NONE) for *_, known, reward in found)
    entry = next(entry for entry in trainer.state.log_history if "dapo/frac_env_failed" in entry)
    first = [known for *_, known, _ in found][: len(trainer.batches[0][1].ledger.sampled) * NUM_GENERATIONS]
    share = sum(known != 0 for known in first) / len(first)
    assert entry["dapo/frac_env_failed"] == entry[f"dapo/frac_env_failed/{cause.name.lower()}"] == pytest.approx(share)


def test_a_fault_is_no_wrong_answer_in_the_verdict(tmp_path, monkeypatch):
    clean = train(tmp_path / "clean", monkeypatch, tools=[calculate])
    failing = train(tmp_path / "failing", monkeypatch, tools=[faulty(raises)])
    truth = {(row, sample): reward for row, sample, _, reward in judged(clean)}
    common = [(row, sample, fault, reward) for row, sample, fault, reward in judged(failing) if (row, sample) in truth]
    assert sum(fault != 0 for *_, fault, _ in common) >= 3
    assert all(fault or reward == truth[row, sample] for row, sample, fault, reward in common)


def test_what_the_model_did_wrong_is_scored(tmp_path, monkeypatch):
    def wrong_calls(text, sample):
        wrong = [call("1", name="no_such_tool"), call("1").replace("expression", "formula"), call("not a formula")]
        return wrong[sample] if sample in (0, 1, 2) else "no idea<|im_end|>"

    def calculate(expression: str) -> str:
        """
        Computes.

        Args:
            expression: What to compute.
        """
        raise BadToolCallError("this is no formula")

    trainer = train(tmp_path, monkeypatch, wrong_calls, tools=[calculate], max_steps=1, max_generation_rounds=1)
    found = judged(trainer)
    assert all(fault == 0 and reward == 0.0 for *_, fault, reward in found)
    calls = [turn["content"] for turns in trainer.rounds[0][2] for turn in turns if turn["role"] == "tool"]
    assert {text.split(":")[0] for text in calls} == {"{'error'"}


@pytest.mark.fault("an async tool hangs", "sampling", "its completion has no reward; training goes on")
def test_async_tools_have_the_deadline_too(tmp_path, monkeypatch):
    async def calculate_slowly(expression: str) -> str:
        """
        Computes.

        Args:
            expression: What to compute.
        """
        await asyncio.sleep(600 if sample_of(expression) == 2 else 0)
        return calculate(expression)

    calculate_slowly.__name__ = "calculate"
    trainer = train(
        tmp_path, monkeypatch, always_calls, tools=[calculate_slowly], max_steps=1, max_generation_rounds=1
    )
    assert [fault == EnvFault.TIMED_OUT for _, _, fault, _ in judged(trainer)] == [
        sample == 2 for _, sample, _, _ in judged(trainer)
    ]


@pytest.mark.fault(
    "an async tool blocks the event loop", "sampling", "`EnvTimeoutError` that names it, after twice `env_timeout`"
)
def test_an_async_tool_that_blocks_the_event_loop_ends_the_run(tmp_path, monkeypatch):
    async def calculate(expression: str) -> str:
        """
        Computes.

        Args:
            expression: What to compute.
        """
        time.sleep(5)

    with pytest.raises(EnvTimeoutError, match="calculate did not return within env_timeout=1 seconds"):
        train(tmp_path, monkeypatch, always_calls, tools=[calculate])


class Fragile:
    """An environment that fails in a way that a table says, by row and number of the reset."""

    faults: dict = {}
    made: list = []

    def __init__(self):
        self.is_closed = self.has_failed = False
        Fragile.made.append(self)

    def reset(self, **row):
        assert not self.has_failed, "a broken environment is used again"
        assert not self.is_closed, "a closed environment is used again"
        self.fault = Fragile._choose(row["row"])
        if self.fault in ("reset raises", "reset hangs", "reset returns bytes", "reset returns 10 MB"):
            self.has_failed = True
        if self.fault == "reset raises":
            raise OSError("no simulator")
        if self.fault == "reset hangs":
            time.sleep(600)
        return {"reset returns bytes": b"a", "reset returns 10 MB": "a" * 10_000_000}.get(self.fault)

    def calculate(self, expression: str) -> str:
        """
        Computes.

        Args:
            expression: What to compute.
        """
        self.has_failed |= self.fault in ("raises", "hangs")
        if self.fault == "raises":
            raise OSError("the simulator died")
        if self.fault == "hangs":
            time.sleep(600)
        if self.fault == "returns nothing":
            return None
        return calculate(expression)

    def get_reward(self):
        if self.fault == "reward raises":
            self.has_failed = False
            raise OSError("no reward")
        return 0.0

    def close(self):
        self.is_closed = True


CAUSES = {
    "reset raises": EnvFault.NOT_RESET,
    "reset hangs": EnvFault.NOT_RESET,
    "reset returns bytes": EnvFault.NOT_RESET,
    "reset returns 10 MB": EnvFault.NOT_RESET,
    "raises": EnvFault.RAISED,
    "hangs": EnvFault.TIMED_OUT,
    "reward raises": EnvFault.RAISED,
    "returns nothing": EnvFault.NONE,
    "nothing": EnvFault.NONE,
}


@pytest.mark.fault(
    "an environment raises or hangs, in `reset`, a method or `get_reward`",
    "sampling",
    "its completion has no reward, and another environment takes its place",
)
@pytest.mark.parametrize(("num_steps", "num_faults"), [(3, 15), pytest.param(70, 500, marks=pytest.mark.slow)])
def test_seeded_faults_of_environments_are_never_wrong_answers_and_environments_are_closed(
    tmp_path, monkeypatch, num_steps, num_faults
):
    chance, chosen = random.Random(0), []

    def choose(row):
        rare = chance.random() < 0.02
        fault = chance.choice(["reset hangs", "hangs"]) if rare else chance.choice([*CAUSES, *["nothing"] * 12])
        fault = "nothing" if fault.endswith("hangs") and not rare else fault
        chosen.append((row, fault))
        return fault

    Fragile.made, Fragile._choose = [], staticmethod(choose)
    rewards = []

    def solved(completions, solution, environments, log_extra, **kwargs):
        assert not any(environment.has_failed for environment in environments)
        rewards.append(len(completions))
        log_extra("seen", [environment.fault for environment in environments])
        return correct(completions, solution)

    trainer = train(
        tmp_path,
        monkeypatch,
        always_calls,
        rewards=solved,
        environment_factory=Fragile,
        max_steps=num_steps,
        max_generation_rounds=4,
        max_prompts_per_round=8,
        log_completions=True,
    )
    expected = [CAUSES[fault] for _, fault in chosen]
    assert sum(fault != EnvFault.NONE for fault in expected) > num_faults
    sampled = [group for _, batch, _ in trainer.batches for group in batch.ledger.sampled]
    assert [row for row, _ in chosen] == [group.draw.index for group in sampled for _ in range(NUM_GENERATIONS)]
    found = [fault for group in sampled for fault in group.env_faults or [0] * NUM_GENERATIONS]
    assert found == expected
    for group in sampled:
        for fault, reward in zip(group.env_faults or [0] * NUM_GENERATIONS, group.filter_rewards, strict=True):
            assert math.isnan(reward) == (fault != 0)
    assert sum(rewards) == sum(fault in ("nothing", "returns nothing", "reward raises") for _, fault in chosen), (
        "reward functions see sound completions alone"
    )
    # Closed: those that broke when they were replaced, the others at the end.
    assert all(environment.is_closed for environment in Fragile.made)
    trained = [rollout.extra_logs["seen"] for _, batch, _ in trainer.batches for rollout in batch.rollouts]
    assert {text is None for text in trained} == {True, False}


def test_environments_are_closed_when_a_run_fails(tmp_path, monkeypatch):
    Fragile.made, Fragile._choose = [], staticmethod(lambda row: "nothing")

    def raises(**kwargs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tmp_path, monkeypatch, rewards=raises, environment_factory=Fragile)
    assert len(Fragile.made) > 1
    assert all(environment.is_closed for environment in Fragile.made)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            {"prompt_ids": [], "completion_ids": [], "logprobs": None},
            r"returned 0 prompt_ids, but was given \d+ prompts",
        ),
        ({"prompt_ids": []}, "returned no 'completion_ids'"),
        (None, "returned a NoneType. It must return a dict"),
    ],
)
def test_what_a_rollout_function_returns_is_checked(tmp_path, monkeypatch, output, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, monkeypatch, rollout_func=lambda prompts, trainer: output)


@pytest.mark.fault("a rollout function hangs", "sampling", "`EnvTimeoutError`; environments are closed")
def test_a_rollout_function_that_hangs_ends_the_run(tmp_path, monkeypatch):
    with pytest.raises(EnvTimeoutError, match=r"The rollout function did not return within env_timeout=1 seconds"):
        train(tmp_path, monkeypatch, rollout_func=lambda prompts, trainer: time.sleep(600))
