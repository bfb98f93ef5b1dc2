"""The refill benchmark: its policies against hand counts, its figures against other ways to compute them."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import refill  # noqa: E402


class ScriptedStream:
    """Outcomes in a given order; completions of 100 tokens, groups of 2."""

    name, num_generations, num_rows = "scripted", 2, 10**6

    def __init__(self, outcomes: str, rate: float = 0.5):
        self.outcomes = [letter == "+" for letter in outcomes.replace(" ", "")]
        self.rates = np.full(100, rate)
        self.sizes: list[int] = []

    def sample(self, rows, step):
        taken, self.outcomes = self.outcomes[: len(rows)], self.outcomes[len(rows) :]
        assert len(taken) == len(rows), "the script is too short"
        self.sizes.append(len(rows))
        return refill.Samples(np.array(taken), np.full(len(rows), 100.0), np.full(len(rows), 200.0))


@pytest.fixture(scope="module")
def quick_records():
    return refill.quick_records()


def counts(tally):
    return tally.num_generated, tally.num_trained, tally.num_rounds, tally.num_failed


@pytest.mark.bench
def test_verl_cuts_the_surplus_and_starts_the_next_step_afresh():
    # Step 1: 1 + 2 found in two rounds of 2, one lost. Step 2: full at once.
    stream = ScriptedStream("+- ++ ++")
    tally = refill.run_fixed_rounds(stream, num_groups=2, num_steps=2, multiplier=1, max_rounds=10)
    assert stream.sizes == [2, 2, 2]
    assert counts(tally) == (6, 4, 3, 0)
    assert tally.figures("saturated")["waste"] == 5 / 4


@pytest.mark.bench
def test_verl_counts_an_error_when_its_rounds_are_spent():
    tally = refill.run_fixed_rounds(ScriptedStream("+- -- ++"), num_groups=2, num_steps=2, multiplier=1, max_rounds=2)
    assert counts(tally) == (6, 2, 3, 1)


@pytest.mark.bench
def test_verl_with_three_batches_samples_three_at_once():
    stream = ScriptedStream("+--+-+")
    tally = refill.run_fixed_rounds(stream, num_groups=2, num_steps=1, multiplier=3, max_rounds=10)
    assert stream.sizes == [6]
    assert counts(tally) == (6, 2, 1, 0)


@pytest.mark.bench
def test_ms_swift_generates_a_last_retry_that_it_does_not_judge():
    # The fourth batch would have filled it; instead the original one trains, with its one informative group.
    tally = refill.run_ms_swift(ScriptedStream("+- -- -- ++"), num_groups=2, num_steps=1)
    assert counts(tally) == (8, 1, 4, 1)


@pytest.mark.bench
def test_ms_swift_trains_what_two_retries_fill():
    tally = refill.run_ms_swift(ScriptedStream("+- -- +-"), num_groups=2, num_steps=1)
    assert counts(tally) == (6, 2, 3, 0)


@pytest.mark.bench
def test_one_for_one_follows_its_longest_chain():
    # Chains: (+), (-, -, +), (-, +). The longest has 3 completions of 100 tokens, 6 groups of 200 tokens run on 48 slots.
    tally = refill.run_one_for_one(ScriptedStream("+-- -+ +"), num_groups=3, num_steps=1)
    assert counts(tally) == (6, 3, 3, 0)
    assert tally.seconds["idle slots"] == pytest.approx(5 + 0.02 * (300 + 6 * 200 / 48))


@pytest.mark.bench
def test_one_for_one_samples_just_what_it_takes_to_find_n():
    stream = refill.SimulatedStream("0.2", 2, [0.2] * 300, seed=3)
    tally = refill.run_one_for_one(stream, num_groups=16, num_steps=300)
    # Drawn until N are found: N / p in the mean, variance N (1 - p) / p^2.
    mean, deviation = 16 / 0.2, math.sqrt(16 * 0.8) / 0.2
    assert tally.num_generated / 300 == pytest.approx(mean, abs=4 * deviation / math.sqrt(300))
    assert tally.figures("saturated")["waste"] == 1.0
    # The longest of N geometric chains: the sum of its tail probabilities.
    longest = sum(1 - (1 - 0.8**k) ** 16 for k in range(500))
    assert tally.num_rounds / 300 == pytest.approx(longest, rel=0.06)


@pytest.mark.bench
def test_ours_gives_surplus_prompts_back_or_trains_them_next():
    # The first round finds more than 4 groups. Carried, they fill two batches; given back, each batch takes a round.
    first = refill.RefillPlanner(num_groups=2, confidence=0.9, max_prompts=8).plan(2).num_prompts
    assert first >= 4
    outcomes = "+" * 60
    requeue = refill.run_ours(ScriptedStream(outcomes), num_groups=2, num_steps=2, surplus="requeue", confidence=0.9)
    carry = refill.run_ours(ScriptedStream(outcomes), num_groups=2, num_steps=2, surplus="carry", confidence=0.9)
    assert requeue.num_rounds == 2
    assert counts(carry) == (first, 4, 1, 0)


@pytest.mark.bench
def test_ours_stops_after_the_round_cap_with_what_it_has():
    tally = refill.run_ours(ScriptedStream("+" + "-" * 200), 2, 1, surplus="requeue", confidence=0.9)
    assert tally.num_rounds == refill.MAX_ROUNDS
    assert (tally.num_trained, tally.num_failed) == (1, 1)


@pytest.mark.bench
def test_mixed_difficulty_has_the_acceptance_of_its_beta_law():
    a, b = refill.BETA

    def moment(x, y):  # E[accuracy^x (1 - accuracy)^y]
        logs = [math.lgamma(v) for v in (a + x, b + y, a + b, a, b, a + b + x + y)]
        return math.exp(logs[0] + logs[1] + logs[2] - logs[3] - logs[4] - logs[5])

    for number, num_generations in ((8, 8), (9, 16)):
        stream = refill.make_streams(1)[number]()
        assert stream.num_generations == num_generations
        expected = 1 - moment(num_generations, 0) - moment(0, num_generations)
        assert stream.rates[0] == pytest.approx(expected, abs=0.006)
        # Counting the correct completions of each group gives the same share.
        rng = np.random.default_rng(1)
        correct = rng.binomial(num_generations, rng.beta(a, b, size=100_000))
        assert ((correct > 0) & (correct < num_generations)).mean() == pytest.approx(expected, abs=0.006)


@pytest.mark.bench
def test_no_policy_is_below_the_floor(quick_records):
    for record in quick_records:
        assert record["waste"] >= 1 - 1e-9
        trained = 16 * 40 * (1 - record["frac_failed_steps"])
        rate = 0.2 if record["stream"] == "0.2" else 0.5
        if record["policy"] != "ms-swift":
            # Groups drawn until `trained` are found: relative deviation sqrt((1 - p) / trained).
            assert record["raw_waste"] >= 1 - 4 * math.sqrt((1 - rate) / trained)


@pytest.mark.bench
def test_waste_agrees_with_the_plain_ratio_within_sampling_error(quick_records):
    for record in quick_records:
        if not record["frac_failed_steps"]:
            rate = 0.2 if record["stream"] == "0.2" else 0.5
            assert record["raw_waste"] == pytest.approx(record["waste"], rel=4 * math.sqrt((1 - rate) / (16 * 40)))


@pytest.mark.bench
def test_verl_needs_the_rounds_that_the_binomial_law_says(quick_records):
    # P(not full after k batches) = P(Binomial(16 k, 0.5) < 16).
    def missing(k):
        return sum(math.comb(16 * k, i) for i in range(16)) / 2 ** (16 * k)

    expected = sum(missing(k) for k in range(10))
    record = next(r for r in quick_records if r["policy"] == "verl 1x" and r["stream"] == "0.5")
    assert record["rounds_per_step"] == pytest.approx(expected, abs=0.35)


@pytest.mark.bench
def test_dominance_needs_both_figures_and_no_failure():
    ours = {"waste": 1.1, "rounds_per_step": 1.2, "frac_failed_steps": 0.0}
    assert refill.dominates(ours | {"waste": 1.0}, ours)
    assert not refill.dominates(ours, ours)
    assert not refill.dominates(ours | {"waste": 1.0, "rounds_per_step": 1.3}, ours)
    assert not refill.dominates(ours | {"waste": 1.0, "frac_failed_steps": 0.1}, ours)


@pytest.mark.bench
def test_a_missed_aim_is_reported_as_missed(quick_records):
    worse = [r | {"waste": 1.2} if r["policy"] == "carry 0.9" else r for r in quick_records]
    holds = {check.aim: check.holds for check in refill.check_aims(worse)}
    assert not holds["carry 0.9, 16 groups: waste at most 1.03 of the floor"]


def test_readme_shows_the_tables_of_the_stored_results():
    results = json.loads(refill.RESULTS.read_text())
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert refill.tables(results["records"], markdown=True) in readme
    checks = refill.check_aims(results["records"])
    assert refill.checks_text(checks, markdown=True) in readme
    assert [check._asdict() for check in checks] == results["checks"]
