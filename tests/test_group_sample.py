import math
import random
from collections import Counter

import pytest

from trl_dapo.report.group_sample import GroupSample


def offer_all(sample, positions):
    """Follows the answers of `offer` as a caller does, and returns what it would hold."""
    held = set()
    for position in positions:
        is_chosen, dropped = sample.offer(position)
        held -= {dropped}
        if is_chosen:
            held.add(position)
    return held


def test_order_does_not_change_the_choice():
    positions = list(range(1000, 1100))
    expected = offer_all(GroupSample(7, seed=3), positions)
    for number in range(5):
        random.Random(number).shuffle(positions)
        sample = GroupSample(7, seed=3)
        assert offer_all(sample, positions) == expected == sample.chosen
    assert len(expected) == 7


def test_every_group_is_as_likely_as_any_other():
    sample, num_batches = GroupSample(5), 4000
    counts = Counter()
    for _ in range(num_batches):
        counts.update(offer_all(sample, range(20)))
        sample.next_batch()
    # Each is chosen with probability 1/4; 20 binomial counts stay within 4 standard deviations.
    assert sum(counts.values()) == 5 * num_batches
    deviation = math.sqrt(num_batches * 0.25 * 0.75)
    assert all(abs(counts[position] - num_batches / 4) < 4 * deviation for position in range(20))


@pytest.mark.parametrize(("size", "expected"), [(0, set()), (3, {0, 1, 2}), (9, {0, 1, 2})])
def test_few_groups_are_all_chosen_and_none_if_none_is_wanted(size, expected):
    assert offer_all(GroupSample(size), range(3)) == expected
