"""How many prompts the next generation round samples."""

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


# The first round knows nothing: 8 imagined groups, half of them informative. Old rounds fade with a memory of about 3
# batches, since acceptance drifts as the policy learns.
_PRIOR_NUM_GROUPS = 8.0
_PRIOR_ACCEPTANCE = 0.5
_NUM_BATCHES_REMEMBERED = 3.0
# A round is planned for this confidence when costs are not measured yet, and when few rounds are left.
_DEFAULT_CONFIDENCE = 0.9
_FEW_ROUNDS = 2
# Terms of a sum below this part of the first are left out.
_NEGLIGIBLE = 1e-17
# Kept surplus beyond this part of a batch counts for nothing: it may grow too old to train.
_USEFUL_SURPLUS = 0.5
# A round that fills the batch but for this probability is the largest that is thought of.
_CERTAIN = 1e-4


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """
    Size of one generation round, and why.

    Attributes:
        num_prompts (`int`):
            Prompts to sample, each `num_generations` times.
        num_needed (`int`):
            Informative groups that the batch still lacks.
        acceptance_rate (`float`):
            Estimated share of informative groups, in (0, 1).
        fill_probability (`float`):
            Probability that the round fills the batch at that rate, or with the predictions for its prompts.
        expected_seconds (`float` or `None`):
            Expected time until the batch is full. `None`: costs are not measured, or not asked for.
    """

    num_prompts: int
    num_needed: int
    acceptance_rate: float
    fill_probability: float
    expected_seconds: float | None = None


def prob_at_least(num_needed: int, num_trials: int, probability: float) -> float:
    """
    P(Binomial(num_trials, probability) >= num_needed), summed in log space.

    >>> round(prob_at_least(1, 2, 0.5), 6)
    0.75
    """
    if num_needed <= 0:
        return 1.0
    if num_trials < num_needed:
        return 0.0
    # The tail that begins at the threshold and goes away from the mode: its terms fall, so that few count, and small
    # probabilities stay exact.
    if num_needed > (num_trials + 1) * probability:
        return min(1.0, _tail(num_trials, probability, num_needed, upwards=True))
    return max(0.0, 1.0 - _tail(num_trials, probability, num_needed - 1, upwards=False))


def _tail(num_trials: int, probability: float, start: int, upwards: bool) -> float:
    """Returns P(Binomial(num_trials, probability) >= start), or <= start. Quick where `start` is not on the mode's way."""
    (mass,) = _masses(num_trials, probability, start, start + 1)
    odds = probability / (1.0 - probability)
    terms, k, negligible = [mass], start, _NEGLIGIBLE * mass
    while mass > negligible and k != (num_trials if upwards else 0):
        mass *= (num_trials - k) / (k + 1) * odds if upwards else k / (num_trials - k + 1) / odds
        k += 1 if upwards else -1
        terms.append(mass)
    return math.fsum(terms)


def _masses(num_trials: int, probability: float, start: int, stop: int) -> list[float]:
    """Returns P(Binomial(num_trials, probability) = k) for `k` from `start` to `stop` - 1."""
    log_p, log_q = math.log(probability), math.log1p(-probability)
    log_trials = math.lgamma(num_trials + 1)
    return [
        math.exp(
            log_trials - math.lgamma(k + 1) - math.lgamma(num_trials - k + 1) + k * log_p + (num_trials - k) * log_q
        )
        for k in range(start, stop)
    ]


# Without rounds the same question comes up at every exchange, between two steps of the engine.
@functools.lru_cache(maxsize=1)
def _fewest_trials(num_needed: int, probability: float, confidence: float, most: int) -> int:
    """Returns the fewest trials, at most so many, that have `num_needed` successes with this confidence."""
    low, high = num_needed, most
    while low < high:
        middle = (low + high) // 2
        if prob_at_least(num_needed, middle, probability) >= confidence:
            high = middle
        else:
            low = middle + 1
    return low


class Prospect(NamedTuple):
    """
    What a round of the first so many prompts will find, as their own probabilities say.

    Attributes:
        fill_probability (`float`):
            Probability that it finds as many informative groups as are needed.
        shortfall (`float`):
            Expected number of those that it does not find.
        num_expected (`float`):
            Expected number of informative groups, needed or not.
    """

    fill_probability: float
    shortfall: float
    num_expected: float


def prospects(num_needed: int, chances: Iterable[float]) -> Iterable[Prospect]:
    """
    Yields the prospect of a round of 1, 2, ... of the prompts with these probabilities to be informative.

    The number found has a Poisson binomial law; the part of it below `num_needed` is carried from prompt to prompt.

    >>> [round(prospect.fill_probability, 6) for prospect in prospects(2, [0.5, 0.5, 1.0])]
    [0.0, 0.25, 0.75]
    """
    below = np.zeros(num_needed)
    below[0] = 1.0
    moved = np.empty(num_needed)
    fill_probability, shortfall, num_expected = 0.0, float(num_needed), 0.0
    for chance in chances:
        shortfall -= chance * (1.0 - fill_probability)
        num_expected += chance
        np.multiply(below, chance, out=moved)
        below *= 1.0 - chance
        below[1:] += moved[:-1]
        fill_probability += float(moved[-1])
        yield Prospect(fill_probability, max(0.0, shortfall), num_expected)


class RoundCost:
    """
    What a round costs: seconds to begin it, and seconds for each prompt.

    A line through the measured rounds by weighted least squares. Recent rounds weigh more, since completions grow longer
    in training. Rounds of one size alone cannot tell the two costs apart; a prior then gives each half of the time.

    Example:

    >>> cost = RoundCost()
    >>> for num_prompts in (10, 20, 40) * 20:
    ...     cost.observe(num_prompts, seconds=3.0 + 0.5 * num_prompts)
    >>> round(cost.to_begin, 2), round(cost.per_prompt, 3)
    (3.1, 0.497)
    """

    _MEMORY_ROUNDS = 20.0
    _PRIOR_WEIGHT = 0.1

    def __init__(self) -> None:
        # Weighted sums of 1, x, y, x*x and x*y over the rounds, x in prompts and y in seconds.
        self._sums = [0.0] * 5

    @property
    def is_measured(self) -> bool:
        """Whether a round has been measured."""
        return self._sums[0] > 0

    @property
    def to_begin(self) -> float:
        """Seconds that a round takes however small it is."""
        return self._line()[0]

    @property
    def per_prompt(self) -> float:
        """Seconds that one more prompt in a round takes."""
        return self._line()[1]

    def observe(self, num_prompts: int, seconds: float) -> None:
        """Learns from a round of `num_prompts` prompts that took `seconds`."""
        decay = math.exp(-1 / self._MEMORY_ROUNDS)
        new = (1.0, num_prompts, seconds, num_prompts**2, num_prompts * seconds)
        self._sums = [decay * old + value for old, value in zip(self._sums, new, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Returns the running sums."""
        return {"sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with saved sums."""
        self._sums = list(state["sums"])

    def _line(self) -> tuple[float, float]:
        # The prior is one imagined empty round that took half of the mean time. It weighs little, but decides when all
        # rounds had one size.
        weight, x, y, xx, xy = self._sums
        prior = self._PRIOR_WEIGHT
        prior_seconds = 0.5 * y / weight
        weight, y = weight + prior, y + prior * prior_seconds
        slope = max(0.0, (weight * xy - x * y) / (weight * xx - x * x))
        return max(0.0, (y - slope * x) / weight), slope


class RefillPlanner:
    """
    Plans the smallest round that fills the batch with a given probability, or the round that is soonest done.

    The acceptance rate is a running estimate with a prior: it starts sane, one odd round does not swing it, and it
    follows the drift of training.

    Args:
        num_groups (`int`):
            Groups of a full generation batch.
        confidence (`float` or `None`):
            Probability with which one round shall fill what is missing, in (0, 1). `None`: the size with the least
            expected time to a full batch, by the measured costs of a round.
        max_prompts (`int`):
            Most prompts of one round.
        multiple_of (`int`, *optional*, defaults to `1`):
            A round is a multiple of so many prompts, so that every rank samples equally many completions.
        keeps_surplus (`bool`, *optional*, defaults to `False`):
            Whether informative groups beyond the batch train in the next one, and so are no waste of time.

    Example:

    >>> planner = RefillPlanner(num_groups=64, confidence=0.9, max_prompts=1024)
    >>> planner.observe(num_informative=32, num_sampled=160)
    >>> planner.plan(num_needed=64).num_prompts
    352
    """

    def __init__(
        self,
        num_groups: int,
        confidence: float | None,
        max_prompts: int,
        multiple_of: int = 1,
        keeps_surplus: bool = False,
    ):
        self.num_groups = num_groups
        self.keeps_surplus = keeps_surplus
        self.confidence = confidence
        self.multiple_of = multiple_of
        # A cap between two multiples would never be met: it is rounded down, but one multiple must be allowed.
        self.max_prompts = max(max_prompts // multiple_of, 1) * multiple_of
        self.cost = RoundCost()
        self._num_informative = _PRIOR_ACCEPTANCE * _PRIOR_NUM_GROUPS
        self._num_sampled = _PRIOR_NUM_GROUPS

    @property
    def acceptance_rate(self) -> float:
        """Estimated share of informative groups, strictly between 0 and 1."""
        # Half a group on either side: all-wrong rounds lead to large rounds, never to infinite ones.
        return (self._num_informative + 0.5) / (self._num_sampled + 1.0)

    def plan(
        self, num_needed: int, rounds_left: int | None = None, chances: Iterable[float] | None = None
    ) -> RoundPlan:
        """
        Returns the round for a batch that lacks `num_needed` informative groups.

        Args:
            num_needed (`int`):
                Informative groups missing.
            rounds_left (`int`, *optional*):
                Rounds that the batch may still use, this one included. With few left a round is planned to fill the batch,
                whatever it costs. `None`: no limit.
            chances (`Iterable[float]`, *optional*):
                Probability to be informative of each of the prompts that would be drawn next, in their order, and so on as
                long as is asked. `None`: all prompts have the estimated acceptance rate.
        """
        has_time = rounds_left is None or rounds_left > _FEW_ROUNDS
        if self.confidence is None and self.cost.is_measured and has_time:
            return self._soonest(num_needed) if chances is None else self._soonest_of(num_needed, chances)
        confidence = self.confidence or _DEFAULT_CONFIDENCE
        if chances is None:
            return self._smallest_confident(num_needed, confidence)
        return self._smallest_confident_of(num_needed, confidence, chances)

    def groups_in_flight(self, num_needed: int, chances: Iterable[float] | None = None) -> RoundPlan:
        """
        Returns how many groups should be in flight at once to find `num_needed` informative ones, without rounds.

        As many as a round would sample, and never more prompts than a round may have. What turns out to be missing is
        started as soon as that is known, so that the time of a round does not matter.

        Args:
            num_needed (`int`):
                Informative groups missing.
            chances (`Iterable[float]`, *optional*):
                Probability to be informative of each group that is in flight, and then of the prompts that would be drawn
                next. `None`: all have the estimated acceptance rate.
        """
        confidence = self.confidence or _DEFAULT_CONFIDENCE
        if chances is None:
            return self._smallest_confident(num_needed, confidence)
        return self._smallest_confident_of(num_needed, confidence, chances)

    def observe(self, num_informative: int, num_sampled: int, seconds: float | None = None) -> None:
        """Learns from a round in which `num_informative` of `num_sampled` groups were informative, in `seconds`."""
        # Forgetting is paced by groups, not by rounds, so that many small rounds weigh what one large round does.
        decay = math.exp(-num_sampled / (_NUM_BATCHES_REMEMBERED * max(self.num_groups, _PRIOR_NUM_GROUPS)))
        self._num_informative = decay * self._num_informative + num_informative
        self._num_sampled = decay * self._num_sampled + num_sampled
        if seconds is not None:
            self.cost.observe(num_sampled, seconds)

    def state_dict(self) -> dict[str, Any]:
        """Returns the running estimates."""
        return {
            "num_informative": self._num_informative,
            "num_sampled": self._num_sampled,
            "cost": self.cost.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with saved estimates."""
        self._num_informative = state["num_informative"]
        self._num_sampled = state["num_sampled"]
        self.cost.load_state_dict(state["cost"])

    def _smallest_confident(self, num_needed: int, confidence: float) -> RoundPlan:
        rate = self.acceptance_rate
        low = _fewest_trials(num_needed, rate, confidence, max(num_needed, self.max_prompts))
        num_prompts = self._shareable(low)
        return RoundPlan(num_prompts, num_needed, rate, prob_at_least(num_needed, num_prompts, rate))

    def _smallest_confident_of(self, num_needed: int, confidence: float, chances: Iterable[float]) -> RoundPlan:
        """Returns the fewest of these prompts that fill the batch with this confidence."""
        prospect = Prospect(0.0, float(num_needed), 0.0)
        num_prompts = 0
        for num_prompts, prospect in enumerate(itertools.islice(prospects(num_needed, chances), self.max_prompts), 1):
            if prospect.fill_probability >= confidence and num_prompts % self.multiple_of == 0:
                break
        return RoundPlan(num_prompts, num_needed, prospect.num_expected / num_prompts, prospect.fill_probability)

    def _soonest_of(self, num_needed: int, chances: Iterable[float]) -> RoundPlan:
        """Returns the round of these prompts with the least expected time to a full batch."""
        # Up to where the batch is full for certain, and beyond that as far as surplus is of use.
        seen: list[Prospect] = []
        most_expected = num_needed + (_USEFUL_SURPLUS * self.num_groups if self.keeps_surplus else 0.0)
        for prospect in itertools.islice(prospects(num_needed, chances), self.max_prompts):
            seen.append(prospect)
            is_certain = prospect.fill_probability >= 1.0 - _CERTAIN and prospect.num_expected >= most_expected
            if is_certain and len(seen) % self.multiple_of == 0:
                break
        rate = seen[-1].num_expected / len(seen)
        begin, per_prompt = self.cost.to_begin, self.cost.per_prompt

        def expected_seconds(num_prompts: int) -> float:
            fill_probability, shortfall, num_expected = seen[num_prompts - 1]
            seconds = begin + per_prompt * num_prompts
            seconds += (1.0 - fill_probability) * begin + shortfall * per_prompt / rate
            if self.keeps_surplus:
                surplus = num_expected - num_needed + shortfall
                seconds -= min(surplus, _USEFUL_SURPLUS * self.num_groups) * per_prompt / rate
            return seconds

        best = min(range(self.multiple_of, len(seen) + 1, self.multiple_of), key=expected_seconds)
        prospect = seen[best - 1]
        return RoundPlan(
            best, num_needed, prospect.num_expected / best, prospect.fill_probability, expected_seconds(best)
        )

    def _soonest(self, num_needed: int) -> RoundPlan:
        # From the size that fills the batch on average down to half of it and up to where filling it is certain, in
        # steps of 2 %: the expected time is flat around its minimum.
        rate = self.acceptance_rate
        sizes = {self._shareable(math.ceil(num_needed / rate * (0.5 * 1.02**step))) for step in range(110)}
        best = min(sorted(sizes), key=lambda size: self._expected_seconds(size, num_needed, rate))
        seconds = self._expected_seconds(best, num_needed, rate)
        return RoundPlan(best, num_needed, rate, prob_at_least(num_needed, best, rate), seconds)

    def _expected_seconds(self, num_prompts: int, num_needed: int, rate: float) -> float:
        """Returns the time of this round, and of one more of the expected size for what it leaves missing."""
        begin, per_prompt = self.cost.to_begin, self.cost.per_prompt
        seconds, shortfall = begin + per_prompt * num_prompts, 0.0
        for found, mass in enumerate(_masses(num_prompts, rate, 0, min(num_needed, num_prompts + 1))):
            seconds += mass * (begin + per_prompt * (num_needed - found) / rate)
            shortfall += mass * (num_needed - found)
        if self.keeps_surplus:
            # The next batch need not sample what this one keeps for it.
            surplus = num_prompts * rate - num_needed + shortfall
            seconds -= min(surplus, _USEFUL_SURPLUS * self.num_groups) * per_prompt / rate
        return seconds

    def _shareable(self, num_prompts: int) -> int:
        return min(-(-num_prompts // self.multiple_of) * self.multiple_of, self.max_prompts)
