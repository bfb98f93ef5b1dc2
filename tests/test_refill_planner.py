from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dapo.sampling.refill_planner import RefillPlanner, prob_at_least


def exact_prob_at_least(num_needed, num_trials, probability):
    """The binomial tail in rational arithmetic."""
    p = Fraction(probability)
    return float(
        sum(comb(num_trials, k) * p**k * (1 - p) ** (num_trials - k) for k in range(num_needed, num_trials + 1))
    )


@settings(deadline=None, max_examples=80)
@given(num_trials=st.integers(0, 60), num_needed=st.integers(0, 60), percent=st.integers(1, 99))
def test_tail_equals_rational_arithmetic(num_trials, num_needed, percent):
    expected = exact_prob_at_least(num_needed, num_trials, percent / 100)
    assert prob_at_least(num_needed, num_trials, percent / 100) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(num_needed=st.integers(1, 20), num_informative=st.integers(1, 30), num_rejected=st.integers(0, 30))
def test_round_is_the_smallest_that_reaches_the_confidence(num_needed, num_informative, num_rejected):
    planner = RefillPlanner(num_groups=20, confidence=0.9, max_prompts=10_000)
    planner.observe(num_informative, num_informative + num_rejected)
    plan = planner.plan(num_needed)
    assert exact_prob_at_least(num_needed, plan.num_prompts, plan.acceptance_rate) >= 0.9
    assert exact_prob_at_least(num_needed, plan.num_prompts - 1, plan.acceptance_rate) < 0.9


def test_estimate_without_data_is_the_prior():
    assert RefillPlanner(num_groups=64, confidence=0.9, max_prompts=1000).acceptance_rate == 0.5


def test_estimate_follows_many_rounds():
    planner = RefillPlanner(num_groups=64, confidence=0.9, max_prompts=1000)
    for _ in range(50):
        planner.observe(num_informative=20, num_sampled=100)
    assert planner.acceptance_rate == pytest.approx(0.2, abs=0.005)


def test_all_wrong_rounds_leave_a_positive_estimate():
    planner = RefillPlanner(num_groups=4, confidence=0.9, max_prompts=64)
    for _ in range(1000):
        planner.observe(num_informative=0, num_sampled=64)
    assert 0 < planner.acceptance_rate < 0.02
    assert planner.plan(4).num_prompts == 64


def test_round_is_rounded_up_to_what_ranks_can_share():
    planner = RefillPlanner(num_groups=4, confidence=0.9, max_prompts=100, multiple_of=3)
    alone = RefillPlanner(num_groups=4, confidence=0.9, max_prompts=100)
    assert planner.plan(4).num_prompts == -(-alone.plan(4).num_prompts // 3) * 3


def test_cap_binds_but_one_shareable_round_is_always_allowed():
    assert RefillPlanner(num_groups=64, confidence=0.9, max_prompts=10, multiple_of=4).plan(64).num_prompts == 8
    assert RefillPlanner(num_groups=64, confidence=0.9, max_prompts=2, multiple_of=4).plan(64).num_prompts == 4


def test_saved_estimate_continues():
    planner = RefillPlanner(num_groups=8, confidence=0.9, max_prompts=100)
    planner.observe(3, 17)
    resumed = RefillPlanner(num_groups=8, confidence=0.9, max_prompts=100)
    resumed.load_state_dict(planner.state_dict())
    assert resumed.plan(8) == planner.plan(8)
