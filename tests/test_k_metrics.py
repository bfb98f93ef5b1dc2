"""avg@k, maj@k and pass@k against every subset, and their intervals against simulated truth."""

import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest

from trl_dapo.evaluation.k_metrics import avg_at_k, estimate, maj_at_k, pass_at_k, student_quantile


def vote(subset, correct):
    """The expected verdict of one vote, ties broken by lot."""
    counts = Counter(answer for answer in subset if answer is not None)
    if not counts:
        return Fraction(0)
    leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
    return Fraction(int(correct in leaders), len(leaders))


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(num_samples):
    for num_correct in range(num_samples + 1):
        is_correct = [True] * num_correct + [False] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            subsets = list(itertools.combinations(is_correct, k))
            assert pass_at_k(num_samples, num_correct, k) == float(Fraction(sum(map(any, subsets)), len(subsets)))


def test_maj_at_k_is_the_mean_vote_over_all_subsets():
    rng = random.Random(0)
    for _ in range(150):
        votes = rng.choices(["a", "b", "c", "d", None], weights=[3, 2, 2, 1, 2], k=rng.randint(1, 8))
        for k in range(1, len(votes) + 1):
            subsets = list(itertools.combinations(votes, k))
            expected = sum(vote(subset, "a") for subset in subsets) / len(subsets)
            assert maj_at_k(votes, "a", k) == float(expected)


def test_maj_at_k_does_not_depend_on_the_order_and_equals_all_ordered_draws():
    votes = ["a", "b", "b", None, "a"]
    draws = list(itertools.permutations(votes, 3))
    expected = float(sum(vote(draw, "a") for draw in draws) / len(draws))
    assert {maj_at_k(order, "a", 3) for order in itertools.permutations(votes)} == {expected}


def test_with_one_completion_all_three_are_the_share_of_correct_ones():
    votes = ["a", "b", "a", None]
    assert maj_at_k(votes, "a", 1) == pass_at_k(4, 2, 1) == avg_at_k([True, False, True, False]) == 0.5


def test_a_vote_of_nobody_and_a_vote_without_the_correct_answer_are_wrong():
    assert maj_at_k([None, None], "a", 2) == 0
    assert maj_at_k(["b", None, None], "a", 2) == 0


def test_interval_of_avg_at_k_covers_the_truth_in_95_percent_of_runs():
    # 40 problems whose difficulty is beta(1/2, 1), mean 1/3, and 8 completions of each.
    rng = random.Random(1)
    num_covered = 0
    for run in range(1000):
        difficulties = [rng.betavariate(0.5, 1.0) for _ in range(40)]
        values = [avg_at_k([rng.random() < p for _ in range(8)]) for p in difficulties]
        interval = estimate(values, seed=run, num_resamples=500)
        num_covered += interval.low <= 1 / 3 <= interval.high
    assert 930 <= num_covered <= 970


def test_interval_is_seeded_and_holds_the_mean():
    values = [0.0, 0.25, 1.0, 0.5, 0.75, 0.0]
    first, again, other = estimate(values, seed=3), estimate(values, seed=3), estimate(values, seed=4)
    assert first == again != other
    assert first.low < sum(values) / 6 < first.high
    assert estimate([0.5]).low is None


def test_quantiles_of_student_are_those_of_the_tables():
    tables = {1: 12.706, 2: 4.303, 5: 2.571, 10: 2.228, 29: 2.045, 1000: 1.962}
    for freedom, quantile in tables.items():
        assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=2e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 1, 5), r"k is 5, but must be between 1 and .* \(4\)"),
        (lambda: pass_at_k(4, 5, 2), "num_correct is 5, but must be between 0 and"),
        (lambda: maj_at_k(["a"], "a", 0), "k is 0"),
        (lambda: avg_at_k([]), "k is 0"),
        (lambda: estimate([]), "values is empty"),
        (lambda: estimate([1.0], level=95), "level is 95"),
        (lambda: estimate([1.0], num_resamples=5), "num_resamples is 5"),
    ],
)
def test_impossible_questions_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
