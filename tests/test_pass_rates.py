"""The posterior of pass rates: against numerical integration, exact fractions, and hidden truth."""

import itertools
import json
import math
import subprocess
import sys
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dapo.sampling.judge import GroupFilter, GroupVerdict
from trl_dapo.sampling.pass_rates import (
    Outcomes,
    PassRates,
    beta_binomial_masses,
    informative_counts,
    prior_kinds,
    rate_bins,
)


def outcomes(rows, correct, size=8, informative=None, scored=None):
    """Groups of `size` completions, so many of them correct."""
    correct = np.array(correct, dtype=float)
    is_informative = (correct > 0) & (correct < size) if informative is None else np.array(informative)
    scored = np.full(len(correct), float(size)) if scored is None else np.array(scored, dtype=float)
    return Outcomes(np.array(rows), correct, scored, is_informative)


def integral(function, alpha, beta, num_points=400_001):
    """Mean of a function of p under a Beta law, by the midpoint rule over p = t^2 (3 - 2 t), which tames the ends."""
    t = (np.arange(num_points) + 0.5) / num_points
    p = t * t * (3 - 2 * t)
    weights = np.exp((alpha - 1) * np.log(p) + (beta - 1) * np.log1p(-p)) * t * (1 - t)
    return float((weights * function(p)).sum() / weights.sum())


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 1.3), (4.0, 2.5), (20.25, 3.75), (1.0, 60.0)])
def test_masses_are_the_binomial_law_averaged_over_the_beta_law(alpha, beta):
    masses = beta_binomial_masses(np.array([alpha]), np.array([beta]), 6, range(7))
    for k, mass in enumerate(masses):
        expected = integral(lambda p, k=k: math.comb(6, k) * p**k * (1 - p) ** (6 - k), alpha, beta)
        assert mass[0] == pytest.approx(expected, rel=2e-4, abs=1e-9)
    assert sum(float(mass[0]) for mass in masses) == pytest.approx(1.0, abs=1e-12)


def test_masses_equal_exact_fractions_and_are_multiplied_one_by_one():
    alpha, beta, size = Fraction(3, 4), Fraction(9, 4), 16
    exact = math.prod((beta + j) / (alpha + beta + j) for j in range(size))
    in_order = math.prod((2.25 + j) / (3.0 + j) for j in range(size))
    (mass,) = beta_binomial_masses(np.array([0.75]), np.array([2.25]), size, range(1))
    assert float(mass[0]) == in_order
    assert float(mass[0]) == pytest.approx(float(exact), rel=1e-14)
    # However many prompts are predicted at once.
    many = beta_binomial_masses(np.full(1000, 0.75), np.full(1000, 2.25), size, range(1))[0]
    assert set(many.tolist()) == {in_order}


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("filter_range", [None, (0.1, 0.5), (0.3, 0.8), (0.45, 0.46)])
@pytest.mark.parametrize("rewards", [(0.0, 1.0), (-1.0, 1.0), (0.0, 10.0)])
def test_informative_counts_are_those_that_the_filter_accepts(size, filter_range, rewards):
    wrong, right = rewards
    band = None if filter_range is None else tuple(wrong + (right - wrong) * bound for bound in filter_range)
    group_filter = GroupFilter(band)
    accepted = [
        count
        for count in range(size + 1)
        if group_filter.judge([right] * count + [wrong] * (size - count)) is GroupVerdict.INFORMATIVE
    ]
    low, high = informative_counts(size, band, rewards)
    assert list(range(low, high + 1)) == accepted


def test_first_prediction_is_the_imagined_law():
    """Beta(0.25, 0.25), by brute force over the counts; no correction before anything was found."""
    prediction = PassRates(num_rows=2, num_generations=8).predict(np.array([0, 1]))
    masses = beta_binomial_masses(np.array([0.25]), np.array([0.25]), 8, range(9))
    assert prediction.chances[0] == pytest.approx(sum(float(m[0]) for m in masses[1:8]), abs=1e-12)
    assert prediction.rare[0] == pytest.approx(float(masses[1][0]), abs=1e-12)
    assert not prediction.is_seen.any()


def test_prediction_in_a_band_counts_what_lies_inside_it():
    rates = PassRates(num_rows=1, num_generations=16, filter_range=(0.2, 0.6))
    masses = beta_binomial_masses(np.array([0.25]), np.array([0.25]), 16, range(17))
    expected = sum(float(masses[k][0]) for k in range(17) if 0.2 < k / 16 < 0.6)
    assert rates.predict(np.array([0])).chances[0] == pytest.approx(expected, abs=1e-12)
    # None of the counts of a rare success, 1 and 2, lies in the band.
    assert rates.predict(np.array([0])).rare[0] == 0.0


def test_band_is_read_on_the_scale_of_the_rewards():
    rates = PassRates(num_rows=1, num_generations=8, filter_range=(-0.6, 0.6))
    rates.see_rewards(-1.0, 1.0)
    masses = beta_binomial_masses(np.array([0.25]), np.array([0.25]), 8, range(9))
    expected = sum(float(masses[k][0]) for k in range(1, 8) if -0.6 < 2 * k / 8 - 1 < 0.6)
    assert rates.predict(np.array([0])).chances[0] == pytest.approx(expected, abs=1e-12)


def test_impossible_band_predicts_nothing_and_divides_by_nothing():
    rates = PassRates(num_rows=2, num_generations=4, filter_range=(0.3, 0.4))
    assert rates.best_chance == 0.0
    rates.observe(outcomes([0], [2], size=4, informative=[False]))
    assert rates.predict(np.array([0, 1])).chances.max() < 0.01


def test_posterior_mean_follows_the_counts_by_hand():
    """One prompt with two groups, 6 and then 2 of 8 correct."""
    rates = PassRates(num_rows=1, num_generations=8, forgetting=0.5)
    rates.observe(outcomes([0], [6]))
    # The prior: 8 imagined prompts with mean 1/2 and E[p^2] = 1/4 + 1/4/1.5, faded by one group, and one with 6/8 and
    # 6*5/(8*7).
    decay = 2000 / 2001
    count = 8 * decay + 1
    first, second = (4 * decay + 0.75) / count, (8 * (0.25 + 0.25 / 1.5) * decay + 30 / 56) / count
    strength = (first - second) / (second - first**2)
    alpha, beta = first * strength + 6, (1 - first) * strength + 2
    assert rates.means(np.array([0]))[0] == pytest.approx(alpha / (alpha + beta), abs=1e-12)
    # The second group finds less than predicted: the level falls, and the old counts move with it.
    predicted = alpha / (alpha + beta)
    level = 1 + 0.3 * (0.25 - predicted) / (predicted * (1 - predicted) + 4)
    odds = 3 * level
    old_correct, old_wrong = 8 * odds / (1 + odds), 8 / (1 + odds)
    rates.observe(outcomes([0], [2]))
    alpha = first * strength + 0.5 * old_correct + 2
    beta = (1 - first) * strength + 0.5 * old_wrong + 6
    # Counts are kept as float16.
    assert rates.means(np.array([0]))[0] == pytest.approx(alpha / (alpha + beta), abs=1e-3)


def test_progress_of_the_policy_is_found_and_shifts_prompts_that_were_not_seen_since():
    """Odds double between two visits of 2,000 prompts; the others are predicted as if they had been seen again."""
    rng = np.random.default_rng(0)
    hidden = rng.beta(1.5, 2.5, 4000)
    rates = PassRates(num_rows=4000, num_generations=16)
    rates.observe(outcomes(np.arange(4000), rng.binomial(16, hidden), size=16))
    waiting = np.arange(2000, 4000)
    before = rates.means(waiting)
    later = 2 * hidden / (1 + hidden)
    for start in range(0, 2000, 50):
        rows = np.arange(start, start + 50)
        rates.observe(outcomes(rows, rng.binomial(16, later[rows]), size=16))
    after = rates.means(waiting)
    assert abs(before.mean() - hidden[waiting].mean()) < 0.02
    assert abs(after.mean() - later[waiting].mean()) < 0.03
    assert np.abs(after - later[waiting]).mean() < np.abs(before - later[waiting]).mean()


def test_level_that_rises_for_ever_stays_in_range_and_solved_prompts_stay_solved():
    rates = PassRates(num_rows=40, num_generations=8)
    rates.observe(outcomes(np.arange(40), [8] * 20 + [1] * 20))
    for _ in range(200):
        rates.observe(outcomes(np.arange(20, 30), [7] * 10))
        rates.observe(outcomes(np.arange(20, 30), [1] * 10))
        # The policy seems to get better without end.
        rates._level *= 1.3
    assert 1 / 64 < rates._level < 64 * 1.3
    means = rates.means(np.arange(40))
    assert np.isfinite(means).all()
    assert means[:20].min() > 0.9


def test_correction_brings_predictions_to_what_is_found():
    """Groups that the law calls informative, but the filter does not (partial credit, truncation): half of them."""
    rng = np.random.default_rng(1)
    rates = PassRates(num_rows=3000, num_generations=8)
    for _ in range(2):
        for start in range(0, 3000, 100):
            rows = np.arange(start, start + 100)
            rates.observe(outcomes(rows, [4] * 100, informative=rng.random(100) < 0.5))
    assert rates.predict(np.arange(3000)).chances.mean() == pytest.approx(0.5, abs=0.06)


def test_predictions_of_hidden_rates_are_calibrated_and_better_than_the_mean():
    rng = np.random.default_rng(2)
    hidden = rng.beta(0.2, 0.3, 5000)
    rates = PassRates(num_rows=5000, num_generations=8)
    for _ in range(3):
        for rows in np.split(rng.permutation(5000), 50):
            rates.observe(outcomes(rows, rng.binomial(8, hidden[rows])))
    chances = rates.predict(np.arange(5000)).chances
    true_chances = 1 - hidden**8 - (1 - hidden) ** 8
    bins = (chances * 10).astype(int)
    gaps = [abs(chances[bins == b].mean() - true_chances[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    assert sum(gaps) < 0.03
    assert np.corrcoef(chances, true_chances)[0, 1] > 0.9
    rare = rates.predict(np.arange(5000)).rare
    assert rare.mean() == pytest.approx((8 * hidden * (1 - hidden) ** 7).mean(), abs=0.02)


def test_law_of_first_groups_is_learned():
    """The moments of a hidden Beta law, and so its share of informative groups, from one group of each prompt."""
    rng = np.random.default_rng(3)
    hidden = rng.beta(0.1, 0.4, 6000)
    rates = PassRates(num_rows=6001, num_generations=8)
    for rows in np.split(np.arange(6000), 60):
        rates.observe(outcomes(rows, rng.binomial(8, hidden[rows])))
    masses = beta_binomial_masses(np.array([0.1]), np.array([0.4]), 8, range(8))
    expected = sum(float(m[0]) for m in masses[1:])
    assert rates.predict(np.array([6000])).chances[0] == pytest.approx(expected, abs=0.05)


def test_kinds_are_told_apart_within_the_first_pass():
    rng = np.random.default_rng(4)
    kinds = np.arange(2000) % 2
    hidden = np.where(kinds == 0, 0.5, 0.001)
    rates = PassRates(num_rows=2000, num_generations=8, kinds=kinds)
    for rows in np.split(np.arange(400), 4):
        rates.observe(outcomes(rows, rng.binomial(8, hidden[rows])))
    teaching, failing = rates.predict(np.array([1000, 1001])).chances
    assert teaching > 0.85
    assert failing < 0.15
    prediction, counts = rates.predict_unseen()
    assert counts.tolist() == [800.0, 800.0]
    assert prediction.chances.tolist() == [teaching, failing]


def test_known_rates_are_believed_at_first_and_corrected_by_what_is_found():
    kinds, means = rate_bins([0.02] * 500 + [0.5] * 500)
    rates = PassRates(num_rows=1000, num_generations=8, kinds=kinds, prior_rates=means)
    low, middle = rates.predict(np.array([0, 500])).chances
    assert low < 0.2 < 0.6 < middle
    # The column lies: what it calls hard is half solved, the rest is solved.
    for start in range(0, 400, 50):
        rows = np.concatenate([np.arange(start, start + 50), np.arange(500 + start, 550 + start)])
        rates.observe(outcomes(rows, [4] * 50 + [8] * 50))
    low, middle = rates.predict(np.array([450, 950])).chances
    assert low > 0.8
    assert middle < 0.2


def test_rates_and_labels_together_make_kinds():
    kinds, means = prior_kinds([0.0, 1.0, math.nan, 1.0], ["a", "b", "b", "a"])
    assert kinds.tolist() == [0, 17 + 15, 17 + 16, 15]
    assert means[[0, 15, 17, 32]].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert math.isnan(means[33])
    assert prior_kinds() == (None, None)


def test_wrong_columns_are_refused():
    with pytest.raises(ValueError, match=r"pass rate of row 1 is 75\.0, but must lie between 0 and 1"):
        rate_bins([0.5, 75.0])
    with pytest.raises(ValueError, match="labels have 9000 values, but may have at most 8192"):
        prior_kinds(labels=list(range(9000)))
    with pytest.raises(ValueError, match="kinds has 2 entries for 3 rows"):
        PassRates(num_rows=3, num_generations=4, kinds=[0, 1])


def test_groups_without_scores_count_as_failed_and_move_nothing_else():
    rates, other = (PassRates(num_rows=4, num_generations=8) for _ in range(2))
    for instance in (rates, other):
        instance.observe(outcomes([0, 1], [4, 8]))
    before = (rates._level, rates._moments.tolist())
    for _ in range(3):
        rates.observe(outcomes([2], [0.0], scored=[0], informative=[False]))
    assert (rates._level, rates._moments.tolist()) == before
    assert rates.predict(np.array([2])).chances[0] < 0.7 * other.predict(np.array([2])).chances[0]


def test_shares_of_unsolved_and_solved_prompts_are_over_those_that_were_seen():
    rates = PassRates(num_rows=10, num_generations=8)
    assert all(math.isnan(share) for share in rates.frac_by_rate())
    for _ in range(4):
        rates.observe(outcomes([0, 1, 2, 3], [0, 4, 8, 8]))
    means = rates.means(np.arange(4))
    assert means[0] < 0.1 < means[1] < 0.9 < means[2]
    assert rates.frac_by_rate() == (1 / 4, 2 / 4)


def test_shares_of_a_large_dataset_are_those_of_rows_spread_over_it():
    rates = PassRates(num_rows=100_000, num_generations=8)
    rows = np.arange(100_000)
    for _ in range(4):
        rates.observe(outcomes(rows, np.where(rows < 30_000, 0, 8)))
    assert rates.frac_by_rate() == pytest.approx((0.3, 0.7), abs=0.001)


def random_batches(seed, num_rows, num_batches, size=8):
    rng = np.random.default_rng(seed)
    for _ in range(num_batches):
        rows = rng.choice(num_rows, size=min(num_rows, 20), replace=False)
        yield outcomes(rows, rng.binomial(size, rng.random(len(rows))), size=size)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), stop=st.integers(0, 12), has_kinds=st.booleans())
def test_resumed_posterior_goes_on_to_the_bit(seed, stop, has_kinds):
    options = {"kinds": np.arange(60) % 3, "prior_rates": [0.2, math.nan, 0.9]} if has_kinds else {}
    whole, killed, resumed = (PassRates(60, 8, filter_range=(0.05, 0.95), **options) for _ in range(3))
    batches = list(random_batches(seed, 60, 12))
    for instance in (whole, killed):
        instance.see_rewards(-1.0, 1.0)
    for batch in batches:
        whole.observe(batch)
    for batch in batches[:stop]:
        killed.observe(batch)
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    for batch in batches[stop:]:
        resumed.observe(batch)
    rows = np.arange(60)
    for expected, value in zip(whole.predict(rows), resumed.predict(rows), strict=True):
        assert np.array_equal(expected, value)
    assert whole.state_dict() == resumed.state_dict()


def test_prediction_does_not_depend_on_how_many_rows_are_asked_for():
    rates = PassRates(num_rows=500, num_generations=16)
    for batch in random_batches(0, 500, 40, size=16):
        rates.observe(batch)
    together = rates.predict(np.arange(500))
    for row in range(0, 500, 7):
        alone = rates.predict(np.array([row]))
        assert [values[0] for values in alone] == [values[row] for values in together]


def test_state_of_another_dataset_is_refused():
    with pytest.raises(ValueError, match="saved pass rates have num_rows=3, but here it is 4"):
        PassRates(4, 8).load_state_dict(PassRates(3, 8).state_dict())
    with pytest.raises(ValueError, match="num_kinds=1, but here it is 2"):
        PassRates(4, 8, kinds=[0, 1, 0, 1]).load_state_dict(PassRates(4, 8).state_dict())


def test_ten_million_prompts_take_less_than_200_megabytes():
    tracemalloc.start()
    kinds = np.zeros(10**7, dtype=np.uint16)
    rates = PassRates(num_rows=10**7, num_generations=16, kinds=kinds)
    rates.observe(outcomes([0, 10**7 - 1], [3, 16], size=16))
    current, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rates.num_bytes == 8 * 10**7
    assert current < 100e6


def test_predictor_needs_no_torch():
    code = "import sys, trl_dapo.sampling.prompt_selection as s; assert 'torch' not in sys.modules and 'trl' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_probabilities_grow_towards_one_half():
    """Of prompts seen equally often, those nearer to half solved have the better chance."""
    rates = PassRates(num_rows=9, num_generations=8)
    for _ in range(3):
        rates.observe(outcomes(np.arange(9), np.arange(9)))
    chances = rates.predict(np.arange(9)).chances.tolist()
    assert all(a < b for a, b in itertools.pairwise(chances[:4]))
    assert all(a > b for a, b in itertools.pairwise(chances[5:]))
