"""
Filling the generation batch without rounds: groups are started, graded and given up one by one.

Each rank decodes its own groups. What it finds out is told to all in exchanges that nobody waits for: a rank brings its
news, goes on decoding, and takes everybody's when they have come. Since all take the same exchanges in the same order,
all decide alike, and all stop at the same one.
"""

import copy
import math
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .collectives import PendingRows, Ranks
from .config import DAPOConfig
from .errors import RankFailedError
from .group_grader import GroupGrader
from .rollouts import Rollout
from .sampling.collection import BatchCollection
from .sampling.group_filter import GroupVerdict
from .sampling.groups import GroupJudge, Location, RowFacts, SampledGroup
from .sampling.prompt_stream import Draw
from .sampling.refill_flow import RefillFlow
from .sampling.refill_planner import RefillPlanner, RoundPlan
from .streamed_group import SequenceEngine, StreamedGroup


# News that a rank brings to one exchange; the rest waits for the next. Exchanges have one size, as no rank knows how much
# the others have to tell.
_NEWS_PER_EXCHANGE = 32
_NO_NEWS = [-1, 0]
# Seconds between two looks at the grader, while the engine has nothing to do.
_PATIENCE = 0.01


@dataclass(frozen=True, slots=True)
class StreamSources:
    """
    What a rank samples with.

    Attributes:
        engine (`SequenceEngine`):
            Decodes completions.
        tokenize (`Callable[[list[dict]], list[list[int]]]`):
            Returns the prompts of dataset rows in tokens.
        grader (`GroupGrader`):
            Notes rewards, facts and rollouts in groups whose completions are done.
    """

    engine: SequenceEngine
    tokenize: Callable[[list[dict[str, Any]]], list[list[int]]]
    grader: GroupGrader


class StreamRefill:
    """
    Samples the groups of generation batches one by one, with membership by stream order.

    Args:
        args (`DAPOConfig`):
            The trainer's configuration.
        ranks (`Ranks`):
            The ranks of the run.
        sources (`StreamSources`):
            What this rank samples with.
        judge (`GroupJudge`):
            Judges the sampled groups.
        planner (`RefillPlanner`):
            Says how many groups should be in flight.
        num_rewards (`int`):
            Reward functions F.
        row_of (`Callable[[Draw], dict]`):
            Returns the dataset row of a draw.
        draw (`Callable[[int], list[Draw]]`):
            Takes the next draws from the prompt stream.
        stream_position (`Callable[[], int]`):
            Says where the prompt stream stands.

    Attributes:
        suspended (`dict[int, tuple[Draw, int]]`):
            Groups that go on in the next batch, by position: the draw, and the rank that samples it. The same on all ranks.
        groups (`dict[int, StreamedGroup]`):
            Groups of this rank that have no verdict yet, as far as all ranks know.
        last_plan (`RoundPlan` or `None`):
            The last plan of how many groups should be in flight.
        num_unscored (`list[int]`):
            For each rank, the completions that go on in the next batch and have new tokens.
        seconds (`float`):
            Seconds that the last batch took on the slowest rank.
        figures (`dict[str, float]`):
            What there is to say of it beside what any refill says, by names below `dapo/`.
        graded (`list[StreamedGroup]`):
            Groups of this rank that were judged for it.
        spare (`tuple[Draw, Rollout]` or `None`):
            Some rollout of this rank.
    """

    def __init__(
        self,
        args: DAPOConfig,
        ranks: Ranks,
        sources: StreamSources,
        judge: GroupJudge,
        planner: RefillPlanner,
        num_rewards: int,
        row_of: Callable[[Draw], dict[str, Any]],
        draw: Callable[[int], list[Draw]],
        stream_position: Callable[[], int],
    ):
        self.args = args
        self.ranks = ranks
        self.engine = sources.engine
        self.tokenize = sources.tokenize
        self.grader = sources.grader
        self.judge = judge
        self.planner = planner
        self.num_rewards = num_rewards
        self.row_of = row_of
        self.draw = draw
        self.stream_position = stream_position
        self.suspended: dict[int, tuple[Draw, int]] = {}
        self.groups: dict[int, StreamedGroup] = {}
        self.last_plan: RoundPlan | None = None
        self.num_unscored: list[int] = [0] * ranks.num_ranks
        self.seconds = 0.0
        self.figures: dict[str, float] = {}
        self.graded: list[StreamedGroup] = []
        self.spare: tuple[Draw, Rollout] | None = None
        self._num_batches = 0
        self._news: deque[StreamedGroup] = deque()
        self._failure: Exception | None = None

    @property
    def num_kept(self) -> int:
        """
        Groups beyond the batch that may be kept for later ones.

        So few that each has its turn before it is too old: every batch uses up its number of groups, or all there are.
        """
        if self.args.surplus != "carry":
            return 0
        num_batches = self.args.max_off_policy_steps // self.args.num_updates_per_batch
        return max(1, num_batches) * self.args.num_groups_per_batch

    def fill(self, collection: BatchCollection, policy_step: int) -> dict[Location, Rollout]:
        """
        Samples until the batch is decided, or all groups that it may start have their verdicts. A collective.

        Args:
            collection (`BatchCollection`):
                Gets the sampled groups. It has those that an earlier batch kept.
            policy_step (`int`):
                Optimizer steps that the policy has taken.

        Returns:
            `dict[Location, Rollout]`: the rollouts of informative groups that this rank sampled.

        Raises:
            `RankFailedError`: on all ranks but those that failed, which raise what happened to them.
        """
        self._start, self._grading, self._waited = time.perf_counter(), self.grader.seconds, self.grader.seconds_waited
        self._policy_step = policy_step
        self._num_graded = [0] * self.ranks.num_ranks
        self._draws = {position: draw for position, (draw, _) in self.suspended.items()}
        self._num_aborted_tokens = 0
        self.graded = []
        flow = self._flow = self._begin(collection)
        pending = self._tell()
        while True:
            is_idle = not self.engine.num_unfinished and self.grader.is_idle
            if is_idle or self._failure is not None or pending.is_done():
                self._learn(pending.wait())
                if flow.is_decided:
                    return self._settle(collection, self.stream_position())
                self._attempt(self._adjust)
                pending = self._tell()
            self._attempt(self._work)

    def unscored(self) -> list[tuple[StreamedGroup, int]]:
        """Returns the completions of this rank that go on later and have new tokens: their group, and number in it."""
        return [
            (group, sample)
            for group in self.groups.values()
            for sample in range(len(group.token_ids))
            if group.has_new_tokens(sample)
        ]

    @property
    def fresh_rollouts(self) -> list[Rollout]:
        """A rollout of each group of this rank that the present policy sampled alone."""
        return [group.rollouts[0] for group in self.graded if group.policy_step == self._policy_step]

    # What a rank does by itself

    def _attempt(self, work: Callable[[], None]) -> None:
        """Does something that may fail, unless it did: a failure is told to the others before it is raised."""
        if self._failure is None:
            try:
                work()
            except Exception as error:
                self._failure = error

    def _begin(self, collection: BatchCollection) -> RefillFlow:
        flow = RefillFlow(
            num_groups=collection.num_groups,
            max_started=self.args.max_generation_rounds * self.args.max_prompts_per_round,
            num_kept=self.num_kept,
            num_ranks=self.ranks.num_ranks,
        )
        for group in collection.carried:
            flow.hold(group.draw.position)
        for position, (_, rank) in self.suspended.items():
            flow.resume(position, rank)
        self.suspended = {}
        self._attempt(self.engine.begin)
        for streamed in self.groups.values():
            self._attempt(partial(self._submit, streamed))
        return flow

    def _submit(self, group: StreamedGroup) -> None:
        if group.is_graded:
            self._news.append(group)
        elif not group.unfinished:
            self.grader.submit(group)
        for key in group.keys:
            self.engine.submit(key, group.prompt_ids, group.token_ids[key.sample])

    def _work(self) -> None:
        if self.engine.num_unfinished:
            for key, decoded in self.engine.step().items():
                group = self.groups[key.position]
                group.extend(key.sample, decoded, is_finished=True)
                if not group.unfinished:
                    self.grader.submit(group)
        else:
            self.grader.wait(_PATIENCE)
        self._news.extend(group for group in self.grader.poll() if group.draw.position in self.groups)

    def _give_up(self, positions: Iterable[int]) -> None:
        """Drops those of the groups that are this rank's."""
        groups = [self.groups.pop(position) for position in positions if position in self.groups]
        self._withdraw(groups)
        self._num_aborted_tokens += sum(group.num_tokens for group in groups)
        self._news = deque(group for group in self._news if group.draw.position in self.groups)

    def _withdraw(self, groups: Iterable[StreamedGroup]) -> None:
        by_key = {key: group for group in groups for key in group.keys}
        for key, decoded in self.engine.withdraw(by_key).items():
            by_key[key].extend(key.sample, decoded, is_finished=False)

    # What all ranks do alike

    def _tell(self) -> PendingRows:
        news = [self._news.popleft() for _ in range(min(_NEWS_PER_EXCHANGE, len(self._news)))]
        rows = [[group.draw.position, self._verdict(group) is GroupVerdict.INFORMATIVE] for group in news]
        header = [self._failure is not None, self.engine.num_slots - self.engine.num_unfinished]
        return self.ranks.begin_gather_rows([header, *rows, *[_NO_NEWS] * (_NEWS_PER_EXCHANGE - len(rows))])

    def _learn(self, rows: list[list[int]]) -> None:
        """Takes the news of all ranks."""
        size = 1 + _NEWS_PER_EXCHANGE
        headers = rows[::size]
        if any(has_failed for has_failed, _ in headers):
            self._raise_failure()
        self._num_idle_slots = sum(max(0, idle) for _, idle in headers)
        resolved = [
            (position, is_informative) for number, (position, is_informative) in enumerate(rows) if number % size
        ]
        for position, is_informative in resolved:
            if position < 0:
                continue
            if position in self._flow.in_flight:
                self._num_graded[self._flow.in_flight[position]] += 1
            self._flow.resolve(position, bool(is_informative))
            if position in self.groups:
                self.graded.append(self.groups.pop(position))
        verdicts = [is_informative for position, is_informative in resolved if position >= 0]
        if verdicts:
            self.planner.observe(sum(verdicts), len(verdicts))

    def _adjust(self) -> None:
        """Starts and gives up groups."""
        flow, target = self._flow, 0
        self._give_up(flow.unneeded())
        if flow.num_missing:
            self.last_plan = self.planner.groups_in_flight(flow.num_missing)
            target = self.last_plan.num_prompts
        num_new = flow.num_to_start(target, self._num_idle_slots, self.args.num_generations)
        mine = []
        for draw in self.draw(num_new):
            self._draws[draw.position] = draw
            if flow.start(draw.position) == self.ranks.rank:
                mine.append(draw)
        if not mine:
            return
        rows = [copy.deepcopy(self.row_of(draw)) for draw in mine]
        for draw, row, prompt_ids in zip(mine, rows, self.tokenize(rows), strict=True):
            group = StreamedGroup.begin(draw, row, prompt_ids, self._policy_step, self.args.num_generations)
            self.groups[draw.position] = group
            self._submit(group)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        causes = self.ranks.gather_objects(
            [] if failure is None else [(self.ranks.rank, f"{type(failure).__name__}: {failure}")]
        )
        self._withdraw(self.groups.values())
        self.groups, self.suspended, self._news = {}, {}, deque()
        if failure is not None:
            raise failure
        raise RankFailedError(*causes[0])

    def _settle(self, collection: BatchCollection, stream_position: int) -> dict[Location, Rollout]:
        flow = self._flow
        kept = [position for position in flow.kept() if position in flow.in_flight]
        self.suspended = {position: (self._draws[position], flow.in_flight[position]) for position in kept}
        # These can no longer change the batch. If grading one fails, the next batch says so.
        self._attempt(lambda: self._news.extend(self.grader.drain()))
        self._news.clear()
        self._give_up([position for position in self.groups if position not in self.suspended])
        self._withdraw(self.groups.values())
        groups, header = self._gather_groups()
        num_aborted_tokens, grading, waited, took = header
        collection.settle(groups, flow.next_position(stream_position), took / 1e6, num_aborted_tokens)
        self.seconds = took / 1e6
        self.figures = {
            "stream/groups_suspended": float(len(self.suspended)),
            "stream/grading_hidden": 1.0 - waited / grading if grading else math.nan,
        }
        self.spare = self._spare()
        rank, size = self.ranks.rank, self.args.num_generations
        return {
            Location(self._num_batches, rank, number * size + sample): rollout
            for number, group in enumerate(self.graded)
            if self._verdict(group) is GroupVerdict.INFORMATIVE
            for sample, rollout in enumerate(group.rollouts)
        }

    def _gather_groups(self) -> tuple[list[SampledGroup], list[int]]:
        """Returns the groups that were judged for the batch, in stream order, and figures over all ranks."""
        self._num_batches += 1
        size, clock = self.args.num_generations, time.perf_counter()
        width = 2 + size * (3 + self.num_rewards)
        microseconds = [
            self.grader.seconds - self._grading,
            self.grader.seconds_waited - self._waited,
            clock - self._start,
        ]
        header = [self._num_aborted_tokens, *(round(1e6 * seconds) for seconds in microseconds), len(self.unscored())]
        rows = [
            [
                group.draw.position,
                group.policy_step,
                *(number for facts in group.facts for number in facts),
                *(_as_integer(reward) for rewards in group.rewards for reward in rewards),
            ]
            for group in self.graded
        ]
        most = max(self._num_graded)
        padding = [[-1] * width] * (most - len(rows))
        gathered = self.ranks.gather_rows([header + [0] * (width - len(header)), *rows, *padding])
        groups = []
        for number, row in enumerate(gathered):
            rank, place = divmod(number, 1 + most)
            if place == 0 or row[0] < 0:
                continue
            facts, rewards = row[2 : 2 + 3 * size], list(map(_as_float, row[2 + 3 * size :]))
            groups += self.judge.judge(
                [self._draws[row[0]]],
                [rewards[start : start + self.num_rewards] for start in range(0, len(rewards), self.num_rewards)],
                [RowFacts(*facts[start : start + 3]) for start in range(0, 3 * size, 3)],
                [Location(self._num_batches, rank, (place - 1) * size + sample) for sample in range(size)],
                row[1],
            )
        headers = gathered[:: 1 + most]
        self.num_unscored = [row[4] for row in headers]
        totals = [sum(column) for column in zip(*headers, strict=True)]
        slowest = max(row[3] for row in headers)
        return sorted(groups, key=lambda group: group.draw.position), [*totals[:3], slowest]

    def _spare(self) -> tuple[Draw, Rollout] | None:
        if self.graded:
            return self.graded[0].draw, self.graded[0].rollouts[0]
        if not self._draws:
            return None  # nobody sampled anything, so that nothing is missing or has to be scored
        draw = next(iter(self._draws.values()))
        (prompt_ids,) = self.tokenize([copy.deepcopy(self.row_of(draw))])
        return draw, Rollout.from_lists(prompt_ids, prompt_ids[-1:], [0.0])

    def _verdict(self, group: StreamedGroup) -> GroupVerdict:
        return self.judge.judge([group.draw], group.rewards, group.facts)[0].verdict


def _as_integer(reward: float) -> int:
    """Returns the bits of a reward, to cross ranks among integers."""
    bits: int = struct.unpack("<q", struct.pack("<d", reward))[0]
    return bits


def _as_float(bits: int) -> float:
    reward: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return reward
