"""Groups with few correct completions: they are seldom found, and teach what the policy hardly knows."""

import math
from collections.abc import Sequence

from .judge import GroupVerdict, SampledGroup


def max_rare_count(num_generations: int) -> int:
    """
    Most correct completions of a rare success: an eighth of the group, at least 1.

    >>> max_rare_count(8), max_rare_count(16)
    (1, 2)
    """
    return max(1, num_generations // 8)


def is_rare_success(group: SampledGroup) -> bool:
    """Whether a group is informative with few of its completions correct: an eighth of them, at least 1."""
    is_informative = group.verdict is GroupVerdict.INFORMATIVE
    return is_informative and 1 <= group.marks.count(True) <= max_rare_count(len(group.marks))


def frac_rare_success(groups: Sequence[SampledGroup]) -> float:
    """Returns the share of rare successes among informative groups. NaN: there are none."""
    informative = [group for group in groups if group.verdict is GroupVerdict.INFORMATIVE]
    return sum(map(is_rare_success, informative)) / len(informative) if informative else math.nan
