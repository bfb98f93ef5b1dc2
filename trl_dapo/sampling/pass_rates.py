"""
What the next group of each prompt will find: a posterior of its pass rate, from its past groups.

Every figure here is computed with additions, multiplications and divisions of float64 in a fixed order, which IEEE 754 rounds
alike on every machine. So ranks predict alike to the bit, and so does a resumed run.
"""

import base64
import math
import zlib
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .judge import max_rare_count
from .prompt_stream import WAYS_TO_GO_ON


Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# The law of pass rates before anything is known: 8 imagined prompts with Beta(0.25, 0.25), of which half of the groups teach.
_PRIOR_MEAN, _PRIOR_STRENGTH, _PRIOR_WEIGHT = 0.5, 0.5, 8.0
_MIN_STRENGTH, _MAX_STRENGTH = 0.05, 20.0
# First groups after which the learned law of pass rates has forgotten the older half.
_PRIOR_MEMORY = 2000.0
# A batch moves the odds of the policy by this part of what it shows, and by at most a fifth.
_DRIFT_GAIN, _MAX_DRIFT_STEP, _DRIFT_PRIOR = 0.3, 0.2, 4.0
# Levels are stored as float16: the scale is changed before it runs out of exponents.
_MAX_LEVEL, _MIN_STORED_LEVEL = 64.0, 2.0**-14
_NUM_KNOTS, _CORRECTION_MEMORY, _CORRECTION_WEIGHT = 17, 3000.0, 8.0
_MIN_CHANCE = 1e-3
_MAX_LOOKED_AT = 4096
_UNKNOWN_BIN, _NUM_RATE_BINS, _MAX_KINDS = 16, 17, 8192


class Prediction(NamedTuple):
    """
    What the next groups of some prompts will find.

    Attributes:
        chances (`np.ndarray`):
            Probability that each group is informative, in (0, 1).
        rare (`np.ndarray`):
            Probability that it is, with few of its completions correct.
        is_seen (`np.ndarray`):
            Whether a group of the prompt was observed before.
    """

    chances: Floats
    rare: Floats
    is_seen: Bools


class Outcomes(NamedTuple):
    """
    What groups of some prompts found.

    Attributes:
        indices (`np.ndarray`):
            Dataset row of each group. No row twice.
        num_correct (`np.ndarray`):
            Correct completions of each; partial credit counts in part.
        num_scored (`np.ndarray`):
            Completions of each that have a reward.
        is_informative (`np.ndarray`):
            Verdict of the group filter.
    """

    indices: Ints
    num_correct: Floats
    num_scored: Floats
    is_informative: Bools


def informative_counts(
    num_generations: int,
    filter_range: tuple[float, float] | None = None,
    reward_range: tuple[float, float] = (0.0, 1.0),
) -> tuple[int, int]:
    """
    Returns the fewest and the most correct completions of an informative group.

    Args:
        num_generations (`int`):
            Completions per group G.
        filter_range (`tuple[float, float]`, *optional*):
            Bounds of the mean reward.
        reward_range (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`):
            Reward of a wrong and of a correct completion.

    Example:

    >>> informative_counts(16), informative_counts(16, (0.1, 0.5))
    ((1, 15), (2, 7))
    """
    low, high = reward_range
    counts = [
        count
        for count in range(1, num_generations)
        if filter_range is None or filter_range[0] < low + (high - low) * count / num_generations < filter_range[1]
    ]
    # A band too narrow for any count: no group can teach, and none is predicted to.
    return (counts[0], counts[-1]) if counts else (1, 0)


def beta_binomial_masses(alpha: Floats, beta: Floats, num_trials: int, counts: range) -> list[Floats]:
    """
    P(K = k) for each `k` of `counts`, which begins with 0, where K ~ Binomial(num_trials, p) and p ~ Beta(alpha, beta).

    >>> [float(mass[0]) for mass in beta_binomial_masses(np.array([1.0]), np.array([1.0]), 1, range(2))]
    [0.5, 0.5]
    """
    steps = np.arange(num_trials, dtype=np.float64)[:, None]
    # A product over the first axis is taken one factor after the other, the same on every machine.
    mass = np.multiply.reduce((beta + steps) / (alpha + beta + steps), axis=0)
    masses = [mass]
    for k in counts[1:]:
        mass = mass * ((num_trials - k + 1) / k * (alpha + (k - 1)) / (beta + (num_trials - k)))
        masses.append(mass)
    return masses


def rate_bins(pass_rates: Sequence[float]) -> tuple[npt.NDArray[np.uint16], Floats]:
    """
    Sorts rows by a known pass rate into 16 kinds of the same width, and one for rows without any (NaN).

    Args:
        pass_rates (`Sequence[float]`):
            Known pass rate of each row, in [0, 1].

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the kind of each row, and the mean of the pass rates of each kind, NaN for the last.

    Raises:
        `ValueError`: when a rate is outside of [0, 1].

    Example:

    >>> kinds, means = rate_bins([0.0, 0.5, 0.53, float("nan")])
    >>> kinds.tolist(), float(means[8])
    ([0, 8, 8, 16], 0.515)
    """
    rates = np.asarray(pass_rates, dtype=np.float64)
    is_known = ~np.isnan(rates)
    wrong = np.flatnonzero(is_known & ~((rates >= 0) & (rates <= 1)))
    if len(wrong):
        raise ValueError(
            f"The pass rate of row {wrong[0]} is {rates[wrong[0]]}, but must lie between 0 and 1, or be missing. Divide "
            "percentages by 100."
        )
    bins = np.full(len(rates), _UNKNOWN_BIN, dtype=np.uint16)
    bins[is_known] = np.minimum(rates[is_known] * _UNKNOWN_BIN, _UNKNOWN_BIN - 1).astype(np.uint16)
    sums = np.bincount(bins[is_known], weights=rates[is_known], minlength=_NUM_RATE_BINS)
    with np.errstate(invalid="ignore"):
        return bins, sums / np.bincount(bins[is_known], minlength=_NUM_RATE_BINS)


def prior_kinds(
    pass_rates: Sequence[float] | None = None, labels: Sequence[Hashable] | None = None
) -> tuple[npt.NDArray[np.uint16] | None, Floats | None]:
    """
    Sorts rows into the kinds of `PassRates`: by a known pass rate, by a label (a source, a level), or by both.

    Args:
        pass_rates (`Sequence[float]`, *optional*):
            Known pass rate of each row, in [0, 1]. NaN: unknown.
        labels (`Sequence[Hashable]`, *optional*):
            Label of each row.

    Returns:
        `tuple[np.ndarray or None, np.ndarray or None]`: `kinds` and `prior_rates` of `PassRates`.

    Raises:
        `ValueError`: when a rate is outside of [0, 1], or the labels tell too many rows apart.

    Example:

    >>> kinds, _ = prior_kinds(labels=["algebra", "geometry", "algebra"])
    >>> kinds.tolist()
    [0, 1, 0]
    """
    bins, means = (None, None) if pass_rates is None else rate_bins(pass_rates)
    if labels is None:
        return bins, means
    numbers: dict[Hashable, int] = {}
    label_numbers = np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)
    num_kinds = len(numbers) * (1 if bins is None else _NUM_RATE_BINS)
    if num_kinds > _MAX_KINDS:
        raise ValueError(
            f"The labels have {len(numbers)} values, but may have at most {_MAX_KINDS * len(numbers) // num_kinds}: prompts "
            "of one label are taken to be alike. Give a column with few values, as a source or a level."
        )
    if bins is None or means is None:
        return label_numbers.astype(np.uint16), None
    kinds = label_numbers * _NUM_RATE_BINS + bins
    return kinds.astype(np.uint16), np.tile(means, len(numbers))


class PassRates:
    """
    A posterior of the pass rate of every prompt, and what it says of the prompt's next group.

    A prompt's pass rate has a Beta law. Its prior is learned from the first groups of all prompts, or of all prompts of
    its `kind`; each group adds its correct and wrong completions, and those of earlier groups fade. The policy's progress
    since the last group shifts the odds: how much is estimated from what prompts show when they come up again. What is
    predicted is corrected by what was found where the same was predicted before. 6 bytes a prompt, 8 with kinds.

    Args:
        num_rows (`int`):
            Rows of the dataset.
        num_generations (`int`):
            Completions per group G.
        filter_range (`tuple[float, float]`, *optional*):
            Bounds of the mean reward of an informative group.
        kinds (`Sequence[int]`, *optional*):
            Kind of each row, from 0: prompts of a kind have a common prior. `None`: all rows are of one kind.
        prior_rates (`Sequence[float]`, *optional*):
            Mean pass rate of each kind, as far as is known before training. NaN, or `None`: unknown.
        forgetting (`float`, *optional*, defaults to `0.6`):
            Weight of earlier groups when a new one comes.

    Example:

    >>> rates = PassRates(num_rows=3, num_generations=8)
    >>> for _ in range(2):
    ...     rates.observe(Outcomes(np.array([0, 1]), np.array([8.0, 4.0]), np.array([8.0, 8.0]), np.array([False, True])))
    >>> solved, mixed, unseen = rates.predict(np.arange(3)).chances
    >>> bool(solved < unseen < mixed)
    True
    """

    def __init__(
        self,
        num_rows: int,
        num_generations: int,
        filter_range: tuple[float, float] | None = None,
        kinds: Sequence[int] | npt.NDArray[np.uint16] | None = None,
        prior_rates: Sequence[float] | Floats | None = None,
        forgetting: float = 0.6,
    ):
        self.num_rows = num_rows
        self.num_generations = num_generations
        self.filter_range = filter_range
        self.forgetting = forgetting
        self.kinds = None if kinds is None else np.asarray(kinds, dtype=np.uint16)
        if self.kinds is not None and len(self.kinds) != num_rows:
            raise ValueError(f"kinds has {len(self.kinds)} entries for {num_rows} rows. Give one for each row.")
        self.num_kinds = 1 if self.kinds is None else int(self.kinds.max()) + 1
        known = np.full(self.num_kinds, math.nan)
        if prior_rates is not None:
            known[: len(prior_rates)] = np.asarray(prior_rates, dtype=np.float64)[: self.num_kinds]
        # Discounted completions, and the policy's level at the last group; 0: never seen.
        self._correct = np.zeros(num_rows, dtype="<f2")
        self._wrong = np.zeros(num_rows, dtype="<f2")
        self._levels = np.zeros(num_rows, dtype="<f2")
        self._level = 1.0
        # Number, sum of p and sum of p^2 over first groups, of each kind; the last row is over all.
        self._moments = np.zeros((self.num_kinds + 1, 3))
        self._moments[-1] = _PRIOR_WEIGHT * _moments_of(_PRIOR_MEAN, _PRIOR_STRENGTH)
        self._prior_rates = known
        self._num_unseen = (
            np.array([num_rows]) if self.kinds is None else np.bincount(self.kinds, minlength=self.num_kinds)
        )
        self._correction = _Correction()
        self._reward_range = (0.0, 1.0)
        self._priors = self._find_priors()
        self._set_counts()

    @property
    def best_chance(self) -> float:
        """Probability to be informative of a group whose prompt has the best pass rate."""
        return self._best_chance

    @property
    def num_bytes(self) -> int:
        """Memory of the posteriors."""
        arrays = [self._correct, self._wrong, self._levels, *([] if self.kinds is None else [self.kinds])]
        return sum(array.nbytes for array in arrays)

    def predict(self, indices: Ints) -> Prediction:
        """Returns what the next group of each of these rows will find."""
        is_seen = self._levels[indices] > 0
        chances, rare, bank = self._raw(indices, is_seen)
        return self._corrected(chances, rare, bank, is_seen)

    def predict_unseen(self) -> tuple[Prediction, Floats]:
        """Returns what the first groups of each kind of prompts will find, and how many rows of it were never seen."""
        kinds = np.flatnonzero(self._num_unseen)
        chances, rare = self._chances(*self._priors_of(kinds))
        is_seen = np.zeros(len(kinds), dtype=np.bool_)
        prediction = self._corrected(chances, rare, np.zeros(len(kinds), dtype=np.int64), is_seen)
        return prediction, self._num_unseen[kinds].astype(np.float64)

    def means(self, indices: Ints) -> Floats:
        """Returns the mean of the posterior of each of these rows under the present policy."""
        alpha, beta = self._posteriors(indices, self._levels[indices] > 0)
        return alpha / (alpha + beta)

    def observed_rates(self, indices: Ints) -> Floats:
        """Returns the share of correct completions in the past groups of each of these rows, recent ones counting more."""
        correct, wrong = self._correct[indices].astype(np.float64), self._wrong[indices].astype(np.float64)
        return correct / np.maximum(correct + wrong, 1e-9)

    def frac_by_rate(self, low: float = 0.1, high: float = 0.9) -> tuple[float, float]:
        """
        Returns the shares of seen rows whose posterior has a mean below `low`, and above `high`.

        Of a large dataset, some 4,096 rows are looked at, evenly spread. NaN: no row was seen.
        """
        indices = np.arange(0, self.num_rows, max(1, self.num_rows // _MAX_LOOKED_AT))
        indices = indices[self._levels[indices] > 0]
        if not len(indices):
            return math.nan, math.nan
        means = self.means(indices)
        return float((means < low).mean()), float((means > high).mean())

    def see_rewards(self, lowest: float, highest: float) -> None:
        """Learns between which rewards completions lie; those of `filter_range` have their scale."""
        low, high = min(lowest, self._reward_range[0]), max(highest, self._reward_range[1])
        if (low, high) != self._reward_range:
            self._reward_range = (low, high)
            self._set_counts()

    def observe(self, outcomes: Outcomes) -> None:
        """Learns what groups found."""
        indices, num_correct, num_scored, is_informative = outcomes
        if not len(indices):
            return
        is_seen, is_scored = self._levels[indices] > 0, num_scored > 0
        chances, _, bank = self._raw(indices, is_seen)
        self._correction.observe(chances, bank, is_informative)
        shares = num_correct / np.maximum(num_scored, 1.0)
        self._observe_progress(indices[is_seen & is_scored], shares[is_seen & is_scored])
        self._observe_law(indices, num_correct, num_scored, ~is_seen)
        # A group of which nothing could be scored taught nothing: as a wrong one.
        num_wrong = np.where(is_scored, num_scored - num_correct, float(self.num_generations))
        self._add(indices, is_seen, num_correct, num_wrong)
        np.subtract.at(self._num_unseen, self._kinds_of(indices[~is_seen]), 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the posteriors and the running estimates; JSON-able, the posteriors compressed."""
        return {
            "num_rows": self.num_rows,
            "num_kinds": self.num_kinds,
            "rows": {
                name: base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()
                for name, array in self._arrays().items()
            },
            "level": self._level,
            "moments": self._moments.tolist(),
            "num_unseen": self._num_unseen.tolist(),
            "correction": self._correction.state_dict(),
            "reward_range": list(self._reward_range),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continues with saved posteriors.

        Raises:
            `ValueError`: when they are of a dataset of another length, or with other kinds of rows.
        """
        for name in ("num_rows", "num_kinds"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"The saved pass rates have {name}={state[name]}, but here it is {getattr(self, name)}. "
                    f"{WAYS_TO_GO_ON}"
                )
        for name, array in self._arrays().items():
            array[:] = np.frombuffer(zlib.decompress(base64.b64decode(state["rows"][name])), dtype=array.dtype)
        self._level = state["level"]
        self._moments = np.array(state["moments"])
        self._priors = self._find_priors()
        self._num_unseen = np.array(state["num_unseen"])
        self._correction.load_state_dict(state["correction"])
        self._reward_range = (state["reward_range"][0], state["reward_range"][1])
        self._set_counts()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"correct": self._correct, "wrong": self._wrong, "levels": self._levels}

    def _set_counts(self) -> None:
        size = self.num_generations
        self._low, self._high = informative_counts(size, self.filter_range, self._reward_range)
        # Exact arithmetic, so that the best of these rates is the same on every machine.
        self._best_chance = max(
            float(
                sum(
                    math.comb(size, count) * Fraction(rate, 16) ** count * Fraction(16 - rate, 16) ** (size - count)
                    for count in range(self._low, self._high + 1)
                )
            )
            for rate in range(1, 16)
        )

    def _kinds_of(self, indices: Ints) -> Ints:
        return np.zeros(len(indices), dtype=np.int64) if self.kinds is None else self.kinds[indices].astype(np.int64)

    def _find_priors(self) -> tuple[Floats, Floats]:
        """Returns the Beta law of pass rates of each kind of prompts."""
        first, second = self._moments[-1, 1:] / self._moments[-1, 0]
        is_known = ~np.isnan(self._prior_rates)
        # A kind starts as all prompts are, or with the rate that is known of it and a wide law around that.
        mean = np.where(is_known, np.minimum(np.maximum(self._prior_rates, 0.02), 0.98), first)
        square = np.where(is_known, mean * mean + mean * (1.0 - mean) / 2.0, second)
        if self.num_kinds > 1:
            count, sum_first, sum_second = self._moments[:-1].T
            mean = (sum_first + _PRIOR_WEIGHT * mean) / (count + _PRIOR_WEIGHT)
            square = (sum_second + _PRIOR_WEIGHT * square) / (count + _PRIOR_WEIGHT)
        strength = (mean - square) / np.maximum(square - mean * mean, 1e-9)
        strength = np.minimum(np.maximum(strength, _MIN_STRENGTH), _MAX_STRENGTH)
        mean = np.minimum(np.maximum(mean, 1e-3), 1.0 - 1e-3)
        return mean * strength, (1.0 - mean) * strength

    def _priors_of(self, kinds: Ints) -> tuple[Floats, Floats]:
        return self._priors[0][kinds], self._priors[1][kinds]

    def _posteriors(self, indices: Ints, is_seen: Bools) -> tuple[Floats, Floats]:
        alpha, beta = self._priors_of(self._kinds_of(indices))
        alpha, beta = alpha + self._correct[indices], beta + self._wrong[indices]
        return _shifted(alpha, beta, self._progress(indices, is_seen))

    def _progress(self, indices: Ints, is_seen: Bools) -> Floats:
        """Returns the factor by which the policy's progress multiplied the odds since the last group of each row."""
        levels = np.where(is_seen, self._levels[indices].astype(np.float64), self._level)
        return self._level / levels

    def _raw(self, indices: Ints, is_seen: Bools) -> tuple[Floats, Floats, Ints]:
        """Returns the chances before they are corrected, and which correction is theirs."""
        alpha, beta = self._posteriors(indices, is_seen)
        return *self._chances(alpha, beta), np.where(is_seen, np.where(alpha > beta, 2, 1), 0)

    def _corrected(self, chances: Floats, rare: Floats, bank: Ints, is_seen: Bools) -> Prediction:
        corrected = self._correction.apply(chances, bank)
        # What corrects the probability to be informative corrects that of its part alike.
        return Prediction(corrected, rare * (corrected / np.maximum(chances, _MIN_CHANCE)), is_seen)

    def _chances(self, alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
        """Returns the probability that a group is informative, and that it is with few correct completions."""
        size, low, high = self.num_generations, self._low, self._high
        if low > high:
            return np.zeros_like(alpha), np.zeros_like(alpha)
        max_rare = min(max_rare_count(size), high)
        from_below = beta_binomial_masses(alpha, beta, size, range(max(low, max_rare + 1)))
        from_above = beta_binomial_masses(beta, alpha, size, range(size - high))
        chances = 1.0 - _sum(from_below[:low]) - _sum(from_above)
        return np.maximum(chances, 0.0), _sum([np.zeros_like(alpha), *from_below[low : max_rare + 1]])

    def _observe_progress(self, indices: Ints, shares: Floats) -> None:
        if not len(indices):
            return
        predicted = self.means(indices)
        information = math.fsum(predicted * (1.0 - predicted))
        step = _DRIFT_GAIN * math.fsum(shares - predicted) / (information + _DRIFT_PRIOR)
        self._level *= 1.0 + min(max(step, -_MAX_DRIFT_STEP), _MAX_DRIFT_STEP)
        if not 1.0 / _MAX_LEVEL < self._level < _MAX_LEVEL:
            is_seen = self._levels > 0
            scaled = np.maximum(self._levels[is_seen].astype(np.float64) / self._level, _MIN_STORED_LEVEL)
            self._levels[is_seen] = np.minimum(scaled, 1.0 / _MIN_STORED_LEVEL)
            self._level = 1.0

    def _observe_law(self, indices: Ints, num_correct: Floats, num_scored: Floats, is_first: Bools) -> None:
        is_usable = is_first & (num_scored > 1)
        if not is_usable.any():
            return
        correct, scored = num_correct[is_usable], num_scored[is_usable]
        rates = correct / scored
        # The unbiased estimate of p^2 from a binomial count.
        squares = np.maximum(correct * (correct - 1.0), 0.0) / (scored * (scored - 1.0))
        kinds = self._kinds_of(indices[is_usable])
        new = np.stack(
            [
                np.bincount(kinds, weights=values, minlength=self.num_kinds)
                for values in (np.ones_like(rates), rates, squares)
            ],
            axis=1,
        )
        new = np.concatenate([new, [[float(len(rates)), math.fsum(rates), math.fsum(squares)]]])
        decay = _PRIOR_MEMORY / (_PRIOR_MEMORY + new[:, :1])
        self._moments = self._moments * decay + new
        self._priors = self._find_priors()

    def _add(self, indices: Ints, is_seen: Bools, num_correct: Floats, num_wrong: Floats) -> None:
        correct, wrong = self._correct[indices].astype(np.float64), self._wrong[indices].astype(np.float64)
        correct, wrong = _shifted(correct, wrong, self._progress(indices, is_seen))
        self._correct[indices] = self.forgetting * correct + num_correct
        self._wrong[indices] = self.forgetting * wrong + num_wrong
        self._levels[indices] = self._level


class _Correction:
    """
    What was found less what was predicted, where the same was predicted before.

    By the predicted probability, and apart for prompts never seen, mostly failed and mostly solved: drift of the policy and a
    wrong prior err in other directions for each.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(3 * _NUM_KNOTS)
        self._excess = np.zeros(3 * _NUM_KNOTS)

    def apply(self, chances: Floats, bank: Ints) -> Floats:
        knot, part = self._place(chances, bank)
        offsets = self._excess / (self._counts + _CORRECTION_WEIGHT)
        corrected = chances + (offsets[knot] * (1.0 - part) + offsets[knot + 1] * part)
        return np.minimum(np.maximum(corrected, _MIN_CHANCE), 1.0 - _MIN_CHANCE)

    def observe(self, chances: Floats, bank: Ints, is_informative: Bools) -> None:
        knot, part = self._place(chances, bank)
        knots, parts = np.concatenate([knot, knot + 1]), np.concatenate([1.0 - part, part])
        excess = np.tile(is_informative.astype(np.float64) - chances, 2)
        decay = _CORRECTION_MEMORY / (_CORRECTION_MEMORY + len(chances))
        size = len(self._counts)
        self._counts = self._counts * decay + np.bincount(knots, weights=parts, minlength=size)
        self._excess = self._excess * decay + np.bincount(knots, weights=parts * excess, minlength=size)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self._counts.tolist(), "excess": self._excess.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._counts, self._excess = np.array(state["counts"]), np.array(state["excess"])

    @staticmethod
    def _place(chances: Floats, bank: Ints) -> tuple[Ints, Floats]:
        place = chances * (_NUM_KNOTS - 1)
        knot = np.minimum(place.astype(np.int64), _NUM_KNOTS - 2)
        return bank * _NUM_KNOTS + knot, place - knot


def _moments_of(mean: float, strength: float) -> Floats:
    """Returns 1, E[p] and E[p^2] of a Beta law."""
    return np.array([1.0, mean, mean * mean + mean * (1.0 - mean) / (1.0 + strength)])


def _shifted(alpha: Floats, beta: Floats, factor: Floats) -> tuple[Floats, Floats]:
    """Multiplies the odds of the means by `factor`; the strength stays."""
    total, moved = alpha + beta, alpha * factor + beta
    scale = total / np.where(moved > 0, moved, 1.0)
    return alpha * factor * scale, beta * scale


def _sum(terms: Sequence[Floats]) -> Floats:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
