"""
Whole runs of dynamic sampling on 1 to 8 ranks against a brute-force reading of the stream.

The oracle below walks the stream one draw at a time and knows nothing of ranks, rounds or placement. It takes two things
from the product, which have tests of their own: the order of the stream, and which draws selective rollout passes over.
"""

import itertools
import json
import math
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from simulated_run import RankRecord, Scenario, simulate
from thread_ranks import run_ranks

from trl_dapo.report.batch_metrics import ledger_metrics
from trl_dapo.sampling.judge import GroupJudge, RowFacts
from trl_dapo.sampling.pass_rates import PassRates
from trl_dapo.sampling.prompt_selection import PromptSelection
from trl_dapo.sampling.prompt_stream import Draw, PromptStream


OUTCOMES = ["mixed", "all right", "all wrong", "uniform", "float noise", "unscorable", "half scored", "infinite"]


def efforts(fast, large):
    """Runs a test with few examples, always the same ones, and as a slow test with many, always others."""
    common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    few = settings(max_examples=fast, derandomize=True, **common)
    many = settings(max_examples=large, print_blob=True, **common)
    return pytest.mark.parametrize("effort", [few, pytest.param(many, marks=pytest.mark.slow)], ids=["few", "many"])


def multiple_of(num_generations, num_ranks):
    """Fewest groups whose rows divide evenly among the ranks."""
    return next(n for n in itertools.count(1) if n * num_generations % num_ranks == 0)


@st.composite
def scenarios(draw, **fixed):
    """Runs of any shape, but for what is fixed. Where G is no multiple of W, groups may straddle ranks."""
    fields = {name: fixed.pop(name) for name in ("num_ranks", "num_updates", "is_iterable") if name in fixed}
    num_ranks = fields.setdefault("num_ranks", draw(st.sampled_from([8, 7, 6, 5, 4, 3, 2, 1])))
    num_generations = draw(st.integers(2, 6))
    multiple = multiple_of(num_generations, num_ranks)
    num_groups = multiple * draw(st.integers(1, max(1, 8 // multiple)))
    is_iterable = fields.setdefault("is_iterable", draw(st.sampled_from([False, False, False, True])))
    options = {
        "surplus": draw(st.sampled_from(["requeue", "carry"])),
        "max_off_policy_steps": draw(st.sampled_from([1, 2, 4, 12])),
        "selective_rollout": draw(st.booleans()) and not is_iterable,
        "max_generation_rounds": draw(st.sampled_from([1, 2, 4, 8])),
        "max_prompts_per_round": draw(st.sampled_from([None, 1, num_groups, 3 * num_groups])),
        "refill_confidence": draw(st.sampled_from([0.1, 0.9, 0.99999, None])),
        "on_exhausted": draw(st.sampled_from([*["partial"] * 7, "error"])),
        "filter_range": draw(st.sampled_from([None, None, None, (0.3, 0.8)])),
        "shuffle_dataset": draw(st.booleans()),
        "use_vllm": draw(st.booleans()),
        "log_completions": draw(st.booleans()),
    }
    # From runs in which every group teaches to runs in which none does.
    mostly = draw(st.sampled_from([[], ["mixed"], ["mixed"] * 4]))
    some = draw(st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4))
    return Scenario(
        num_generations=num_generations,
        num_groups=num_groups,
        num_rows=draw(st.integers(1, 60)),
        num_batches=draw(st.integers(3, 5)),
        outcomes=tuple(mostly + some),
        is_persistent=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
        filter_column=draw(st.integers(0, 1)),
        options=options | fixed,
        **{"num_updates": draw(st.integers(1, 3))} | fields,
    )


class Oracle:
    """What a run has to do, told from the stream alone."""

    def __init__(self, scenario: Scenario):
        self.scenario = scenario
        self.options = scenario.options
        self.cursor = 0
        self.carried: list[tuple[int, int]] = []  # (position, policy step that sampled it)
        rates = PassRates(scenario.num_rows, scenario.num_generations, scenario.options["filter_range"])
        self.history = PromptSelection(PromptStream(scenario.num_rows), rates, seed=scenario.seed)
        self.stream = PromptStream(scenario.num_rows, scenario.seed, self.options["shuffle_dataset"])
        self.foretold: dict[int, int] = {}
        self.rows: dict[int, int] = {}  # the row of each draw that was sampled

    def row_at(self, position):
        if self.scenario.is_iterable:
            return self.rows[position]
        if position not in self.foretold:
            self.stream.seek(position)
            self.foretold[position] = self.stream.peek(1)[0].index
        return self.foretold[position]

    def is_skipped(self, position):
        return self.options["selective_rollout"] and not self.history.samples(Draw(position, self.row_at(position)))

    def is_informative(self, position):
        scored = [r for r in self.scenario.rewards(position, self.row_at(position)) if math.isfinite(r)]
        if not scored or max(scored) - min(scored) <= 1e-6:
            return False
        low, high = self.options["filter_range"] or (-math.inf, math.inf)
        return low < sum(scored) / len(scored) < high

    def draws_from(self, position):
        return (p for p in itertools.count(position) if not self.is_skipped(p))

    def check_batch(self, records: list[RankRecord]):
        """Checks one batch, given what each rank noted, and moves on to the next one."""
        scenario, options = self.scenario, self.options
        num_groups, policy_step = scenario.num_groups, records[0].policy_step
        keeps = options["surplus"] == "carry"

        # Rounds: each takes the next draws that are not skipped, every completion of each once, over all ranks.
        rounds = []
        for asked in zip(*(record.asked for record in records), strict=True):
            samples = Counter((position, sample) for part in asked for position, _, sample in part)
            positions = sorted({position for position, _ in samples})
            assert samples == Counter(itertools.product(positions, range(scenario.num_generations)))
            for position, row, _ in itertools.chain.from_iterable(asked):
                assert self.rows.setdefault(position, row) == row, "a draw that was given back came with another row"
            rounds.append(positions)
        sampled = [position for positions in rounds for position in positions]
        assert sampled == list(itertools.islice(self.draws_from(self.cursor), len(sampled)))
        assert all(self.rows[position] == self.row_at(position) for position in sampled)

        # The batch: what was carried and is young enough, then the informative draws in stream order.
        fresh = [group for group in self.carried if policy_step - group[1] <= options["max_off_policy_steps"]]
        found = [fresh]
        for positions in rounds:
            assert len(found[-1]) < num_groups, "a round was sampled for a batch that was full"
            new = [(position, policy_step) for position in positions if self.is_informative(position)]
            found.append(found[-1] + new)
        accepted, surplus = found[-1][:num_groups], found[-1][num_groups:]
        is_exhausted = len(accepted) < num_groups
        assert len(rounds) <= options["max_generation_rounds"]
        assert not is_exhausted or len(rounds) == options["max_generation_rounds"]
        if is_exhausted and options["on_exhausted"] == "error":
            # Nothing trains, and nothing is used up.
            for record in records:
                assert (record.error.num_accepted, record.error.num_rounds) == (len(accepted), len(rounds))
                assert record.position == self.cursor
            return
        start = self.cursor
        if keeps or is_exhausted:
            self.cursor = sampled[-1] + 1 if sampled else self.cursor
        else:
            self.cursor = accepted[-1][0] + 1
        used = [position for position in sampled if position < self.cursor]
        if used:
            draws = [Draw(position, self.row_at(position)) for position in used]
            rewards = [[reward] for draw in draws for reward in scenario.rewards(draw.position, draw.index)]
            judge = GroupJudge([0], options["filter_range"])
            self.history.settle(judge.judge(draws, rewards, [RowFacts(1, 1, 0)] * len(rewards)))
        num_stale, self.carried = len(self.carried) - len(fresh), surplus if keeps else []
        self.check_rows(records, accepted)
        self.check_accounts(records, rounds, accepted)
        for record in records:
            assert record.error is None
            assert record.position == self.cursor
            assert record.state["stream"]["position"] == min([self.cursor, *(p for p, _ in self.carried)])
            collection = record.batch.ledger
            assert [group.draw.position for group in collection.accepted] == [position for position, _ in accepted]
            assert collection.num_stale == num_stale
            assert collection.num_skipped == self.cursor - start - len(used)

    def check_rows(self, records, accepted):
        """Every row of the batch, over all ranks, is the right completion of the right group, with what belongs to it."""
        scenario, size = self.scenario, self.scenario.num_generations
        step_of = dict(accepted)
        batches = [record.batch for record in records]
        share = scenario.num_groups * size // scenario.num_ranks
        assert all(len(b.inputs) == len(b.rollouts) == len(b.is_filler) == share for b in batches)
        inputs, rollouts, is_filler = (
            list(itertools.chain.from_iterable(getattr(batch, name) for batch in batches))
            for name in ("inputs", "rollouts", "is_filler")
        )
        rewards = batches[0].rewards.tolist()
        placed = []
        for first in range(0, len(inputs), size):
            rows = range(first, first + size)
            if is_filler[first]:
                assert all(is_filler[row] and len(rollouts[row].completion_ids) <= 1 for row in rows)
                assert all(math.isnan(reward) for row in rows for reward in rewards[row])
                continue
            position = inputs[first]["position"]
            placed.append(position)
            for sample, row in enumerate(rows):
                assert not is_filler[row]
                expected = scenario.rollout(position, self.row_at(position), sample)
                assert inputs[row] == {"row": self.row_at(position), "position": position}
                assert same_bits(rollouts[row].prompt_ids, expected.prompt_ids)
                assert same_bits(rollouts[row].completion_ids, expected.completion_ids)
                assert same_bits(rollouts[row].sampling_logps, expected.sampling_logps)
                # A group of this very policy has none: they are computed when it trains.
                is_carried = step_of[position] < records[0].policy_step
                old = scenario.logps(expected, step_of[position]) if is_carried else None
                assert same_bits(rollouts[row].old_logps, old)
                given = torch.tensor(scenario.all_rewards(position, self.row_at(position), sample))
                assert same_bits(torch.tensor(rewards[row]).nan_to_num(-1.0), given.nan_to_num(-1.0))
                if self.options["log_completions"]:
                    assert rollouts[row].extra_logs == expected.extra_logs
        assert sorted(placed) == sorted(step_of)
        if scenario.num_ranks == 1:
            assert placed == [position for position, _ in accepted]

    def check_accounts(self, records, rounds, accepted):
        """Tokens and seconds by fate, from what each rank was asked for."""
        trained = {position for position, _ in accepted}
        tokens, seconds = Counter(), Counter()
        slowest = [max(times) for times in zip(*(record.seconds for record in records), strict=True)]
        for positions, longest in zip(rounds, slowest, strict=True):
            lengths = {p: sum(self.num_tokens(p, s) for s in range(self.scenario.num_generations)) for p in positions}
            for position, length in lengths.items():
                fate = "rejected"
                if self.is_informative(position):
                    fate = "trained" if position in trained else "surplus"
                tokens[fate] += length
                seconds[fate] += longest * length / sum(lengths.values())
        for record in records:
            metrics = ledger_metrics(record.batch.ledger)
            for unit, expected in (("tokens", tokens), ("seconds", seconds)):
                by_fate = {name.split("/")[1]: value for name, value in metrics.items() if name.startswith(f"{unit}/")}
                assert by_fate.pop("trained") == pytest.approx(expected["trained"])
                assert by_fate.pop("surplus") == pytest.approx(expected["surplus"])
                assert sum(by_fate.values()) == pytest.approx(expected["rejected"])
            assert record.seconds_sampling == pytest.approx(sum(slowest))

    def num_tokens(self, position, sample):
        return len(self.scenario.rollout(position, self.row_at(position), sample).completion_ids)

    def check_passes(self):
        """Every whole pass holds each row once, and no pass holds one twice."""
        size = self.scenario.num_rows
        for start in range(0, self.cursor, size):
            rows = [self.rows[p] for p in range(start, min(start + size, self.cursor)) if p in self.rows]
            assert len(set(rows)) == len(rows)
            if start + size <= self.cursor and not self.options["selective_rollout"]:
                assert sorted(rows) == list(range(size))


def same_bits(one, other):
    """Whether two vectors are equal to the bit, NaN included; or both absent."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))  # fmt: skip


def assert_ranks_agree(records: list[RankRecord]):
    def told(record: RankRecord):
        batch = record.batch
        seen = [
            record.plan,
            record.position,
            json.dumps(record.source_metrics),
            json.dumps(record.state),
            str(record.error),
        ]
        return [*seen, batch and [repr(batch.ledger), repr(batch.rewards.tolist()), batch.num_moved_words]]

    assert all(told(record) == told(records[0]) for record in records)


def check_run(scenario: Scenario):
    oracle = Oracle(scenario)
    for records in simulate(scenario):
        assert_ranks_agree(records)
        oracle.check_batch(records)
    oracle.check_passes()


# Beside runs of any kind, runs of those kinds that chance alone would seldom make.
CARRY = {"surplus": "carry", "on_exhausted": "partial", "filter_range": None}
KINDS = {
    "any": {},
    "requeue": {"surplus": "requeue", "max_generation_rounds": 20, "on_exhausted": "partial"},
    "carry": CARRY | {"max_off_policy_steps": 12, "max_generation_rounds": 20},
    # Rounds so large that surplus waits for the batch after the next one.
    "long carry": CARRY | {"max_off_policy_steps": 100, "refill_confidence": 1 - 1e-9, "max_prompts_per_round": 100},
    "stale": CARRY | {"max_off_policy_steps": 2, "num_updates": 2, "refill_confidence": 1 - 1e-9},
    "selective": {"selective_rollout": True, "is_iterable": False},
    "iterable": {"selective_rollout": False, "is_iterable": True},
    "exhausted": {"max_generation_rounds": 2, "max_prompts_per_round": 3, "on_exhausted": "partial"},
    "error": {"max_generation_rounds": 2, "on_exhausted": "error"},
}


@efforts(fast=12, large=200)
@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_trains_its_part_of_the_first_informative_groups(kind, effort):
    test = effort(given(scenarios(**KINDS[kind]))(check_run))
    # Other shapes for each kind.
    (seed(list(KINDS).index(kind))(test) if effort.derandomize else test)()


def trained(records: list[RankRecord], with_old_logps=True):
    """The rows that carry weight, over all ranks, whatever rank trains them: (completion, prompt, rewards, old logprobs)."""
    rows = []
    rewards = iter(records[0].batch.rewards.nan_to_num(-1.0).tolist())
    for batch in (record.batch for record in records):
        for rollout, is_filler in zip(batch.rollouts, batch.is_filler, strict=True):
            old = rollout.old_logps if with_old_logps else None
            row = (rollout.completion_ids.tolist(), rollout.prompt_ids.tolist(), next(rewards), [] if old is None else old.tolist())  # fmt: skip
            if not is_filler:
                rows.append(row)
    return sorted(rows)


# With several multiples of prompts in a round, and so other rounds for other world sizes. No batch is left short, and
# no surplus grows too old: both depend on what a round happens to hold.
ENDLESS = {"max_generation_rounds": 1000, "on_exhausted": "error", "filter_range": None, "max_off_policy_steps": 1000}


@efforts(fast=12, large=500)
def test_every_world_size_trains_the_same_rows(effort):
    def check(alone: Scenario):
        has_carried = alone.options["surplus"] == "carry"
        # What selective rollout learns from surplus that is kept depends on the rounds.
        options = alone.options | ({"selective_rollout": False} if has_carried else {})
        alone = replace(alone, outcomes=(*alone.outcomes, "mixed"), is_persistent=False, options=options)
        one = simulate(alone)
        num_rows = alone.num_groups * alone.num_generations
        for num_ranks in (w for w in range(2, 9) if num_rows % w == 0):
            for records, its in zip(simulate(replace(alone, num_ranks=num_ranks)), one, strict=True):
                # The step that sampled a carried group depends on the rounds too.
                assert trained(records, not has_carried) == trained(its, not has_carried)
                assert has_carried or {record.position for record in records} == {its[0].position}

    effort(given(scenarios(num_ranks=1, **ENDLESS))(check))()


@efforts(fast=25, large=500)
def test_world_sizes_that_divide_the_group_share_every_decision(effort):
    def check(alone: Scenario):
        one = simulate(alone)
        for num_ranks in (w for w in range(2, 9) if alone.num_generations % w == 0):
            for records, its in zip(simulate(replace(alone, num_ranks=num_ranks)), one, strict=True):
                assert trained(records) == trained(its)
                for record in records:
                    assert (record.plan, record.position) == (its[0].plan, its[0].position)
                    assert record.state["selection"] == its[0].state["selection"]
                    assert record.batch.ledger.verdict_counts == its[0].batch.ledger.verdict_counts

    effort(given(scenarios(num_ranks=1, refill_confidence=0.9, on_exhausted="partial"))(check))()


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(1, 8).flatmap(lambda w: st.lists(st.lists(st.integers(0, 3), min_size=w, max_size=w), min_size=w, max_size=w)))  # fmt: skip
def test_exchange_brings_every_tensor_to_its_rank(counts):
    def message(source, target):
        return [torch.full((1 + n,), 100 * source + 10 * target + n).int() for n in range(counts[source][target])]

    everybody = range(len(counts))

    def work(ranks):
        coming = [message(source, ranks.rank) for source in everybody]
        received = ranks.exchange(
            [message(ranks.rank, target) for target in everybody], [list(map(len, part)) for part in coming]
        )
        return [[tensor.tolist() for tensor in part] for part in received] == [
            [tensor.tolist() for tensor in part] for part in coming
        ]

    assert all(run_ranks(len(counts), work))


def test_simulated_rank_that_raises_stops_the_others():
    def work(ranks):
        if ranks.rank == 1:
            raise ValueError("rank 1 has had enough")
        ranks.gather_rows([[1]])

    start = time.perf_counter()
    with pytest.raises(ValueError, match="rank 1 has had enough"):
        run_ranks(4, work)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("last", [lambda ranks: ranks.gather_objects([1]), lambda ranks: None])
def test_simulated_ranks_that_part_ways_are_found_out(last):
    def work(ranks):
        last(ranks) if ranks.rank == 2 else ranks.gather_rows([[1]])

    with pytest.raises(AssertionError, match="different operations"):
        run_ranks(3, work)
