"""Figures over all the completions that were sampled for a batch, whether they train or not. NaN: over nothing."""

import math
from collections import Counter
from collections.abc import Sequence

from .group_filter import GroupVerdict, is_correct
from .groups import SampledGroup


def verdict_counts(groups: Sequence[SampledGroup]) -> dict[str, int]:
    """Returns the number of groups per verdict."""
    counts = Counter(group.verdict.value for group in groups)
    return {verdict.value: counts[verdict.value] for verdict in GroupVerdict}


def accuracy(groups: Sequence[SampledGroup]) -> float:
    """Returns the share of correct completions among the scored ones."""
    scored = [reward for group in groups for reward in group.filter_rewards if math.isfinite(reward)]
    return _mean([is_correct(reward) for reward in scored])


def group_figures(groups: Sequence[SampledGroup]) -> dict[str, float]:
    """
    Returns shares of groups by verdict, accuracy, and length in tokens by correctness.

    `sampled_accuracy` is the learning curve: the accuracy of a filtered batch is pulled towards one half by the filter
    itself.
    """
    counts = verdict_counts(groups)
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for group in groups:
        for reward, (_, length) in zip(group.filter_rewards, group.lengths, strict=True):
            if math.isfinite(reward):
                lengths[is_correct(reward)].append(length)

    def share(verdict: GroupVerdict) -> float:
        return counts[verdict.value] / len(groups) if groups else math.nan

    return {
        "acceptance_rate": share(GroupVerdict.INFORMATIVE),
        "frac_all_correct": share(GroupVerdict.ALL_CORRECT),
        "frac_all_wrong": share(GroupVerdict.ALL_WRONG),
        "frac_unscorable": share(GroupVerdict.UNSCORABLE),
        "sampled_accuracy": accuracy(groups),
        "length/correct": _mean(lengths[True]),
        "length/wrong": _mean(lengths[False]),
    }


def overlong_figures(groups: Sequence[SampledGroup], free_length: int, penalty_column: int) -> dict[str, float]:
    """
    Returns the figures of the soft overlong punishment.

    Args:
        groups (`Sequence[SampledGroup]`):
            The sampled groups.
        free_length (`int`):
            Longest completion without a punishment, L_max - L_cache, in tokens.
        penalty_column (`int`):
            Column of the rewards that holds the punishment.
    """
    penalties = [reward[penalty_column] for group in groups for reward in group.rewards]
    return {
        "overlong/frac": _mean([length > free_length for group in groups for _, length in group.lengths]),
        "overlong/penalty_mean": _mean([penalty for penalty in penalties if not math.isnan(penalty)]),
    }


def completion_figures(groups: Sequence[SampledGroup]) -> dict[str, float]:
    """Returns TRL's figures of completion length in tokens."""
    lengths = [completion for group in groups for _, completion in group.lengths]
    is_truncated = [truncated for group in groups for truncated in group.is_truncated]
    if not lengths:
        return {}
    terminated = [length for length, cut in zip(lengths, is_truncated, strict=True) if not cut] or [0]
    return {
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": _mean(is_truncated),
        "completions/mean_terminated_length": _mean(terminated),
        "completions/min_terminated_length": float(min(terminated)),
        "completions/max_terminated_length": float(max(terminated)),
    }


def max_rare_count(num_generations: int) -> int:
    """
    Most correct completions of a rare success: an eighth of the group, at least 1.

    >>> max_rare_count(8), max_rare_count(16)
    (1, 2)
    """
    return max(1, num_generations // 8)


def is_rare_success(group: SampledGroup) -> bool:
    """Whether a group is informative with few of its completions correct: an eighth of them, at least 1."""
    num_correct = sum(is_correct(reward) for reward in group.filter_rewards if math.isfinite(reward))
    is_informative = group.verdict is GroupVerdict.INFORMATIVE
    return is_informative and 1 <= num_correct <= max_rare_count(len(group.filter_rewards))


def frac_rare_success(groups: Sequence[SampledGroup]) -> float:
    """Returns the share of rare successes among informative groups."""
    informative = [group for group in groups if group.verdict is GroupVerdict.INFORMATIVE]
    return _mean([is_rare_success(group) for group in informative])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
