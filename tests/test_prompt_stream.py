import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dapo.sampling.prompt_stream import PromptStream


@settings(deadline=None, max_examples=60)
@given(num_rows=st.integers(1, 400), seed=st.integers(-5, 2**40))
def test_every_pass_holds_every_row_once(num_rows, seed):
    draws = PromptStream(num_rows, seed).peek(3 * num_rows)
    for start in range(0, 3 * num_rows, num_rows):
        assert sorted(draw.index for draw in draws[start : start + num_rows]) == list(range(num_rows))


def test_passes_and_seeds_have_different_orders():
    orders = set()
    for seed in range(3):
        indices = [draw.index for draw in PromptStream(100, seed).peek(300)]
        orders |= {tuple(indices[start : start + 100]) for start in (0, 100, 200)}
    assert len(orders) == 9


def test_first_row_is_uniform_over_seeds():
    # 6,000 seeds over 6 rows: 1,000 each, standard deviation 29.
    counts = Counter(PromptStream(6, seed).peek(1)[0].index for seed in range(6000))
    assert set(counts) == set(range(6))
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_neighbouring_rows_do_not_stay_neighbours():
    # A random permutation of 1,000 rows keeps on average one row just behind its predecessor.
    indices = [draw.index for draw in PromptStream(1000, seed=3).peek(1000)]
    assert sum(after == before + 1 for before, after in itertools.pairwise(indices)) < 8


def test_draws_depend_on_the_position_alone():
    stream = PromptStream(37, seed=5)
    expected = stream.peek(200)
    stream.seek(111)
    assert stream.peek(20) == expected[111:131]


def test_peeking_does_not_move_the_stream():
    stream = PromptStream(10)
    assert stream.peek(4) == stream.peek(4)
    assert stream.position == 0


def test_billion_rows_cost_what_a_thousand_do():
    stream = PromptStream(10**9, seed=1)
    stream.seek(5 * 10**9 + 123)
    assert all(0 <= draw.index < 10**9 for draw in stream.peek(100))
    assert stream.num_passes == pytest.approx(5.000000123)


def test_unshuffled_stream_keeps_the_order_of_the_dataset():
    assert [draw.index for draw in PromptStream(3, shuffle=False).peek(5)] == [0, 1, 2, 0, 1]


def test_saved_stream_continues():
    stream = PromptStream(37, seed=5)
    stream.seek(50)
    resumed = PromptStream(37, seed=5)
    resumed.load_state_dict(stream.state_dict())
    assert resumed.peek(10) == stream.peek(10)


@pytest.mark.parametrize("other", [PromptStream(38, seed=5), PromptStream(37, seed=6), PromptStream(37, 5, False)])
def test_stream_of_another_order_is_refused(other):
    with pytest.raises(ValueError, match="has another order than that of this run"):
        other.load_state_dict(PromptStream(37, seed=5).state_dict())


def test_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="num_rows is 0"):
        PromptStream(0)
