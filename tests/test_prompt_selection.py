"""Which draws are sampled: frequencies, floors, and what a decision may depend on."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dapo.sampling.judge import GroupFilter, GroupJudge, RowFacts
from trl_dapo.sampling.pass_rates import PassRates, Prediction
from trl_dapo.sampling.prompt_selection import PromptSelection
from trl_dapo.sampling.prompt_stream import Draw, PromptStream
from trl_dapo.sampling.refill_planner import RefillPlanner
from trl_dapo.sampling.reliability import Reliability


class GivenRates:
    """Predicts what the test says: chance and rare chance of each row, all rows seen or none."""

    best_chance = 1.0

    def __init__(self, chances, rare=None, is_seen=True):
        self.chances = np.array(chances)
        self.rare = np.zeros(len(chances)) if rare is None else np.array(rare)
        self.is_seen = np.full(len(chances), is_seen)

    def predict(self, indices):
        return Prediction(self.chances[indices], self.rare[indices], self.is_seen[indices])

    def predict_unseen(self):
        rows = np.flatnonzero(~self.is_seen)
        return self.predict(rows), np.ones(len(rows))

    def observed_rates(self, indices):
        return self.chances[indices]

    def frac_by_rate(self):
        return (self.chances < 0.1).mean(), (self.chances > 0.9).mean()

    def see_rewards(self, lowest, highest):
        pass

    def observe(self, outcomes):
        pass


def sampled_groups(draws, counts, size=8):
    """Groups of these draws, so many completions of each correct, judged by the product's judge."""
    rewards = [[float(sample < count)] for count in counts for sample in range(size)]
    facts = [RowFacts(1, 5, 0)] * len(rewards)
    return GroupJudge([0]).judge(draws, rewards, facts)


def frequencies(selection, num_passes):
    rows = selection.stream.num_rows
    counts = np.zeros(rows)
    while True:
        (draw,) = selection.draw(1)
        if draw.position >= num_passes * rows:
            return counts / num_passes
        counts[draw.index] += 1


def test_draws_are_sampled_with_the_square_of_their_value_and_never_less_than_the_floor():
    selection = PromptSelection(PromptStream(5, seed=1), GivenRates([0.9, 0.8, 0.4, 0.2, 0.01]), exploration_share=0.1)
    expected = [1.0, 1.0, (0.4 / 0.8) ** 2, 0.1, 0.1]
    assert selection.sampling_probabilities(np.arange(5)).tolist() == pytest.approx(expected)
    found = frequencies(selection, 4000)
    for value, share in zip(found, expected, strict=True):
        assert value == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000) + 1e-9)


def test_rare_success_counts_twice():
    selection = PromptSelection(PromptStream(2), GivenRates([0.4, 0.4], rare=[0.2, 0.0]))
    assert selection.sampling_probabilities(np.arange(2)).tolist() == pytest.approx([(0.6 / 0.8) ** 2, 0.25])


def test_nothing_is_passed_over_while_nothing_is_known():
    stream = PromptStream(300, seed=2)
    selection = PromptSelection(stream, PassRates(300, 8))
    assert selection.draw(300) == PromptStream(300, seed=2).peek(300)
    # Nor where all prompts that were never seen are alike, however poor the data.
    poor = PromptSelection(PromptStream(4), GivenRates([0.02] * 4, is_seen=False))
    assert poor.sampling_probabilities(np.arange(4)).tolist() == pytest.approx([1.0] * 4)


def test_unseen_prompts_are_compared_with_the_better_kinds_of_them():
    chances = np.array([0.6, 0.6, 0.6, 0.3])
    selection = PromptSelection(PromptStream(4), GivenRates(chances, is_seen=False), exploration_share=0.01)
    best = (chances**9).sum() / (chances**8).sum()
    expected = np.minimum((chances / best) ** 8, 1.0)
    assert selection.sampling_probabilities(np.arange(4)) == pytest.approx(np.maximum(expected, 0.01), rel=1e-12)


def test_share_of_one_samples_every_draw():
    selection = PromptSelection(PromptStream(50), GivenRates([0.01] * 50), exploration_share=1.0)
    assert [draw.position for draw in selection.draw(120)] == list(range(120))


@pytest.mark.parametrize("options", [{"exploration_share": 0.0}, {"exploration_share": 1.5}, {"evict_above": 0.0}])
def test_shares_outside_of_their_range_are_refused(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value}, but must be above 0 and at most 1"):
        PromptSelection(PromptStream(2), GivenRates([0.5, 0.5]), **options)


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), seed=st.integers(0, 100))
def test_size_of_rounds_does_not_change_which_draws_are_sampled(sizes, seed):
    chances = np.random.default_rng(seed).random(40)
    one, other = (PromptSelection(PromptStream(40, seed=seed), GivenRates(chances), seed=seed) for _ in range(2))
    drawn = [draw for size in sizes for draw in one.draw(size)]
    assert drawn == other.draw(sum(sizes))
    stream = PromptStream(40, seed=seed)
    assert drawn == [draw for draw in stream.peek(drawn[-1].position + 1) if one.samples(draw)]
    # A draw that was given back is decided on alike.
    one.stream.seek(drawn[len(drawn) // 2].position)
    assert one.draw(1) == [drawn[len(drawn) // 2]]


def test_seeds_decide_differently():
    drawn = [
        [draw.position for draw in PromptSelection(PromptStream(100), GivenRates([0.5] * 100), seed=seed).draw(50)]
        for seed in (0, 1)
    ]
    assert drawn[0] != drawn[1]


def test_chances_are_those_of_the_draws_that_come_next():
    values = np.random.default_rng(0).random(60)
    selection = PromptSelection(PromptStream(60, seed=3), GivenRates(values))
    chances = selection.chances()
    foretold = [next(chances) for _ in range(25)]
    assert selection.stream.position == 0
    draws = selection.draw(25)
    assert foretold == [values[draw.index] for draw in draws] == selection.chances_of(draws)
    assert selection.stream.position == draws[-1].position + 1


def test_prompts_that_teach_nothing_are_drawn_less_and_come_back_when_they_do():
    selection = PromptSelection(PromptStream(20, shuffle=False), PassRates(20, 8), exploration_share=0.1)
    solved = np.arange(10)
    for _ in range(4):
        draws = [Draw(position, position) for position in range(20)]
        selection.settle(sampled_groups(draws, [8] * 10 + [4] * 10))
    shares = selection.sampling_probabilities(np.arange(20))
    assert shares[10:].tolist() == [1.0] * 10
    assert shares[:10].max() < 0.4
    for _ in range(3):
        selection.settle(sampled_groups([Draw(20 + row, row) for row in solved], [4] * 10))
    assert selection.sampling_probabilities(solved).min() > 0.9


def test_row_that_comes_twice_in_a_batch_is_learned_from_twice_in_stream_order():
    twice, apart = (PromptSelection(PromptStream(3), PassRates(3, 8)) for _ in range(2))
    groups = sampled_groups([Draw(0, 0), Draw(1, 1), Draw(3, 0)], [8, 2, 5])
    twice.settle(groups[::-1])
    apart.rates.see_rewards(0.0, 1.0)
    for part in (groups[:2], groups[2:]):
        apart.settle(part)
    assert json.dumps(twice.rates.state_dict()) == json.dumps(apart.rates.state_dict())


def run(selection, planner, hidden, num_batches, rng_seed, num_groups=6):
    """Batches as the trainer fills them, with surplus given back; what a draw finds depends on its position alone."""
    record = []
    stream = selection.stream
    for _ in range(num_batches):
        missing, groups = num_groups, []
        while missing:
            plan = planner.plan(missing, chances=selection.chances())
            draws = selection.draw(plan.num_prompts)
            counts = [
                int(np.random.default_rng((rng_seed, draw.position)).binomial(8, hidden[draw.index])) for draw in draws
            ]
            found = sampled_groups(draws, counts)
            planner.observe(sum(group.verdict.value == "informative" for group in found), len(found))
            for group in found:
                if missing:
                    groups.append(group)
                    missing -= group.verdict.value == "informative"
            record.append((plan.num_prompts, [draw.position for draw in draws]))
        stream.seek(groups[-1].draw.position + 1)
        selection.settle(groups)
    return record


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 200), stop=st.integers(0, 10), evicts=st.booleans())
def test_resumed_run_draws_the_same_prompts_to_the_bit(seed, stop, evicts):
    hidden = np.random.default_rng(seed).beta(0.3, 0.4, 40)

    def make():
        rates = PassRates(40, 8, kinds=np.arange(40) % 4)
        selection = PromptSelection(PromptStream(40, seed), rates, seed=seed, evict_above=0.95 if evicts else None)
        return selection, RefillPlanner(6, 0.9, max_prompts=24)

    whole = run(*make(), hidden, 10, seed)
    killed, planner = make()
    before = run(killed, planner, hidden, stop, seed)
    saved = json.loads(json.dumps([killed.state_dict(), killed.stream.state_dict(), planner.state_dict()]))
    resumed, planner = make()
    resumed.load_state_dict(saved[0])
    resumed.stream.load_state_dict(saved[1])
    planner.load_state_dict(saved[2])
    assert before + run(resumed, planner, hidden, 10 - stop, seed) == whole
    assert resumed.num_evicted == 0 or evicts


def test_solved_prompts_are_evicted_and_counted():
    selection = PromptSelection(PromptStream(10, seed=5), PassRates(10, 8), exploration_share=0.5, evict_above=0.9)
    draws = [Draw(position, position) for position in range(10)]
    selection.settle(sampled_groups(draws, [8, 8, 7, 4, 0, 0, 0, 0, 0, 0]))
    assert selection.num_evicted == selection.metrics()["evicted"] == 2
    selection.settle(sampled_groups(draws[:2], [0, 0]))
    drawn = {draw.index for draw in selection.draw(200)}
    assert drawn == set(range(2, 10))
    resumed = PromptSelection(PromptStream(10, seed=5), PassRates(10, 8), evict_above=0.9)
    resumed.load_state_dict(json.loads(json.dumps(selection.state_dict())))
    assert resumed.num_evicted == 2
    assert resumed.sampling_probabilities(np.arange(10))[:2].tolist() == [0.0, 0.0]


def test_run_whose_prompts_are_all_evicted_says_so():
    selection = PromptSelection(PromptStream(3), PassRates(3, 8), evict_above=0.9)
    selection.settle(sampled_groups([Draw(row, row) for row in range(3)], [8, 8, 8]))
    with pytest.raises(ValueError, match="All 3 prompts of train_dataset are evicted"):
        selection.draw(1)


def test_figures_of_blind_sampling_are_estimated_without_bias():
    """Hidden rates, some prompts passed over: the estimate against what blind sampling of the same prompts really finds."""
    rng = np.random.default_rng(6)
    hidden = rng.beta(0.3, 0.5, 2000)
    chances = 1 - hidden**8 - (1 - hidden) ** 8
    rare = 8 * hidden * (1 - hidden) ** 7
    selection = PromptSelection(PromptStream(2000), GivenRates(chances, rare), exploration_share=0.1)
    for _ in range(60):
        draws = selection.draw(300)
        selection.settle(sampled_groups(draws, rng.binomial(8, hidden[[draw.index for draw in draws]])))
    shares = selection.sampling_probabilities(np.arange(2000))
    completions = (shares.sum() / (shares * chances).sum()) * chances.mean()
    rare_share = ((shares * rare).sum() / (shares * chances).sum()) / (rare.mean() / chances.mean())
    metrics = selection.metrics()
    assert metrics["completions_of_blind"] == pytest.approx(completions, rel=0.05)
    assert metrics["rare_of_blind"] == pytest.approx(rare_share, rel=0.1)
    assert metrics["calibration_error"] < 0.03


def test_figures_over_nothing_are_nan():
    metrics = PromptSelection(PromptStream(3), PassRates(3, 8)).metrics()
    assert math.isnan(metrics["calibration_error"])
    assert math.isnan(metrics["completions_of_blind"])
    assert math.isnan(metrics["rare_of_blind"])


def test_reliability_by_hand():
    reliability = Reliability(memory=4)
    reliability.observe(np.array([0.2, 0.24, 0.9, 0.9]), np.array([True, False, True, True]))
    # |0.44 - 1| and |1.8 - 2| of 4 predictions.
    assert reliability.calibration_error == pytest.approx((0.56 + 0.2) / 4)
    assert reliability.table() == [
        {"num_groups": 2.0, "predicted": pytest.approx(0.22), "found": 0.5},
        {"num_groups": 2.0, "predicted": pytest.approx(0.9), "found": 1.0},
    ]
    # Four more make the first four weigh half.
    reliability.observe(np.array([0.9] * 4), np.array([False] * 4))
    assert reliability.calibration_error == pytest.approx((0.28 + abs(0.9 + 3.6 - 1.0)) / 6)
    resumed = Reliability(memory=4)
    resumed.load_state_dict(json.loads(json.dumps(reliability.state_dict())))
    assert resumed.calibration_error == reliability.calibration_error


def test_partial_credit_counts_in_part_and_negative_rewards_as_wrong():
    """Rewards of -1, 0.5 and 1: the posterior of what is solved by 1 and a half of 4."""
    rewards = [[-1.0], [0.5], [1.0], [-1.0]]
    judge = GroupJudge([0])
    partial, plain = (PassRates(1, 4) for _ in range(2))
    selection = PromptSelection(PromptStream(1), partial)
    selection.settle(judge.judge([Draw(0, 0)], rewards, [RowFacts(1, 1, 0)] * 4))
    other = PromptSelection(PromptStream(1), plain)
    other.settle(judge.judge([Draw(0, 0)], [[0.75], [0.75], [0.0], [0.0]], [RowFacts(1, 1, 0)] * 4))
    assert partial.means(np.array([0]))[0] == pytest.approx(plain.means(np.array([0]))[0], abs=1e-12)
    assert GroupFilter().judge([row[0] for row in rewards]).value == "informative"


def test_rare_successes_are_informative_groups_with_an_eighth_correct_or_less():
    groups = sampled_groups([Draw(row, row) for row in range(5)], [0, 1, 2, 7, 8])
    assert [group.is_rare_success for group in groups] == [False, True, False, False, False]
    # Of 3 informative groups, one.
    large = sampled_groups([Draw(row, row) for row in range(3)], [1, 2, 3], size=16)
    assert [group.is_rare_success for group in large] == [True, True, False]
    # Partial credit alone is no success.
    rewards = [[0.5], [0.0], [0.0], [0.0]]
    (partial,) = GroupJudge([0]).judge([Draw(0, 0)], rewards, [RowFacts(1, 1, 0)] * 4)
    assert partial.verdict.value == "informative"
    assert not partial.is_rare_success
