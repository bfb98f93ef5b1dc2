"""The benchmark of streaming refill: simulated engines against a walk token by token, its runs against hand counts."""

import json
import random
import sys

import numpy as np
import pytest
from checkout import ROOT


sys.path.insert(0, str(ROOT / "benchmarks"))

import streaming
import streaming_simulation as simulation
import streaming_tables as tables
from streaming_engines import Outcomes, Setting, SimulatedEngine, StepCost
from streaming_lengths import length_bias

from trl_dapo.sampling.placement import deal_prompts


SETTING = Setting(
    num_groups=4, num_generations=2, num_ranks=2, num_slots=3, rate=0.5, median_tokens=20, sigma_tokens=0.7, max_tokens=60,
    cost=StepCost(1.0, 0.25),
)  # fmt: skip


class Scripted(Outcomes):
    """Groups of two completions, of so many tokens each, and their verdicts."""

    def __init__(self, setting, script):
        super().__init__(setting)
        self.script = script

    def lengths(self, position):
        return list(self.script[position][:2])

    def is_informative(self, position):
        return self.script[position][2]


@pytest.fixture(scope="module")
def quick_records():
    return streaming.quick_records()


@pytest.mark.bench
@pytest.mark.parametrize("seed", range(20))
def test_engine_is_a_walk_token_by_token(seed):
    chance = random.Random(seed)
    cost, num_slots = StepCost(1.0, 0.125), chance.randint(1, 4)
    line = {(0, number): chance.randint(1, 12) for number in range(10)}
    engine = SimulatedEngine(num_slots, cost)
    for key, num_tokens in line.items():
        engine.submit(key, num_tokens)
    now, left = 0.0, dict(line)
    while left:
        running = list(left)[:num_slots]
        # A sequence is given up now and then, running or waiting.
        if chance.random() < 0.2:
            key = chance.choice(list(left))
            assert engine.withdraw(key) == line[key] - left.pop(key)
            continue
        now += cost.seconds(len(running))
        for key in running:
            left[key] -= 1
        ended = {key for key in running if not left[key]}
        left = {key: num_tokens for key, num_tokens in left.items() if num_tokens}
        # Up to a rounding, and well before the next step.
        assert set(engine.advance(now + 1e-9)) == ended
        engine.now = now
        engine.num_steps = round(engine.num_steps)
        assert engine.num_unfinished == len(left)


@pytest.mark.bench
def test_round_takes_its_slowest_rank():
    # 2 ranks of 3 slots; 8 groups of one batch of 4 at the prior. Each rank has the 8 completions of 4 groups.
    script = dict.fromkeys(range(8), (4, 4, True))
    script[2] = (4, 10, True)
    run = simulation.InRounds(SETTING, Scripted(SETTING, script))
    assert run.planner.plan(4).num_prompts >= 8
    run.planner.max_prompts = 8
    batch = run.next_batch()
    assert batch.trained == [0, 1, 2, 3]
    assert batch.generated_tokens == 8 * 8 + 6
    order = deal_prompts(8, 2)
    rows = [tokens for number in order for tokens in script[number][:2]]
    seconds = max(walk(rows[:8], 3, SETTING.cost), walk(rows[8:], 3, SETTING.cost))
    # A rank whose completions are all alike: three at a time, 4 + 4 steps of 1.75 s, and 4 of 1.5 s for the last two.
    assert walk([4] * 8, 3, SETTING.cost) == 8 * 1.75 + 4 * 1.5 < seconds
    assert batch.seconds == pytest.approx(seconds + SETTING.exchange_seconds)


def walk(lengths, num_slots, cost):
    left, now = list(lengths), 0.0
    while left:
        now += cost.seconds(min(num_slots, len(left)))
        left = [tokens - (number < num_slots) for number, tokens in enumerate(left)]
        left = [tokens for tokens in left if tokens]
    return now


@pytest.mark.bench
@pytest.mark.parametrize("surplus", ["requeue", "carry"])
def test_every_token_is_judged_given_up_or_goes_on(surplus):
    outcomes = Outcomes(SETTING)
    run = simulation.InStream(SETTING, outcomes, surplus)
    batches = [run.next_batch() for _ in range(25)]
    under_way = sum(sum(outcomes.lengths(position)) - sum(left.values()) for position, (_, left) in run.left.items())
    accounted = sum(batch.judged_tokens + batch.aborted_tokens for batch in batches) + under_way
    assert sum(batch.generated_tokens for batch in batches) == accounted
    assert (surplus == "carry") == any(run.left.values()) or not run.left
    # In stream order, and none left out.
    trained = [position for batch in batches for position in batch.trained]
    informative = [position for position in range(trained[-1] + 1) if outcomes.is_informative(position)]
    assert trained == informative[: 4 * 25]


@pytest.mark.bench
def test_verl_loses_what_is_too_much():
    run = simulation.InFixedRounds(SETTING, Scripted(SETTING, {n: (3, 3, n not in (1, 2)) for n in range(12)}))
    # 0, 3 of the first four; 4 and 5 of the next, 6 and 7 are lost.
    assert run.next_batch().trained == [0, 3, 4, 5]
    assert run.next_batch().trained == [8, 9, 10, 11]


@pytest.mark.bench
def test_first_finished_are_short_where_long_groups_are_rare_and_streaming_is_not():
    lengths = length_bias(streaming.biased_setting(), num_batches=4)
    everything = lengths["all informative groups"]["mean"]
    assert lengths["rounds"] == lengths["stream"]
    assert lengths["stream"]["mean"] == pytest.approx(everything, rel=0.05)
    assert lengths["first finished"]["mean"] < 0.9 * everything
    assert all(
        sum(lengths[name]["counts"]) == lengths[name]["num_completions"] for name in ("rounds", "first finished")
    )


@pytest.mark.bench
def test_chance_falls_with_length_where_it_shall():
    outcomes = Outcomes(streaming.biased_setting())
    longest = np.array([max(outcomes.lengths(position)) for position in range(8000)])
    is_informative = np.array([outcomes.is_informative(position) for position in range(8000)])
    is_long = longest > np.median(longest)
    assert is_informative.mean() == pytest.approx(0.5, abs=0.03)
    assert is_informative[~is_long].mean() - is_informative[is_long].mean() > 0.15


@pytest.mark.bench
def test_ratio_of_sums_and_its_error_by_hand():
    # 4 / 4; deviations -1 and 1, so sqrt(2 * 2 / 1) / 4.
    assert tables.ratio([1.0, 3.0], [2.0, 2.0]) == (1.0, 0.5)


@pytest.mark.bench
def test_engine_time_counts_steps_and_sequences():
    step = {"to_begin": 2.0, "per_sequence": 0.5}
    assert tables.engine_seconds({"steps": [3, 1], "running": [10, 4]}, step) == [11.0, 4.0]


@pytest.mark.bench
def test_quick_run_covers_all_policies_and_saves_time_where_slots_are_scarce(quick_records):
    for record in quick_records:
        assert set(record["policies"]) == set(simulation.POLICIES)
    scarce = quick_records[0]["policies"]
    assert sum(scarce["stream"]["seconds"]) < sum(scarce["rounds"]["seconds"])
    assert sum(scarce["stream, carry"]["tokens"]) < sum(scarce["rounds"]["tokens"])


def test_readme_shows_the_tables_of_the_stored_results():
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for block in tables.markdown(json.loads(streaming.RESULTS.read_text())).split("\n\n"):
        assert block in readme
