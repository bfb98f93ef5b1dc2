import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_dapo.sampling.judge import GroupFilter, GroupVerdict


NAN = float("nan")


@pytest.mark.parametrize(
    ("rewards", "verdict"),
    [
        ([1.0, 0.0], GroupVerdict.INFORMATIVE),
        ([1.0, -1.0, -1.0], GroupVerdict.INFORMATIVE),
        ([1.0, 1.0], GroupVerdict.ALL_CORRECT),
        ([10.0, 10.0], GroupVerdict.ALL_CORRECT),
        ([0.0, 0.0], GroupVerdict.ALL_WRONG),
        ([-1.0, -1.0], GroupVerdict.ALL_WRONG),
        ([0.3, 0.3], GroupVerdict.UNIFORM),
        ([NAN, NAN], GroupVerdict.UNSCORABLE),
        ([math.inf, NAN], GroupVerdict.UNSCORABLE),
        ([NAN, 1.0, 0.0], GroupVerdict.INFORMATIVE),
        ([NAN, 1.0, 1.0], GroupVerdict.ALL_CORRECT),
        ([math.inf, 0.0, 0.0], GroupVerdict.ALL_WRONG),
    ],
)
def test_verdict_of_a_group(rewards, verdict):
    assert GroupFilter().judge(rewards) is verdict


def test_float_noise_is_no_spread():
    # 0.1 + 0.2 in float32 and in float64 differ by 1.2e-8; a spread of 2e-6 is a real one.
    assert GroupFilter().judge([0.30000001192092896, 0.30000000000000004]) is GroupVerdict.UNIFORM
    assert GroupFilter().judge([0.3, 0.300002]) is GroupVerdict.INFORMATIVE


def test_mean_on_the_bound_is_outside_the_range():
    group_filter = GroupFilter(mean_range=(0.25, 0.75))
    assert group_filter.judge([1.0, 0.0, 0.0, 0.0]) is GroupVerdict.OUT_OF_RANGE
    assert group_filter.judge([1.0, 1.0, 0.0, 0.0]) is GroupVerdict.INFORMATIVE
    assert group_filter.judge([1.0, 1.0, 1.0, 0.0]) is GroupVerdict.OUT_OF_RANGE


def test_group_without_a_live_completion_is_truncated_out():
    assert GroupFilter().judge([1.0, 0.0], is_live=[False, False]) is GroupVerdict.TRUNCATED_OUT


def test_group_whose_live_completions_sit_on_the_mean_is_truncated_out():
    # The mean is 0.5; the only live completion has advantage 0.
    assert GroupFilter().judge([1.0, 0.0, 0.5], is_live=[False, False, True]) is GroupVerdict.TRUNCATED_OUT
    assert GroupFilter().judge([1.0, 0.0, 0.5], is_live=[True, False, True]) is GroupVerdict.INFORMATIVE


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=16))
def test_informative_means_some_but_not_all_correct(rewards):
    is_informative = GroupFilter().judge(rewards) is GroupVerdict.INFORMATIVE
    assert is_informative == (0 < sum(rewards) < len(rewards))
