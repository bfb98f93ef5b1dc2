"""
Where completions are generated and where they train.

TRL's layout is rank-major: of R rows in all, rank r of W holds rows [r * R / W, (r + 1) * R / W), and each run of G rows
is one group. A group may straddle two ranks.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Move(NamedTuple):
    """
    One row of the assembled batch.

    Attributes:
        group (`int` or `None`):
            Index of its group among the accepted ones. `None`: the batch is not full and the row carries no weight.
        sample (`int`):
            Index of the completion in its group, 0 to G - 1.
        source (`int`):
            Rank that generated it.
        target (`int`):
            Rank that trains it.
    """

    group: int | None
    sample: int
    source: int
    target: int


def prompts_multiple(num_generations: int, num_ranks: int) -> int:
    """
    Smallest number of prompts whose completions divide evenly among the ranks.

    >>> prompts_multiple(num_generations=8, num_ranks=2), prompts_multiple(num_generations=4, num_ranks=6)
    (1, 3)
    """
    return num_ranks // math.gcd(num_ranks, num_generations)


def deal_prompts(num_prompts: int, num_ranks: int) -> list[int]:
    """
    Order in which the prompts of a round are laid out, rank after rank.

    Dealt in turn where they divide evenly: the batch is cut off at its N-th informative group in stream order, and what
    lies behind the cut is then spread over all ranks, so that few rollouts have to move.

    >>> deal_prompts(num_prompts=6, num_ranks=2), deal_prompts(num_prompts=3, num_ranks=2)
    ([0, 2, 4, 1, 3, 5], [0, 1, 2])
    """
    if num_prompts % num_ranks:
        return list(range(num_prompts))
    return [prompt for rank in range(num_ranks) for prompt in range(rank, num_prompts, num_ranks)]


def place_groups(
    sources: Sequence[Sequence[int]], num_groups: int, num_generations: int, num_ranks: int
) -> list[Move]:
    """
    Lays accepted groups out as a batch so that most rows train where they were generated.

    Args:
        sources (`Sequence[Sequence[int]]`):
            For each accepted group, in stream order, the rank that generated each of its G completions.
        num_groups (`int`):
            Groups of a full batch, at least as many as there are accepted ones.
        num_generations (`int`):
            Completions per group G.
        num_ranks (`int`):
            World size W. It divides the number of rows.

    Returns:
        `list[Move]`: the rows of the batch, rank-major. Groups of one rank keep their stream order; with one rank the
        whole batch is in stream order.

    Example:

    >>> moves = place_groups([[1], [0], [1], [1]], num_groups=4, num_generations=1, num_ranks=2)
    >>> [(move.group, move.source, move.target) for move in moves]
    [(1, 0, 0), (3, 1, 0), (0, 1, 1), (2, 1, 1)]
    """
    rows_per_rank = num_groups * num_generations // num_ranks
    middle = num_generations // 2
    # A group is at home on the rank of its middle row, and so is a slot: exact where neither straddles ranks.
    free_slots: list[list[int]] = [[] for _ in range(num_ranks)]
    for slot in range(num_groups):
        free_slots[(slot * num_generations + middle) // rows_per_rank].append(slot)
    group_in_slot: dict[int, int] = {}
    homeless = []
    for group, group_sources in enumerate(sources):
        home_slots = free_slots[group_sources[middle]]
        if home_slots:
            group_in_slot[home_slots.pop(0)] = group
        else:
            homeless.append(group)
    # Not strict: what is left over when the batch is not full stays without a group.
    group_in_slot.update(zip(sorted(slot for slots in free_slots for slot in slots), homeless, strict=False))

    moves = []
    for slot in range(num_groups):
        group_or_none = group_in_slot.get(slot)
        for sample in range(num_generations):
            target = (slot * num_generations + sample) // rows_per_rank
            source = target if group_or_none is None else sources[group_or_none][sample]
            moves.append(Move(group_or_none, sample, source, target))
    return moves
