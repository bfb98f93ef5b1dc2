"""
Filling the generation batch without rounds: groups are started, graded and given up one by one.

Each rank decodes its own groups. What it learns is reported to all ranks in exchanges that no rank waits for: a rank sends
its news, continues decoding, and reads the news of all ranks when they have arrived. All ranks read the same exchanges in
the same order, so all take the same decisions, and all stop at the same exchange.
"""

import copy
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from trl_dapo.config.batch_shape import BatchShape
from trl_dapo.ranks.collectives import PendingRows
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.refill.assembly import ObserveGroups, RefillResult
from trl_dapo.refill.progress import BatchSoFar, SamplingProgress
from trl_dapo.refill.prompt_source import PromptSource
from trl_dapo.sampling.judge import GroupVerdict, Location
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.sampling.refill_flow import RefillFlow
from trl_dapo.sampling.refill_ledger import RefillLedger
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan
from trl_dapo.vllm_engine.canary import NUM_ROWS

from .group_exchange import GroupExchange
from .local_groups import LocalGroups
from .streamed_group import StreamedGroup, UnfinishedCompletion


# News that a rank brings to one exchange, at most, and for which there is room in all; the rest waits for the next.
# Exchanges have one size, as no rank knows how much the others have to tell, and every rank reads all of it between two
# steps of its engine: with many ranks each has few groups, and room for a few news.
_NEWS_PER_RANK, _NEWS_PER_EXCHANGE = 32, 1024
_NO_NEWS = [-1, 0]
# Seconds between two looks for the news of other ranks, while this one has nothing to do.
_PATIENCE = 0.001


class StreamRefill:
    """
    Samples the groups of generation batches one by one, with membership by stream order; a [`Refill`].

    Args:
        shape (`BatchShape`):
            The shape of a generation batch.
        source (`PromptSource`):
            Gives the prompts.
        planner (`RefillPlanner`):
            Says how many groups should be in flight.
        groups (`LocalGroups`):
            Samples the groups of this rank.
        exchange (`GroupExchange`):
            Judges groups, and exchanges them between ranks.
        observe (`ObserveGroups`, *optional*):
            Is shown the judged groups of a batch.
        progress (`SamplingProgress`, *optional*):
            Is told of judged groups.

    Attributes:
        suspended (`dict[int, tuple[Draw, int]]`):
            Groups that go on in the next batch, by position: the draw, and the rank that samples it. The same on all ranks.
    """

    def __init__(
        self,
        shape: BatchShape,
        source: PromptSource,
        planner: RefillPlanner,
        groups: LocalGroups,
        exchange: GroupExchange,
        observe: ObserveGroups | None = None,
        progress: SamplingProgress | None = None,
    ):
        self.shape = shape
        self.source = source
        self.planner = planner
        self.groups = groups
        self.exchange = exchange
        self.ranks = exchange.ranks
        self.observe = observe
        self.progress = progress or SamplingProgress()
        self.suspended: dict[int, tuple[Draw, int]] = {}
        self._plan: RoundPlan | None = None
        self._num_batches = 0
        self._num_news = min(_NEWS_PER_RANK, -(-_NEWS_PER_EXCHANGE // self.ranks.num_ranks))

    @property
    def num_kept(self) -> int:
        """
        Groups beyond the batch that may be kept for later ones.

        So few that each has its turn before it is too old: every batch uses up its number of groups, or all there are.
        """
        if not self.shape.keeps_surplus:
            return 0
        num_batches = self.shape.max_off_policy_steps // self.shape.num_updates
        return max(1, num_batches) * self.shape.num_groups

    def state_dict(self) -> dict[str, Any]:
        """Returns the groups that go on, with what this rank has of its own."""
        return self._state_of(self.suspended, self.groups.by_position)

    def state_before(self) -> dict[str, Any]:
        """Returns the state before the last batch was begun."""
        suspended, groups, _ = self._before
        return self._state_of(suspended, groups)

    def _state_of(
        self, suspended: Mapping[int, tuple[Draw, int]], groups: Mapping[int, StreamedGroup]
    ) -> dict[str, Any]:
        return {
            "num_batches": self._num_batches,
            "suspended": [[draw.position, draw.index, rank] for draw, rank in suspended.values()],
            "groups": [group.state_dict() for group in groups.values()],
        }

    def load_state_after(self, state: Mapping[str, Any]) -> None:
        """Continues with the state after a batch, where that before it was loaded; `undo` gives that one back."""
        self._before = self._held()
        self.load_state_dict(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues with a saved state. The rows of the groups are read anew."""
        self._num_batches = state["num_batches"]
        self.suspended = {position: (Draw(position, index), rank) for position, index, rank in state["suspended"]}
        groups = [StreamedGroup.from_state_dict(group) for group in state["groups"]]
        for group in groups:
            group.row = self.source.row(group.draw)
        self.groups.by_position = {group.draw.position: group for group in groups}

    def fill(self, ledger: RefillLedger, policy_step: int) -> RefillResult:
        """Samples until the batch is decided, or all groups that it may start have their verdicts; see [`Refill.fill`]."""
        self.begin(ledger, policy_step)
        self.sample()
        return self.settle(ledger)

    def begin(self, ledger: RefillLedger, policy_step: int) -> None:
        """Brings the weights as they are, and begins a batch; see [`Refill.fill`]. A collective."""
        self._start = self._clock()
        self._is_stopped = self._has_failed = False
        # Whether something came to be known since groups were started and given up last.
        self._is_new = True
        self._policy_step = policy_step
        self._before = self._held()
        self._num_judged = [0] * self.ranks.num_ranks
        self._num_idle_slots = 0
        self._draws = {position: draw for position, (draw, _) in self.suspended.items()}
        self._judged: list[StreamedGroup] = []
        self._plan = None
        flow = self._flow = RefillFlow(
            num_groups=ledger.num_groups,
            max_started=self.shape.max_prompts,
            num_kept=self.num_kept,
            num_ranks=self.ranks.num_ranks,
        )
        for group in ledger.carried:
            flow.hold(group.draw.position)
        for position, (_, rank) in self.suspended.items():
            flow.resume(position, rank)
        self.suspended = {}
        self.groups.begin()
        self._pending = self._tell()

    def sample(self) -> None:
        """Samples until the batch is decided, or a rank has failed. In any thread: the ranks talk in a group of their own."""
        while not self._is_stopped:
            if self.groups.is_idle or self._pending.is_done():
                self._hear()
                if self._is_stopped or self._has_failed:
                    break
                # Between two steps of the engine there is mostly nothing new, and all that follows is as it was.
                if self._is_new and self._flow.is_decided:
                    self._end_groups()
                    break
                if self._is_new:
                    self._is_new = False
                    self.groups.attempt(self._adjust)
                self._pending = self._tell()
            self.groups.attempt(self.groups.work)
        self._end = self._clock()

    def stop(self) -> None:
        """Has `sample` return soon, on this rank alone. From any thread."""
        self._is_stopped = True

    def settle(self, ledger: RefillLedger) -> RefillResult:
        """Hands out what was sampled. A collective; see [`Refill.fill`]."""
        if self._has_failed:
            # As if the batch had not been begun, for a checkpoint that is saved before the run ends.
            self.ranks.raise_failure(self.undo())
        result = self._settle(ledger)
        # Those that do not train should not stay in memory while the batch trains.
        self._judged = []
        return result

    def undo(self) -> Exception | None:
        """Gives up a batch that was begun, and returns what went wrong with it on this rank."""
        failure = self.groups.reset()
        self.suspended, self.groups.by_position, planner = self._before
        self.planner.load_state_dict(planner)
        return failure

    def _hear(self) -> None:
        """Waits for the news of all ranks, unless it is to stop, and takes them."""
        while not self._pending.is_done():
            if self._is_stopped:
                return
            time.sleep(_PATIENCE)
        self._learn(self._pending.wait())

    def _tell(self) -> PendingRows:
        news = self.groups.take_news(self._num_news)
        rows = [[group.draw.position, self._is_informative(group)] for group in news]
        header = [self.groups.failure is not None, self.groups.num_idle_slots]
        return self.ranks.begin_gather_rows([header, *rows, *[_NO_NEWS] * (self._num_news - len(rows))])

    def _learn(self, rows: list[list[int]]) -> None:
        """Takes the news of all ranks."""
        size = 1 + self._num_news
        headers, news = rows[::size], [row for number, row in enumerate(rows) if number % size and row != _NO_NEWS]
        if any(has_failed for has_failed, _ in headers):
            self._has_failed = True
            return
        num_idle_slots = sum(idle for _, idle in headers)
        self._is_new |= bool(news) or num_idle_slots != self._num_idle_slots
        self._num_idle_slots = num_idle_slots
        for position, is_informative in news:
            if position in self._flow.in_flight:
                self._num_judged[self._flow.in_flight[position]] += 1
            self._flow.resolve(position, bool(is_informative))
            if position in self.groups.by_position:
                self._judged.append(self.groups.by_position.pop(position))
        if news:
            self.planner.observe(sum(is_informative for _, is_informative in news), len(news))
            num_groups = self.shape.num_groups
            seconds = self._clock()[0] - self._start[0]
            so_far = BatchSoFar(num_groups - self._flow.num_missing, num_groups, len(self._draws), seconds)
            # A terminal that is gone is this rank's own affair.
            self.groups.attempt(partial(self.progress.update, so_far))

    def _adjust(self) -> None:
        """Starts and gives up groups."""
        flow, target = self._flow, 0
        self.groups.give_up(flow.unneeded())
        if flow.num_missing:
            chances = self.source.chances([self._draws[position] for position in flow.in_flight])
            self._plan = self.planner.groups_in_flight(flow.num_missing, chances)
            target = self._plan.num_prompts
        mine = []
        for draw in self.source.draw(flow.num_to_start(target, self._num_idle_slots, self.shape.num_generations)):
            self._draws[draw.position] = draw
            # What the slots are that are idle now, the next news say.
            self._is_new = True
            if flow.start(draw.position) == self.ranks.rank:
                mine.append(draw)
        rows = self.source.rows(mine)
        for draw, row, prompt_ids in zip(mine, rows, self.groups.tokenize(rows) if rows else [], strict=True):
            group = StreamedGroup.begin(draw, row, prompt_ids, self._policy_step, self.shape.num_generations)
            self.groups.start(group)

    def _held(self) -> tuple[dict[int, tuple[Draw, int]], dict[int, StreamedGroup], dict[str, Any]]:
        """Returns what there is between two batches."""
        groups = {position: group.copy() for position, group in self.groups.by_position.items()}
        return dict(self.suspended), groups, copy.deepcopy(self.planner.state_dict())

    def _end_groups(self) -> None:
        """Ends the groups of a batch that is decided; some go on in the next one."""
        kept = [position for position in self._flow.kept() if position in self._flow.in_flight]
        self.suspended = {position: (self._draws[position], self._flow.in_flight[position]) for position in kept}
        self.groups.give_up([position for position in self.groups.by_position if position not in self.suspended])
        self.groups.suspend()

    def _settle(self, ledger: RefillLedger) -> RefillResult:
        flow = self._flow
        self._num_batches += 1
        unfinished = self._unfinished()
        spent = [round(1e6 * (end - begin)) for end, begin in zip(self._end, self._start, strict=True)]
        groups, of_ranks = self.exchange.gather(
            self._judged,
            max(self._num_judged),
            self._draws,
            self._num_batches,
            [self.groups.num_aborted_tokens, len(unfinished), *spent],
        )
        num_aborted_tokens, num_unfinished, seconds, grading, waited = map(list, zip(*of_ranks, strict=True))
        ledger.settle(groups, flow.next_position(self.source.position), max(seconds) / 1e6, sum(num_aborted_tokens))
        size, judged = self.shape.num_generations, self._judged
        if self.observe is not None:
            self.observe(groups, lambda at: judged[at.row // size].rollouts[at.row % size], self.source.row)
        return RefillResult(
            kept={
                Location(self._num_batches, self.ranks.rank, number * size + sample): rollout
                for number, group in enumerate(judged)
                if self._is_informative(group)
                for sample, rollout in enumerate(group.rollouts)
            },
            spare=self._spare(),
            seconds=max(seconds) / 1e6,
            plan=self._plan,
            metrics={
                "stream/groups_suspended": float(len(self.suspended)),
                "stream/grading_hidden": 1.0 - sum(waited) / sum(grading) if sum(grading) else math.nan,
            },
            num_uncounted_tokens=ledger.num_input_tokens,
            # The present policy alone sampled these. No more than are looked at, as they live as long as the batch.
            unchecked=[group.rollouts[0] for group in judged if group.policy_step == self._policy_step][:NUM_ROWS],
            unfinished=[*unfinished],
            num_unfinished=num_unfinished,
            first_suspended=min(self.suspended, default=None),
        )

    def _unfinished(self) -> list[UnfinishedCompletion]:
        """Returns the completions of this rank that go on later and have new tokens."""
        return [
            UnfinishedCompletion(group, sample)
            for group in self.groups.by_position.values()
            for sample in range(len(group.token_ids))
            if group.has_new_tokens(sample)
        ]

    def _spare(self) -> tuple[Draw, Rollout] | None:
        if self._judged:
            return self._judged[0].draw, self._judged[0].rollouts[0]
        if not self._draws:
            return None  # no rank sampled anything, so that nothing is missing or has to be scored
        draw = next(iter(self._draws.values()))
        (prompt_ids,) = self.groups.tokenize([self.source.row(draw)])
        return draw, Rollout.from_lists(prompt_ids, prompt_ids[-1:], [0.0])

    def _is_informative(self, group: StreamedGroup) -> bool:
        (judged,) = self.exchange.judge.judge([group.draw], group.rewards, group.facts)
        return judged.verdict is GroupVerdict.INFORMATIVE

    def _clock(self) -> list[float]:
        """Returns the time, and how much of it the grader spent so far, and how much was spent waiting for it, in seconds."""
        return [time.perf_counter(), self.groups.grader.seconds, self.groups.grader.seconds_waited]
