"""Which groups can teach: the constraint 0 < #{correct} < G of DAPO Eq. 11 (https://huggingface.co/papers/2503.14476)."""

import math
from collections.abc import Sequence
from enum import Enum


# Largest spread of equal rewards: float32 sums of the same terms in another order differ by about 1e-8.
REWARD_TOLERANCE = 1e-6


class GroupVerdict(str, Enum):
    """What the group filter says of a group. Only `INFORMATIVE` groups train."""

    INFORMATIVE = "informative"
    ALL_CORRECT = "all_correct"
    ALL_WRONG = "all_wrong"
    UNIFORM = "uniform"  # all rewards equal, at a value that is neither correct nor wrong
    UNSCORABLE = "unscorable"  # no completion has a reward
    OUT_OF_RANGE = "out_of_range"  # rewards differ, but their mean is outside `filter_range`
    TRUNCATED_OUT = "truncated_out"  # what differs from the mean is truncated, and truncated completions are masked


def is_correct(reward: float) -> bool:
    """
    Whether a filter reward means full marks: 1 or more. Rewards of {0, 1}, {-1, 1} and {0, 10} are all read rightly.

    >>> is_correct(1.0), is_correct(0.5), is_correct(-1.0)
    (True, False, False)
    """
    return reward >= 1.0 - REWARD_TOLERANCE


class GroupFilter:
    """
    Judges a group by one reward of its completions, before any shaping.

    Spread is measured as max - min, never as a standard deviation: the float32 standard deviation of equal rewards need
    not be zero, and that of a group without rewards is NaN.

    Args:
        mean_range (`tuple[float, float]`, *optional*):
            Keep only groups whose mean reward lies strictly between the two bounds.
        counts_masked (`bool`, *optional*, defaults to `True`):
            Whether completions that carry no loss count in the mean and the spread of their group. `False`: a group
            whose live completions are all alike is not informative, whatever the others are.

    Example:

    >>> group_filter = GroupFilter()
    >>> group_filter.judge([1.0, 0.0, 0.0, 0.0]).value
    'informative'
    >>> group_filter.judge([0.0, 0.0, float("nan"), 0.0]).value
    'all_wrong'
    """

    def __init__(self, mean_range: tuple[float, float] | None = None, counts_masked: bool = True):
        self.mean_range = mean_range
        self.counts_masked = counts_masked

    def judge(self, rewards: Sequence[float], is_live: Sequence[bool] | None = None) -> GroupVerdict:
        """
        Args:
            rewards (`Sequence[float]`):
                The filter reward of each of the G completions. NaN or infinite: not scored, ignored.
            is_live (`Sequence[bool]`, *optional*):
                Whether each completion carries loss. `None`: all do.
        """
        scored = [reward for reward in rewards if math.isfinite(reward)]
        if not scored:
            return GroupVerdict.UNSCORABLE
        lowest, highest = min(scored), max(scored)
        if highest - lowest <= REWARD_TOLERANCE:
            if is_correct(lowest):
                return GroupVerdict.ALL_CORRECT
            return GroupVerdict.ALL_WRONG if highest <= REWARD_TOLERANCE else GroupVerdict.UNIFORM
        live = [
            reward
            for reward, carries_loss in zip(rewards, is_live or [True] * len(rewards), strict=True)
            if carries_loss and math.isfinite(reward)
        ]
        if not live:
            return GroupVerdict.TRUNCATED_OUT
        counted = scored if self.counts_masked else live
        mean = math.fsum(counted) / len(counted)
        if self.mean_range is not None and not self.mean_range[0] < mean < self.mean_range[1]:
            return GroupVerdict.OUT_OF_RANGE
        if all(abs(reward - mean) <= REWARD_TOLERANCE for reward in live):
            return GroupVerdict.TRUNCATED_OUT
        return GroupVerdict.INFORMATIVE
