"""Refilling group by group, on 1 to 5 ranks that are threads: the batches of rounds, and completions that go on."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from simulated_run import Scenario, ScriptedEngine, simulate
from test_simulated_ranks import Oracle, scenarios

from trl_dapo.streaming.stream_refill import StreamRefill


def efforts(fast, large):
    common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}
    few = settings(max_examples=fast, derandomize=True, **common)
    many = settings(max_examples=large, print_blob=True, **common)
    return pytest.mark.parametrize("effort", [few, pytest.param(many, marks=pytest.mark.slow)], ids=["few", "many"])


def streamed(scenario, **options):
    options = {"refill": "stream", "use_vllm": True, "vllm_mode": "colocate"} | options
    return replace(scenario, options=scenario.options | options)


def trained_rows(records):
    """What all ranks train in one batch: position, number in the group and rewards of each row, and its tokens."""
    rows = []
    for record in records:
        batch = record.batch
        for inputs, rollout, is_filler in zip(batch.inputs, batch.rollouts, batch.is_filler, strict=True):
            if not is_filler:
                rows.append((inputs["position"], tuple(rollout.completion_ids.tolist())))
    return sorted(rows)


def test_groups_are_planned_only_when_something_is_new(monkeypatch):
    counts = Counter()

    def count(owner, name):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self: counts.update([name]) or method(self))

    count(StreamRefill, "_adjust")
    count(ScriptedEngine, "step")
    # One slot: each step decodes a token of one completion.
    scenario = Scenario(1, 8, 4, 50, num_batches=3, outcomes=("mixed",), num_slots=1)
    ledgers = [records[0].batch.ledger for records in simulate(streamed(scenario))]
    assert [len(ledger.accepted) for ledger in ledgers] == [4] * 3
    num_groups = sum(len(ledger.sampled) for ledger in ledgers)
    assert counts["step"] >= 3 * 8 * num_groups
    # When it is started, when a slot falls idle, and when it is judged.
    assert counts["_adjust"] <= 3 * num_groups + 2 * len(ledgers)


@efforts(fast=24, large=600)
def test_batches_are_those_of_rounds(effort):
    @effort
    @seed(1)
    @given(scenarios(surplus="requeue", on_exhausted="partial"), st.integers(1, 12))
    def check(scenario, num_slots):
        # Without a limit that the two meet at different places.
        options = {"max_generation_rounds": 60, "max_prompts_per_round": None}
        scenario = replace(scenario, num_slots=num_slots, num_ranks=min(scenario.num_ranks, 5), num_batches=3)
        assume(scenario.num_groups * scenario.num_generations % scenario.num_ranks == 0)
        assume("mixed" in scenario.outcomes)
        rounds = simulate(replace(scenario, options=scenario.options | options))
        assume(all(not batch[0].batch.ledger.num_missing for batch in rounds))
        streams = simulate(streamed(scenario, **options))
        for expected, records in zip(rounds, streams, strict=True):
            assert trained_rows(records) == trained_rows(expected)
            assert [record.position for record in records] == [expected[0].position] * scenario.num_ranks
            assert [record.num_left for record in records] == [0] * scenario.num_ranks
            for record in records:
                collection = record.batch.ledger
                assert [group.draw for group in collection.accepted] == [
                    group.draw for group in expected[0].batch.ledger.accepted
                ]

    check()


@efforts(fast=24, large=600)
def test_completions_go_on_and_keep_what_sampled_them(effort):
    @effort
    @seed(2)
    @given(scenarios(surplus="carry", on_exhausted="partial"), st.integers(1, 12))
    def check(scenario, num_slots):
        scenario = replace(scenario, num_slots=num_slots, num_ranks=min(scenario.num_ranks, 5), num_batches=4)
        assume(scenario.num_groups * scenario.num_generations % scenario.num_ranks == 0)
        # The configuration takes one optimizer step a batch.
        scenario = replace(streamed(scenario, max_prompts_per_round=3 * scenario.num_groups), num_updates=1)
        check_carried_run(scenario, simulate(scenario))

    check()


def sampled_by(rollout, candidates):
    """
    The policy step of each token, as the engine that sampled it noted, which agrees with the log-probabilities.

    There are several candidates where the prompt was given back to the stream and sampled anew on another rank.
    """
    for steps in candidates:
        if len(steps) == len(rollout.completion_ids):
            engine = -0.5 * rollout.completion_ids - torch.tensor(steps)
            if torch.equal(rollout.sampling_logps, engine.float()):
                return steps
    raise AssertionError(f"no engine sampled {rollout}, only {candidates}")


def check_carried_run(scenario, batches):
    oracle = Oracle(scenario)
    num_groups, size = scenario.num_groups, scenario.num_generations
    seen: set[int] = set()
    last_trained = -1
    for records in batches:
        collection = records[0].batch.ledger
        policy_step = records[0].policy_step
        for record in records:
            assert [group.draw.position for group in record.batch.ledger.accepted] == [
                group.draw.position for group in collection.accepted
            ]
            for position, row in ((inputs["position"], inputs["row"]) for inputs in record.batch.inputs):
                oracle.rows[position] = row
        # In stream order, over all batches: nothing is taken out of turn, nothing twice.
        trained = [group.draw.position for group in collection.accepted]
        assert trained == sorted(trained)
        assert not trained or trained[0] > last_trained
        judged = {group.draw.position for group in collection.used}
        assert not judged & seen
        seen |= judged
        if trained:
            passed_over = set(range(last_trained + 1, trained[-1])) - set(trained)
            informative = {group.draw.position for group in collection.sampled if group.verdict.value == "informative"}
            assert not passed_over & (informative | {group.draw.position for group in collection.carried})
            last_trained = trained[-1]
        assert len(trained) <= num_groups
        if len(trained) < num_groups:
            assert collection.num_missing == num_groups - len(trained)
        # Each row: all samples of each group once, and each token with the log-probability of the policy that sampled it.
        rows = Counter()
        for record in records:
            batch = record.batch
            for inputs, rollout, is_filler in zip(batch.inputs, batch.rollouts, batch.is_filler, strict=True):
                if is_filler:
                    continue
                sample = rollout.completion_ids[1].item() - 10
                key = (inputs["position"], sample)
                rows[key] += 1
                steps = sampled_by(rollout, [other.sampled_by[key] for other in records if key in other.sampled_by])
                assert policy_step - min(steps) <= scenario.options["max_off_policy_steps"]
                old_steps = [step for step in steps if step < policy_step]
                old = torch.tensor([]) if rollout.old_logps is None else rollout.old_logps
                assert len(old) == len(old_steps)
                exact = [scenario.logps(rollout, step)[place] for place, step in enumerate(old_steps)]
                assert old.tolist() == [value.item() for value in exact]
        assert rows == Counter(itertools.product(trained, range(size)))
        assert len({record.position for record in records}) == 1


def test_completions_do_go_on():
    """The checks above would pass if nothing ever went on."""
    scenario = streamed(
        Scenario(
            num_ranks=2, num_generations=4, num_groups=4, num_rows=50, num_batches=6, outcomes=("mixed", "all wrong"),
            options={"surplus": "carry", "max_prompts_per_round": 12, "selective_rollout": False, "shuffle_dataset": True,
                     "max_off_policy_steps": 1, "filter_range": None},
            num_slots=3,
        )
    )  # fmt: skip
    batches = simulate(scenario)
    check_carried_run(scenario, batches)
    mixed_rows = [
        rollout
        for records in batches
        for record in records
        for rollout in record.batch.rollouts
        if rollout.old_logps is not None and 0 < len(rollout.old_logps) < len(rollout.completion_ids)
    ]
    assert len(mixed_rows) >= 5
