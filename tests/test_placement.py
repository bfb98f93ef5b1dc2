from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dapo.sampling.placement import deal_prompts, place_groups, prompts_multiple


@given(num_generations=st.integers(2, 16), num_ranks=st.integers(1, 12))
def test_prompts_multiple_is_the_smallest_that_divides_evenly(num_generations, num_ranks):
    multiple = prompts_multiple(num_generations, num_ranks)
    assert [n for n in range(1, multiple + 1) if n * num_generations % num_ranks == 0] == [multiple]


@given(num_prompts=st.integers(1, 40), num_ranks=st.integers(1, 8))
def test_every_prompt_is_dealt_once(num_prompts, num_ranks):
    assert sorted(deal_prompts(num_prompts, num_ranks)) == list(range(num_prompts))


@st.composite
def collected_groups(draw):
    num_ranks = draw(st.integers(1, 8))
    num_generations = draw(st.integers(2, 6))
    num_groups = draw(st.integers(1, 4)) * prompts_multiple(num_generations, num_ranks)
    num_found = draw(st.integers(0, num_groups))
    sources = []
    for _ in range(num_found):
        first = draw(st.integers(0, num_ranks - 1))
        cut = draw(st.integers(1, num_generations))
        last = min(first + 1, num_ranks - 1)
        sources.append([first] * cut + [last] * (num_generations - cut))
    return sources, num_groups, num_generations, num_ranks


@settings(deadline=None)
@given(collected_groups())
def test_batch_holds_every_group_whole_and_every_rank_its_share(case):
    sources, num_groups, num_generations, num_ranks = case
    moves = place_groups(sources, num_groups, num_generations, num_ranks)
    assert len(moves) == num_groups * num_generations
    for start in range(0, len(moves), num_generations):
        group = moves[start : start + num_generations]
        assert len({move.group for move in group}) == 1
        assert [move.sample for move in group] == list(range(num_generations))
    placed = Counter(move.group for move in moves if move.group is not None)
    assert placed == dict.fromkeys(range(len(sources)), num_generations)
    share = len(moves) // num_ranks
    assert [move.target for move in moves] == [row // share for row in range(len(moves))]
    assert all(move.group is None or move.source == sources[move.group][move.sample] for move in moves)


def test_one_rank_keeps_the_stream_order():
    moves = place_groups([[0, 0]] * 3, num_groups=3, num_generations=2, num_ranks=1)
    assert [move.group for move in moves] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_only_the_imbalance_moves(num_ranks):
    # Rank 0 found 2 groups too many and the last rank 2 too few, out of 4 on each.
    found = [4] * num_ranks
    found[0] += 2
    found[-1] -= 2
    sources = [[rank] * 3 for rank, count in enumerate(found) for _ in range(count)]
    moves = place_groups(sources, num_groups=4 * num_ranks, num_generations=3, num_ranks=num_ranks)
    assert sum(move.source != move.target for move in moves) == 2 * 3
