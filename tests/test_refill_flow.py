"""Which groups are started, waited for and given up, against brute force over random orders of verdicts."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dapo.sampling.refill_flow import RefillFlow


# A stream of draws; True: the group turns out informative. Some positions are passed over, as selective rollout does.
streams = st.tuples(st.integers(0, 10**6).map(random.Random), st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.booleans())
few = settings(deadline=None, max_examples=150, derandomize=True)


class StreamOfDraws:
    def __init__(self, chance, rate, has_gaps):
        self.is_informative = [chance.random() < rate for _ in range(2000)]
        self.is_passed_over = [has_gaps and chance.random() < 0.2 for _ in range(2000)]

    def informative(self):
        draws = zip(itertools.count(), self.is_informative, self.is_passed_over)
        return [position for position, good, passed_over in draws if good and not passed_over]


class Batch:
    """Drives one flow to its end, and checks it against all that it was told."""

    def __init__(self, stream, chance, position, num_groups, num_kept, max_started=10**6, held=(), resumed=()):
        self.stream, self.chance, self.position, self.first = stream, chance, position, position
        self.flow = RefillFlow(num_groups, max_started, num_kept, num_ranks=3)
        self.held, self.verdicts, self.given_up = list(held), {}, set()
        for place in held:
            self.flow.hold(place)
        for place, rank in resumed:
            self.flow.resume(place, rank)

    def run(self):
        flow, chance = self.flow, self.chance
        while not flow.is_decided:
            self.check_unneeded()
            target = chance.randint(0, 3 * flow.num_groups)
            number = flow.num_to_start(target, chance.randint(0, 20), num_generations=4)
            if not flow.in_flight and not number:
                number = flow.num_to_start(1, 0, num_generations=4)
                assert number or self.flow.is_decided, "nothing is in flight, and nothing may be started"
            for _ in range(number):
                self.start()
            if flow.in_flight and chance.random() < 0.8:
                place = chance.choice(sorted(flow.in_flight))
                self.verdicts[place] = self.stream.is_informative[place]
                flow.resolve(place, self.verdicts[place])
                assert place not in flow.in_flight
        return self

    def start(self):
        while self.stream.is_passed_over[self.position]:
            self.position += 1
        busy = Counter(self.flow.in_flight.values())
        rank = self.flow.start(self.position)
        assert busy[rank] == min(busy[other] for other in range(3))
        self.position += 1

    def check_unneeded(self):
        before = set(self.flow.in_flight)
        found = self.found()
        given_up = self.flow.unneeded()
        assert set(given_up) == before - set(self.flow.in_flight)
        self.given_up |= set(given_up)
        # As long as fewer than N are found, any group may be one of them.
        assert not given_up or len(found) >= self.flow.num_groups
        assert all(place > found[self.flow.num_groups - 1] for place in given_up)

    def found(self):
        return sorted([*self.held, *(place for place, good in self.verdicts.items() if good)])

    def trained(self):
        return self.found()[: self.flow.num_groups]


@few
@given(streams, st.integers(1, 6), st.sampled_from([0, 0, 1, 3, 6]))
def test_batches_are_the_informative_groups_in_stream_order(parts, num_groups, num_kept):
    chance, rate, has_gaps = parts
    stream = StreamOfDraws(chance, rate, has_gaps)
    position, held, resumed, trained = 0, [], [], []
    for _ in range(4):
        batch = Batch(stream, chance, position, num_groups, num_kept, held=held, resumed=resumed).run()
        flow, found = batch.flow, batch.found()
        assert flow.cutoff == found[num_groups - 1]
        trained += batch.trained()
        # Nothing of the batch was given up.
        assert not batch.given_up & set(batch.trained())
        kept = flow.kept()
        assert kept == sorted(kept)
        assert len(kept) <= num_kept
        assert not batch.given_up & set(kept)
        assert all(place > flow.cutoff for place in kept)
        # Nothing is skipped: what lies before the next draw is judged, trains, or is kept.
        position = flow.next_position(batch.position)
        known = {*kept, *batch.trained(), *(place for place, good in batch.verdicts.items() if not good)}
        for place in range(batch.first, position):
            assert stream.is_passed_over[place] or place in known
        assert all(place < position for place in (*batch.trained(), *kept))
        if not num_kept:
            assert position == flow.cutoff + 1
        held = [place for place in kept if place in found]
        resumed = [(place, flow.in_flight[place]) for place in kept if place in flow.in_flight]
        assert sorted([*held, *(place for place, _ in resumed)]) == kept
    # However the verdicts came, no group is left out, none comes twice.
    assert trained == stream.informative()[: 4 * num_groups]


@few
@given(streams, st.integers(1, 6), st.integers(1, 12))
def test_spent_batch_ends_with_its_last_verdict(parts, num_groups, max_started):
    chance, rate, has_gaps = parts
    stream = StreamOfDraws(chance, rate, has_gaps)
    batch = Batch(stream, chance, 0, num_groups, num_kept=0, max_started=max_started).run()
    started = [place for place in range(batch.position) if not stream.is_passed_over[place]]
    assert len(started) <= max_started
    expected = [place for place in started if stream.is_informative[place]][:num_groups]
    assert batch.trained() == expected
    if len(expected) < num_groups:
        assert len(started) == max_started
        assert not batch.flow.in_flight
        assert not batch.given_up
        assert batch.flow.next_position(batch.position) == batch.position


@few
@given(streams, st.integers(1, 6))
def test_is_decided_no_sooner_and_no_later_than_the_batch_is_certain(parts, num_groups):
    """Certain: all ways in which the groups in flight may turn out give the same batch."""
    chance, rate, _ = parts
    flow, stream = RefillFlow(num_groups, max_started=8), StreamOfDraws(chance, rate, False)
    for position in range(8):
        flow.start(position)
    order = list(range(8))
    chance.shuffle(order)
    found = []
    for place in order:
        batches = set()
        for outcome in itertools.product((False, True), repeat=len(flow.in_flight)):
            more = [other for other, good in zip(flow.in_flight, outcome, strict=True) if good]
            batches.add(tuple(sorted([*found, *more])[:num_groups]))
        assert flow.is_decided == (len(batches) == 1)
        flow.resolve(place, stream.is_informative[place])
        found += [place] if stream.is_informative[place] else []
    assert flow.is_decided


@pytest.mark.parametrize(
    ("num_idle", "expected"),
    [(0, 2), (11, 3), (16, 4), (1000, 5)],
    ids=["target", "a slot for each completion", "no slot idle", "no more than may be kept"],
)
def test_idle_slots_are_filled_with_what_can_be_kept(num_idle, expected):
    # 3 in flight, 1 informative: the batch of 3 lacks 2, and 6 more may be kept, so that 5 find a place.
    flow = RefillFlow(num_groups=3, max_started=100, num_kept=6)
    for position in range(4):
        flow.start(position)
    flow.resolve(0, is_informative=True)
    assert flow.num_to_start(target=5, num_idle_slots=num_idle, num_generations=4) == expected


def test_nothing_is_started_behind_a_gap():
    flow = RefillFlow(num_groups=1, max_started=100, num_kept=1)
    for position in range(4):
        flow.start(position)
    flow.resolve(1, is_informative=True)
    # One is kept beyond the batch; the last one would be the second.
    assert flow.unneeded() == [3]
    assert flow.num_to_start(target=10, num_idle_slots=10, num_generations=1) == 0
    assert flow.next_position(4) == 3


def test_verdict_on_a_group_that_was_given_up_counts_for_nothing():
    flow = RefillFlow(num_groups=1, max_started=100)
    flow.start(0), flow.start(1)
    flow.resolve(0, is_informative=True)
    assert flow.unneeded() == [1]
    flow.resolve(1, is_informative=True)
    assert flow.cutoff == 0
    assert flow.next_position(2) == 1
