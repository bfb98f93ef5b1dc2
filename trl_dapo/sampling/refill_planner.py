"""How many prompts the next generation round samples."""

import math
from dataclasses import dataclass
from typing import Any


# The first round knows nothing: 8 imagined groups, half of them informative. Old rounds fade with a memory of about 2
# batches, since acceptance drifts as the policy learns.
_PRIOR_NUM_GROUPS = 8.0
_PRIOR_ACCEPTANCE = 0.5
_NUM_BATCHES_REMEMBERED = 2.0


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
            Probability that the round fills the batch at that rate.
    """

    num_prompts: int
    num_needed: int
    acceptance_rate: float
    fill_probability: float


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
    log_p, log_q = math.log(probability), math.log1p(-probability)
    log_trials = math.lgamma(num_trials + 1)

    def mass(successes: int) -> float:
        return math.exp(
            log_trials
            - math.lgamma(successes + 1)
            - math.lgamma(num_trials - successes + 1)
            + successes * log_p
            + (num_trials - successes) * log_q
        )

    # The shorter tail is summed, which is faster and keeps small probabilities exact.
    if num_needed <= num_trials // 2:
        return max(0.0, 1.0 - math.fsum(mass(k) for k in range(num_needed)))
    return min(1.0, math.fsum(mass(k) for k in range(num_needed, num_trials + 1)))


class RefillPlanner:
    """
    Plans the smallest round that fills the batch with a given probability.

    The acceptance rate is a running estimate with a prior: it starts sane, one odd round does not swing it, and it
    follows the drift of training.

    Args:
        num_groups (`int`):
            Groups of a full generation batch.
        confidence (`float`):
            Probability with which one round shall fill what is missing, in (0, 1).
        max_prompts (`int`):
            Most prompts of one round.
        multiple_of (`int`, *optional*, defaults to `1`):
            A round is a multiple of so many prompts, so that every rank samples equally many completions.

    Example:

    >>> planner = RefillPlanner(num_groups=64, confidence=0.9, max_prompts=1024)
    >>> planner.observe(num_informative=32, num_sampled=160)
    >>> planner.plan(num_needed=64).num_prompts
    356
    """

    def __init__(self, num_groups: int, confidence: float, max_prompts: int, multiple_of: int = 1):
        self.num_groups = num_groups
        self.confidence = confidence
        self.multiple_of = multiple_of
        # A cap between two multiples would never be met: it is rounded down, but one multiple must be allowed.
        self.max_prompts = max(max_prompts // multiple_of, 1) * multiple_of
        self._num_informative = _PRIOR_ACCEPTANCE * _PRIOR_NUM_GROUPS
        self._num_sampled = _PRIOR_NUM_GROUPS

    @property
    def acceptance_rate(self) -> float:
        """Estimated share of informative groups, strictly between 0 and 1."""
        # Half a group on either side: all-wrong rounds lead to large rounds, never to infinite ones.
        return (self._num_informative + 0.5) / (self._num_sampled + 1.0)

    def plan(self, num_needed: int) -> RoundPlan:
        """Returns the round for a batch that lacks `num_needed` informative groups."""
        rate = self.acceptance_rate
        low, high = num_needed, max(num_needed, self.max_prompts)
        while low < high:
            middle = (low + high) // 2
            if prob_at_least(num_needed, middle, rate) >= self.confidence:
                high = middle
            else:
                low = middle + 1
        num_prompts = min(-(-low // self.multiple_of) * self.multiple_of, self.max_prompts)
        return RoundPlan(num_prompts, num_needed, rate, prob_at_least(num_needed, num_prompts, rate))

    def observe(self, num_informative: int, num_sampled: int) -> None:
        """Learns from a round in which `num_informative` of `num_sampled` groups were informative."""
        # Forgetting is paced by groups, not by rounds, so that many small rounds weigh what one large round does.
        decay = math.exp(-num_sampled / (_NUM_BATCHES_REMEMBERED * max(self.num_groups, _PRIOR_NUM_GROUPS)))
        self._num_informative = decay * self._num_informative + num_informative
        self._num_sampled = decay * self._num_sampled + num_sampled

    def state_dict(self) -> dict[str, Any]:
        """Returns the running estimate."""
        return {"num_informative": self._num_informative, "num_sampled": self._num_sampled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with a saved estimate."""
        self._num_informative = state["num_informative"]
        self._num_sampled = state["num_sampled"]
