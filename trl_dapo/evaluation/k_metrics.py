r"""
Metrics of k completions per problem: avg@k, maj@k and pass@k, with confidence intervals over problems.

Every metric is the mean over problems of one value in [0, 1] per problem. So one bootstrap over problems serves all of
them. The interval covers the choice of the problems and also the sampling, because each problem has its own completions.
"""

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Estimate:
    """
    A mean over problems with its confidence interval.

    Args:
        value (`float`):
            The mean.
        low (`float | None`):
            Lower end of the interval. `None` for fewer than two problems: one value has no spread.
        high (`float | None`):
            Upper end of the interval.
        num_problems (`int`):
            Number of problems.
    """

    value: float
    low: float | None
    high: float | None
    num_problems: int


def avg_at_k(is_correct: Sequence[bool]) -> float:
    """
    Returns the share of correct completions of a problem.

    >>> avg_at_k([True, False, False, False])
    0.25
    """
    _check_k(len(is_correct), len(is_correct))
    return sum(is_correct) / len(is_correct)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    r"""
    Returns the probability that at least one of k completions, drawn from those of a problem, is correct.

    The unbiased estimator of Chen et al. ([2107.03374](https://huggingface.co/papers/2107.03374), Eq. 1):
    \\(1 - \binom{n-c}{k} / \binom{n}{k}\\).

    Args:
        num_samples (`int`):
            n, the completions of the problem.
        num_correct (`int`):
            c, how many of them are correct.
        k (`int`):
            Completions drawn, without replacement.

    Raises:
        `ValueError`: unless 1 <= k <= n and 0 <= c <= n.

    Example:

    >>> pass_at_k(num_samples=4, num_correct=1, k=2)
    0.5
    """
    _check_k(k, num_samples)
    if not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"num_correct is {num_correct}, but must be between 0 and num_samples ({num_samples}). Count the correct "
            "ones among the same completions."
        )
    return float(1 - Fraction(math.comb(num_samples - num_correct, k), math.comb(num_samples, k)))


def maj_at_k(votes: Sequence[Hashable | None], correct: Hashable, k: int) -> float:
    """
    Returns the probability that the majority answer of k completions is correct.

    The k completions are drawn from those of the problem without replacement, and all draws are counted exactly. A tie is
    broken at random among the answers with the most votes: if one of three such answers is correct, it counts 1/3. A
    completion without an answer does not vote. If no completion votes, the result is wrong.

    Args:
        votes (`Sequence[Hashable | None]`):
            The class of each completion's answer; `None`: no answer. Equivalent answers have equal classes.
        correct (`Hashable`):
            The class of the correct answer.
        k (`int`):
            Completions that vote.

    Raises:
        `ValueError`: unless 1 <= k <= `len(votes)`.

    Example:

    >>> maj_at_k(["18", "18", "7", None], correct="18", k=4)
    1.0
    >>> maj_at_k(["18", "7", "7"], correct="18", k=2)  # two of the three draws are ties
    0.3333333333333333
    """
    _check_k(k, len(votes))
    counts = Counter(vote for vote in votes if vote is not None)
    num_correct = counts.pop(correct, 0)
    num_silent = len(votes) - num_correct - counts.total()
    # Adds the draws in which the correct answer has `most` votes, no answer has more, and `num_ties` others have as many.
    wins = Fraction(0)
    for most in range(1, min(num_correct, k) + 1):
        draws: Counter[tuple[int, int]] = Counter({(most, 0): math.comb(num_correct, most)})
        for count in counts.values():
            draws = _with_class(draws, count, most, k)
        for (num_drawn, num_ties), num_ways in draws.items():
            if k - num_drawn <= num_silent:
                wins += Fraction(num_ways * math.comb(num_silent, k - num_drawn), 1 + num_ties)
    return float(wins / math.comb(len(votes), k))


def _with_class(draws: Counter[tuple[int, int]], count: int, most: int, k: int) -> Counter[tuple[int, int]]:
    """Counts the draws anew with one more answer, which `count` completions give and which may get up to `most` votes."""
    extended: Counter[tuple[int, int]] = Counter()
    for (num_drawn, num_ties), num_ways in draws.items():
        for num_votes in range(min(count, most, k - num_drawn) + 1):
            extended[num_drawn + num_votes, num_ties + (num_votes == most)] += num_ways * math.comb(count, num_votes)
    return extended


def estimate(values: Sequence[float], seed: int = 0, level: float = 0.95, num_resamples: int = 2000) -> Estimate:
    """
    Returns the mean of one value per problem, with a bootstrap confidence interval over problems.

    It is the percentile interval, widened for few problems (Hesterberg's "expanded percentile",
    [1411.5279](https://arxiv.org/abs/1411.5279)): its percentiles are those of a normal distribution at the ends of
    Student's t interval. The plain percentile interval is too narrow: with 30 normal values it misses the mean in 6.4 % of
    cases instead of 5 %. If all values are equal, the interval has no width. This means that these problems do not differ,
    and not that the mean is certain.

    Args:
        values (`Sequence[float]`):
            One value per problem.
        seed (`int`, *optional*, defaults to 0):
            Seed of the resampling.
        level (`float`, *optional*, defaults to 0.95):
            Probability with which the interval should contain the mean over all problems of this kind.
        num_resamples (`int`, *optional*, defaults to 2000):
            Bootstrap samples.

    Raises:
        `ValueError`: when there are no values, `level` is not between 0 and 1, or `num_resamples` is below 100.

    Example:

    >>> estimate([0.0, 0.5, 1.0, 0.5]).value
    0.5
    """
    if not values:
        raise ValueError("values is empty, but must hold one value per problem. Evaluate at least one problem.")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, but must be between 0 and 1, both excluded. Use 0.95.")
    if num_resamples < 100:
        raise ValueError(f"num_resamples is {num_resamples}, but must be at least 100. Use 2000.")
    num_values = len(values)
    mean = math.fsum(values) / num_values
    if num_values == 1:
        return Estimate(mean, None, None, 1)
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=num_values)) / num_values for _ in range(num_resamples))
    quantile = student_quantile((1 + level) / 2, num_values - 1) * math.sqrt(num_values / (num_values - 1))
    tail = NormalDist().cdf(-quantile)
    return Estimate(mean, _percentile(means, tail), _percentile(means, 1 - tail), num_values)


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def student_quantile(probability: float, freedom: int) -> float:
    """
    Returns a quantile of Student's t distribution: exact for 1 and 2 degrees of freedom, else Abramowitz and Stegun 26.7.5.

    Args:
        probability (`float`):
            Probability of values below the quantile, in (0, 1).
        freedom (`int`):
            Degrees of freedom, at least 1.

    Example:

    >>> round(student_quantile(0.975, 30), 3)
    2.042
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    x = NormalDist().inv_cdf(probability)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    corrections: list[float] = [term / freedom ** (power + 1) for power, term in enumerate(terms)]
    return x + sum(corrections)


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"k is {k}, but must be between 1 and the number of completions of a problem ({num_samples}). Sample more "
            "completions, or choose a smaller k."
        )
