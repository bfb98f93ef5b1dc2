import itertools
import math
import random
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dapo.sampling.refill_planner import RefillPlanner, RoundCost, prob_at_least, prospects


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


@pytest.mark.parametrize(
    ("num_needed", "num_trials", "probability"),
    [(512, 1040, 1 / 2), (512, 560, 15 / 16), (64, 700, 1 / 8), (1, 400, 1 / 64)],
)
def test_tail_of_large_batches_equals_rational_arithmetic(num_needed, num_trials, probability):
    """Terms that are negligible are left out of the sum. Powers of two, so that the fractions stay short."""
    expected = exact_prob_at_least(num_needed, num_trials, probability)
    assert prob_at_least(num_needed, num_trials, probability) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_groups_in_flight_follow_what_was_observed():
    """The search is remembered, but for the same question alone."""
    planner = RefillPlanner(num_groups=20, confidence=0.9, max_prompts=10_000)
    for num_informative in (9, 1, 5):
        planner.observe(num_informative, 10)
        for _ in range(2):
            plan = planner.groups_in_flight(7)
            assert exact_prob_at_least(7, plan.num_prompts, plan.acceptance_rate) >= 0.9
            assert exact_prob_at_least(7, plan.num_prompts - 1, plan.acceptance_rate) < 0.9


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


def test_cost_of_a_round_is_the_line_through_the_measured_ones():
    cost = RoundCost()
    for num_prompts in (10, 30, 20, 50) * 30:
        cost.observe(num_prompts, seconds=4.0 + 0.25 * num_prompts)
    # The prior, one imagined empty round of weight 0.1 among about 20, pulls a little.
    assert cost.to_begin == pytest.approx(4.0, rel=0.05)
    assert cost.per_prompt == pytest.approx(0.25, rel=0.05)


def test_rounds_of_one_size_split_their_time_in_halves():
    cost = RoundCost()
    for _ in range(5):
        cost.observe(10, seconds=6.0)
    assert cost.to_begin == pytest.approx(3.0, rel=0.05)
    assert cost.per_prompt == pytest.approx(0.3, rel=0.05)


def test_cost_is_never_negative():
    cost = RoundCost()
    cost.observe(100, seconds=1.0)
    cost.observe(10, seconds=5.0)
    assert cost.to_begin >= 0
    assert cost.per_prompt >= 0


def planner_with_costs(to_begin, per_prompt):
    planner = RefillPlanner(num_groups=64, confidence=None, max_prompts=1000)
    for _ in range(40):
        for num_sampled in (40, 80, 160):
            planner.observe(num_sampled // 4, num_sampled, seconds=to_begin + per_prompt * num_sampled)
    return planner


def test_dear_beginnings_make_large_rounds_and_dear_prompts_small_ones():
    idle, saturated = planner_with_costs(60.0, 0.01), planner_with_costs(0.5, 1.0)
    assert idle.plan(64).fill_probability > 0.99
    assert saturated.plan(64).num_prompts < idle.plan(64).num_prompts


def simulated_seconds(size, num_needed, rate, to_begin, per_prompt, trials=3000):
    """Time to a full batch when the first round has `size` prompts and the later ones the expected number."""
    rng = random.Random(0)
    total = 0.0
    for _ in range(trials):
        missing, prompts = num_needed, size
        while missing > 0:
            total += to_begin + per_prompt * prompts
            missing -= sum(rng.random() < rate for _ in range(prompts))
            prompts = math.ceil(missing / rate)
    return total / trials


def test_planned_round_is_close_to_the_best_of_a_simulation():
    planner = RefillPlanner(num_groups=8, confidence=None, max_prompts=1000)
    for _ in range(60):
        for num_sampled in (10, 20, 40):
            planner.observe(num_sampled // 4, num_sampled, seconds=5.0 + 0.2 * num_sampled)
    plan = planner.plan(8)
    costs = (planner.cost.to_begin, planner.cost.per_prompt)
    best = min(simulated_seconds(size, 8, plan.acceptance_rate, *costs, trials=400) for size in range(16, 90, 6))
    assert simulated_seconds(plan.num_prompts, 8, plan.acceptance_rate, *costs) < 1.08 * best


def test_first_round_without_measured_costs_is_planned_for_confidence():
    planner = RefillPlanner(num_groups=64, confidence=None, max_prompts=1000)
    assert planner.plan(64) == RefillPlanner(num_groups=64, confidence=0.9, max_prompts=1000).plan(64)


def test_kept_surplus_makes_rounds_larger():
    plans = []
    for keeps_surplus in (False, True):
        planner = RefillPlanner(num_groups=16, confidence=None, max_prompts=1000, keeps_surplus=keeps_surplus)
        for _ in range(40):
            for num_sampled in (20, 40, 80):
                planner.observe(num_sampled // 4, num_sampled, seconds=2.0 + 0.5 * num_sampled)
        plans.append(planner.plan(16).num_prompts)
    assert plans[1] > 1.2 * plans[0]


def test_last_rounds_are_planned_to_fill_the_batch():
    planner = planner_with_costs(to_begin=0.1, per_prompt=1.0)
    assert planner.plan(64, rounds_left=8).fill_probability < 0.9
    assert planner.plan(64, rounds_left=2).fill_probability >= 0.9


def exact_found(chances):
    """The law of the number found, in rational arithmetic, by taking one prompt after the other."""
    law = [Fraction(1)]
    for chance in map(Fraction, chances):
        law = [
            (law[k] * (1 - chance) if k < len(law) else 0) + (law[k - 1] * chance if k else 0)
            for k in range(len(law) + 1)
        ]
    return law


@pytest.mark.parametrize("num_needed", [1, 2, 3, 5, 7])
def test_prospects_equal_an_enumeration_of_all_outcomes(num_needed):
    chances = [0.9, 0.1, 0.5, 0.97, 0.3, 0.02]
    for number, prospect in enumerate(prospects(num_needed, chances), 1):
        filled = shortfall = 0.0
        for outcome in itertools.product([0, 1], repeat=number):
            mass = math.prod(c if found else 1 - c for c, found in zip(chances, outcome, strict=False))
            filled += mass * (sum(outcome) >= num_needed)
            shortfall += mass * max(0, num_needed - sum(outcome))
        assert prospect.fill_probability == pytest.approx(filled, abs=1e-12)
        assert prospect.shortfall == pytest.approx(shortfall, abs=1e-12)
        assert prospect.num_expected == pytest.approx(sum(chances[:number]), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    chances=st.lists(st.integers(1, 999), min_size=1, max_size=40),
    num_needed=st.integers(1, 12),
    percent=st.integers(5, 99),
    multiple_of=st.integers(1, 3),
)
def test_round_of_given_prompts_is_the_smallest_that_reaches_the_confidence(chances, num_needed, percent, multiple_of):
    planner = RefillPlanner(20, percent / 100, max_prompts=60, multiple_of=multiple_of)
    cycled = [chances[number % len(chances)] / 1000 for number in range(60)]
    plan = planner.plan(num_needed, chances=iter(cycled))

    def fills(size):
        return float(sum(exact_found(cycled[:size])[num_needed:]))

    assert plan.num_prompts % multiple_of == 0
    assert plan.fill_probability == pytest.approx(fills(plan.num_prompts), abs=1e-9)
    assert plan.acceptance_rate == pytest.approx(sum(cycled[: plan.num_prompts]) / plan.num_prompts)
    assert plan.num_prompts == 60 or fills(plan.num_prompts) >= percent / 100 - 1e-9
    assert plan.num_prompts == multiple_of or fills(plan.num_prompts - multiple_of) < percent / 100 + 1e-9


def test_prospects_of_large_batches_equal_the_binomial_tail():
    *_, last = prospects(512, [0.625] * 850)
    assert last.fill_probability == pytest.approx(exact_prob_at_least(512, 850, 0.625), rel=1e-9)


def test_prompts_alike_are_planned_as_by_one_rate():
    for num_needed in (1, 8, 40):
        planner = RefillPlanner(num_groups=40, confidence=0.9, max_prompts=200)
        by_rate = planner.plan(num_needed)
        by_prompt = planner.plan(num_needed, chances=itertools.repeat(planner.acceptance_rate))
        assert by_prompt.num_prompts == by_rate.num_prompts
        assert by_prompt.fill_probability == pytest.approx(by_rate.fill_probability, abs=1e-12)


def test_prompts_that_are_known_well_need_smaller_rounds():
    planner = RefillPlanner(num_groups=64, confidence=0.9, max_prompts=400)
    uncertain = planner.plan(64, chances=itertools.repeat(0.65))
    certain = planner.plan(64, chances=itertools.cycle([0.97, 0.97, 0.01]))
    assert certain.num_prompts < uncertain.num_prompts
    assert certain.fill_probability >= 0.9


def test_round_of_given_prompts_is_no_larger_than_the_cap():
    plan = RefillPlanner(num_groups=8, confidence=0.9, max_prompts=16).plan(8, chances=itertools.repeat(0.01))
    assert plan.num_prompts == 16
    assert plan.fill_probability < 0.1


def test_groups_in_flight_are_counted_by_their_own_chances():
    planner = RefillPlanner(num_groups=8, confidence=0.9, max_prompts=100)
    in_flight = [0.99] * 8
    assert planner.groups_in_flight(8, itertools.chain(in_flight, itertools.repeat(0.5))).num_prompts == 8
    assert planner.groups_in_flight(8, itertools.chain([0.1] * 8, itertools.repeat(0.5))).num_prompts > 16


@pytest.mark.parametrize("keeps_surplus", [False, True])
def test_soonest_round_of_given_prompts_has_the_least_expected_time(keeps_surplus):
    """Over all sizes, with the expected time summed from the exact law of the number found."""
    planner = RefillPlanner(num_groups=8, confidence=None, max_prompts=40, keeps_surplus=keeps_surplus)
    for _ in range(60):
        for num_sampled in (10, 20, 40):
            planner.observe(num_sampled // 4, num_sampled, seconds=2.0 + 0.5 * num_sampled)
    chances = [0.9 if number % 3 else 0.2 for number in range(40)]
    plan = planner.plan(8, chances=iter(chances))
    begin, per_prompt = planner.cost.to_begin, planner.cost.per_prompt

    def seconds(size, rate):
        law = [float(mass) for mass in exact_found(chances[:size])]
        later = sum(law[k] * (begin + per_prompt * (8 - k) / rate) for k in range(min(8, len(law))))
        surplus = sum(law[k] * (k - 8) for k in range(8, len(law)))
        saved = min(surplus, 4.0) * per_prompt / rate if keeps_surplus else 0.0
        return begin + per_prompt * size + later - saved

    # The rate of what would be sampled later is the mean over all prompts that were looked at, about 2/3.
    assert plan.expected_seconds == pytest.approx(min(seconds(size, 0.667) for size in range(1, 41)), rel=0.01)
    assert seconds(plan.num_prompts, 0.667) == pytest.approx(plan.expected_seconds, rel=0.01)


def test_without_chances_plans_are_what_they_always_were():
    """Sizes noted before the planner knew of chances: 64 groups after 32 of 160, in each of its modes."""
    sizes = []
    for confidence, keeps_surplus in ((0.9, False), (None, False), (None, True)):
        planner = RefillPlanner(64, confidence, max_prompts=1024, multiple_of=2, keeps_surplus=keeps_surplus)
        planner.observe(32, 160, seconds=30.0)
        planner.observe(20, 80, seconds=16.0)
        sizes.append((planner.plan(64).num_prompts, planner.plan(7, rounds_left=1).num_prompts))
    assert sizes == [(324, 46), (278, 46), (420, 46)]
