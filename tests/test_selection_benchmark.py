"""The selection benchmark: its worlds and baselines against other ways to compute them, its tables against its record."""

import json
import math
import sys

import numpy as np
import pytest
from checkout import ROOT


sys.path.insert(0, str(ROOT / "benchmarks"))

import aims
import selection
import selection_learner
import selection_tables
import selection_worlds

from trl_dapo.sampling.prompt_selection import GroupOutcomes


@pytest.fixture(scope="module")
def runs():
    """A small world, filled by each arm."""
    found = {}
    for arm in ("blind", "streaks", "ours", "oracle", "all prompts", "one rate for all"):
        world = selection.World(1200, 8, 0.4, drift=1.0, noise=0.3, seed=3)
        found[arm] = selection.simulate(world, selection.make_selection(arm, world), 16, num_passes=5)
    return found


@pytest.mark.parametrize(("share", "size"), [(0.2, 8), (0.4, 16), (0.7, 8)])
def test_pass_rates_give_the_share_that_is_asked_for(share, size):
    strength = selection_worlds.beta_strength(share, size)
    rates = np.random.default_rng(0).beta(0.4 * strength, 0.6 * strength, 400_000)
    counts = np.random.default_rng(1).binomial(size, rates)
    assert ((counts > 0) & (counts < size)).mean() == pytest.approx(share, abs=0.005)


def test_chances_are_binomial():
    chances, rare = selection_worlds.chances_at(np.array([0.0, 0.3, 1.0]), 16)
    assert chances == pytest.approx([0.0, 1 - 0.3**16 - 0.7**16, 0.0])
    assert rare == pytest.approx([0.0, 16 * 0.3 * 0.7**15 + 120 * 0.3**2 * 0.7**14, 0.0])


def test_outcomes_of_a_world_are_binomial_and_fixed_by_position():
    world = selection.World(20_000, 8, 0.5, seed=1)
    positions = np.arange(20_000)
    counts = world.sample(positions, positions)
    again = world.sample(positions[5000:6000], positions[5000:6000])
    assert counts[5000:6000].tolist() == again.tolist()
    other = world.sample(positions + 20_000, positions)
    assert (counts != other).mean() > 0.2
    rates = world.rates(positions)
    assert counts.mean() == pytest.approx(8 * rates.mean(), abs=0.05)
    assert (counts * other).mean() == pytest.approx(64 * (rates**2).mean(), rel=0.02)


def test_policy_gets_better_by_the_drift_of_twelve_passes():
    world = selection.World(1000, 8, 0.5, drift=2.0)
    before = world.log_odds + world.shift
    world.learn(np.zeros(500, dtype=int), np.zeros(500, dtype=int), 64)
    assert world.log_odds + world.shift - before == pytest.approx(2.0 / 12)


def test_table_stream_passes_over_every_row_once():
    stream = selection.TableStream(50, seed=4)
    rows = [draw.index for draw in stream.peek(150)]
    assert all(sorted(rows[start : start + 50]) == list(range(50)) for start in (0, 50, 100))
    assert rows[:50] != rows[50:100]


def test_streaks_halve_the_probability_with_each_uninformative_group():
    stream = selection.TableStream(4000)
    streaks = selection.StreakSelection(stream)
    rows = np.arange(4000)
    for number in range(3):
        informative = rows % 4 <= 2 - number
        streaks.learn(GroupOutcomes(rows, rows * 1.0, rows * 1.0, informative, informative))
    assert streaks.streaks[:4].tolist() == [0, 1, 2, 3]
    drawn = np.array([draw.index for draw in streaks.selected(stream.peek(4000))])
    for number in range(4):
        share = 0.5**number
        assert (drawn % 4 == number).mean() * len(drawn) / 1000 == pytest.approx(share, abs=0.06)


def test_blind_sampling_needs_one_over_the_share(runs):
    total = runs["blind"].total(0, 5)
    world = selection.World(1200, 8, 0.4, drift=1.0, noise=0.3, seed=3)
    # Over the prompts of this world, and half of the drift of 5 passes.
    world.shift = 1.0 * 2.5 / 12
    chances, rare = world.chances(np.arange(1200))
    assert total[2] / total[1] == pytest.approx(chances.mean(), abs=0.02)
    assert total[3] / total[2] == pytest.approx(rare.mean() / chances.mean(), abs=0.02)
    assert total[0] > total[1]


def test_same_draws_are_used_however_rounds_are_planned(runs):
    """Surplus is given back, so that plans change what is sampled, and not what trains."""
    for planned, plain in (("all prompts", "blind"), ("ours", "one rate for all")):
        assert np.array_equal(runs[planned].figures[:, 1:4], runs[plain].figures[:, 1:4])
        assert not np.array_equal(runs[planned].figures[:, 0], runs[plain].figures[:, 0])


def test_arms_stand_in_the_order_of_what_they_know(runs):
    costs = {arm: selection.window(run, runs["blind"], 1, 5)["used_of_blind"] for arm, run in runs.items()}
    assert costs["oracle"] < costs["ours"] < costs["streaks"] < costs["blind"] == 1.0


def test_gradient_of_the_learner_is_that_of_the_group_by_enumeration():
    """One prompt, 3 of 8 completions correct: the summed advantages times the gradients of the log-probabilities."""
    learner = selection_learner.Learner(5, 8, known=0.5, sharpness=1.0, seed=2)
    before = learner.weights.copy()
    policy = learner._policy(learner.prompts[[1]])[0]
    state = learner.rng.bit_generator.state
    learner.learn(np.array([1]), np.array([3]), num_groups=1)
    step = (learner.weights - before) / learner.learning_rate
    wrong = policy.copy()
    wrong[learner.gold[1]] = 0.0
    again = np.random.default_rng()
    again.bit_generator.state = state
    answers = again.multinomial(5, wrong / wrong.sum())
    expected = np.zeros_like(step)
    mean, deviation = 3 / 8, math.sqrt(3 / 8 * 5 / 8)
    completions = [(learner.gold[1], 1.0)] * 3 + [(a, 0.0) for a, n in enumerate(answers) for _ in range(n)]
    for answer, reward in completions:
        gradient = np.outer(np.eye(8)[answer] - policy, learner.prompts[1])
        expected += (reward - mean) / deviation * gradient / 8
    assert len(completions) == 8
    assert step == pytest.approx(expected, abs=1e-12)


def test_learner_learns():
    learner = selection_learner.Learner(400, 8, known=0.45, sharpness=3.0)
    before = learner.accuracy()
    selection.simulate(learner, selection.make_selection("ours", learner), 32, num_steps=60)
    assert learner.accuracy() > before + 0.1


def test_column_has_the_correlation_that_is_asked_for():
    world = selection.World(5000, 8, 0.4)
    rates = world.rates(np.arange(5000))
    added = selection.noisy_column(world, "added noise", 0.7)
    assert np.corrcoef(added, rates)[0, 1] == pytest.approx(0.7, abs=1e-6)
    # Measuring with 8 completions takes a little of it away.
    measured = selection.noisy_column(world, "another model", 0.7)
    assert np.corrcoef(measured, rates)[0, 1] == pytest.approx(0.69, abs=0.02)
    assert set(np.unique(measured * 8)) <= set(range(9))


def test_accuracy_is_reached_where_the_curve_first_crosses_it():
    curve = [(0, 0.2), (10, 0.4), (20, 0.35), (30, 0.6)]
    assert selection_tables.completions_to(curve, 0.3) == pytest.approx(5.0)
    assert selection_tables.completions_to(curve, 0.5) == pytest.approx(20 + 10 * 0.15 / 0.25)
    assert selection_tables.completions_to(curve, 0.7) is None


def test_a_missed_aim_is_reported_as_missed():
    records = json.loads(selection.RESULTS.read_text())["records"]
    worse = [
        r | {"cost_of_blind": 1.03} if r.get("arm") == "ours" and r.get("window") == "pass 1" else r for r in records
    ]
    aim = "never more than 1.02 of blind sampling's completions"
    assert {check.aim: check.holds for check in selection_tables.check_aims(records)}[aim]
    assert not {check.aim: check.holds for check in selection_tables.check_aims(worse)}[aim]


def test_documentation_shows_the_tables_of_the_stored_results():
    results = json.loads(selection.RESULTS.read_text())
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    checks = selection_tables.check_aims(results["records"])
    assert [check._asdict() for check in checks] == results["checks"]
    assert aims.checks_text(checks, markdown=True) in readme
    for name, table in selection_tables.TABLES.items():
        assert table(results["records"]) in readme, name
