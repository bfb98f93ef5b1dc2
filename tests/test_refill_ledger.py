import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_dapo.report.batch_metrics import completion_metrics, ledger_metrics
from trl_dapo.sampling.judge import GroupFilter, SampledGroup
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.sampling.refill_ledger import RefillLedger


def sampled(position, rewards, lengths=None, is_truncated=None):
    lengths = lengths or [1] * len(rewards)
    return SampledGroup(
        draw=Draw(position, index=100 + position),
        verdict=GroupFilter().judge(rewards),
        rewards=[[reward] for reward in rewards],
        filter_rewards=rewards,
        lengths=[(3, length) for length in lengths],
        is_truncated=is_truncated or [False] * len(rewards),
        locations=[(0, 0, 0)] * len(rewards),
    )


MIXED, WRONG, RIGHT = [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]


@given(
    outcomes=st.lists(st.booleans(), min_size=1, max_size=60),
    num_groups=st.integers(1, 10),
    cuts=st.sets(st.integers(1, 59)),
)
def test_batch_is_the_first_informative_groups_whatever_the_rounds(outcomes, num_groups, cuts):
    groups = [sampled(position, MIXED if mixed else WRONG) for position, mixed in enumerate(outcomes)]
    ledger = RefillLedger(num_groups, next_position=0)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(groups)), len(groups)]
    for start, stop in itertools.pairwise(bounds):
        ledger.add_round(groups[start:stop])
    expected = [position for position, mixed in enumerate(outcomes) if mixed][:num_groups]
    assert [group.draw.position for group in ledger.accepted] == expected
    is_full = len(expected) == num_groups
    assert ledger.next_position == (expected[-1] + 1 if is_full else len(outcomes))


def test_metrics_by_hand():
    ledger = RefillLedger(num_groups=1, next_position=0)
    ledger.add_round([sampled(0, WRONG, [5, 5]), sampled(1, RIGHT, [2, 2])], seconds=28.0)
    last = [sampled(2, MIXED, [3, 4]), sampled(3, MIXED, [1, 1]), sampled(4, [math.nan] * 2, [8, 8])]
    ledger.add_round(last, seconds=100.0)
    assert ledger_metrics(ledger) == {
        "rounds": 2,
        "prompts_drawn": 5,
        "acceptance_rate": 2 / 5,
        "frac_all_correct": 1 / 5,
        "frac_all_wrong": 1 / 5,
        "frac_unscorable": 1 / 5,
        "sampled_accuracy": 4 / 8,
        "length/correct": (2 + 2 + 3 + 1) / 4,
        "length/wrong": (5 + 5 + 4 + 1) / 4,
        "trained_accuracy": 1 / 2,
        "frac_rare_success": 1,  # 1 of 2 correct
        "rollout_efficiency": 7 / (10 + 4 + 7 + 2 + 16),
        "exhausted": 0,
        "carried": 0,
        "stale": 0,
        "skipped_prompts": 0,
        "tokens/trained": 7,
        "tokens/surplus": 2,
        "tokens/all_correct": 4,
        "tokens/all_wrong": 10,
        "tokens/uniform": 0,
        "tokens/unscorable": 16,
        "tokens/out_of_range": 0,
        "tokens/truncated_out": 0,
        "tokens/aborted": 0,
        # 28 seconds for 14 tokens, then 100 seconds for 25.
        "seconds/trained": 28,
        "seconds/surplus": 8,
        "seconds/all_correct": 8,
        "seconds/all_wrong": 20,
        "seconds/uniform": 0,
        "seconds/unscorable": 64,
        "seconds/out_of_range": 0,
        "seconds/truncated_out": 0,
        "seconds/aborted": 0,
    }


def test_seconds_of_a_group_that_was_carried_are_those_of_the_batch_that_sampled_it():
    first = RefillLedger(num_groups=1, next_position=0, keeps_surplus=True)
    first.add_round([sampled(0, MIXED, [1, 2]), sampled(1, MIXED, [2, 1])], seconds=6.0)
    assert first.seconds_by_fate()["trained"] == first.seconds_by_fate()["surplus"] == 3.0
    second = RefillLedger(num_groups=2, next_position=2, keeps_surplus=True, carried=first.surplus)
    second.add_round([sampled(2, WRONG, [3, 3]), sampled(3, MIXED, [1, 1])], seconds=4.0)
    assert [group.draw.position for group in second.accepted] == [1, 3]
    assert {fate: seconds for fate, seconds in second.seconds_by_fate().items() if seconds} == {
        "all_wrong": 3.0,
        "trained": 1.0,
    }


def test_round_that_generated_no_tokens_is_shared_equally():
    ledger = RefillLedger(num_groups=1, next_position=0)
    ledger.add_round([sampled(0, WRONG, [0, 0]), sampled(1, MIXED, [0, 0])], seconds=5.0)
    assert ledger.seconds_by_fate()["all_wrong"] == ledger.seconds_by_fate()["trained"] == 2.5


def test_length_metrics_by_hand():
    ledger = RefillLedger(num_groups=1, next_position=0)
    ledger.add_round([sampled(0, MIXED, [8, 2], [True, False]), sampled(1, WRONG, [4, 8], [False, True])])
    assert completion_metrics(ledger.sampled) == {
        "completions/mean_length": 5.5,
        "completions/min_length": 2,
        "completions/max_length": 8,
        "completions/clipped_ratio": 0.5,
        "completions/mean_terminated_length": 3,
        "completions/min_terminated_length": 2,
        "completions/max_terminated_length": 4,
    }


def test_accuracy_of_nothing_scored_is_nan():
    ledger = RefillLedger(num_groups=1, next_position=0)
    ledger.add_round([sampled(0, [math.nan, math.nan])])
    assert math.isnan(ledger_metrics(ledger)["sampled_accuracy"])
    assert ledger_metrics(ledger)["exhausted"] == 1.0


def test_ungraded_completions_do_not_count_as_wrong():
    ledger = RefillLedger(num_groups=1, next_position=0)
    ledger.add_round([sampled(0, [1.0, math.nan, 0.0, 1.0])])
    assert ledger_metrics(ledger)["sampled_accuracy"] == pytest.approx(2 / 3)
