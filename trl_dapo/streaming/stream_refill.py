"""
Filling the generation batch without rounds: groups are started, graded and given up one by one.

Each rank decodes its own groups. What it finds out is told to all in exchanges that nobody waits for: a rank brings its
news, goes on decoding, and takes everybody's when they have come. Since all take the same exchanges in the same order,
all decide alike, and all stop at the same one.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.ranks.collectives import PendingRows, Ranks
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.sampling.group_filter import GroupVerdict
from trl_dapo.sampling.groups import GroupJudge, Location
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.sampling.refill_flow import RefillFlow
from trl_dapo.sampling.refill_ledger import BatchCollection
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan

from .group_exchange import GroupExchange
from .local_groups import LocalGroups, StreamSources
from .streamed_group import StreamedGroup


# News that a rank brings to one exchange, at most, and for which there is room in all; the rest waits for the next.
# Exchanges have one size, as no rank knows how much the others have to tell, and every rank reads all of it between two
# steps of its engine: with many ranks each has few groups, and room for a few news.
_NEWS_PER_RANK, _NEWS_PER_EXCHANGE = 32, 1024
_NO_NEWS = [-1, 0]


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
        observe (`Callable`, *optional*):
            Is shown the judged groups of a batch, as `RolloutRecorder.observe`.

    Attributes:
        suspended (`dict[int, tuple[Draw, int]]`):
            Groups that go on in the next batch, by position: the draw, and the rank that samples it. The same on all ranks.
        groups (`LocalGroups`):
            Groups of this rank whose verdicts not all ranks know.
        last_plan (`RoundPlan` or `None`):
            The last plan of how many groups should be in flight.
        num_unscored (`list[int]`):
            For each rank, the completions that go on in the next batch and have new tokens.
        seconds (`float`):
            Seconds that the last batch took on the slowest rank.
        figures (`dict[str, float]`):
            What there is to say of it beside what any refill says, by names below `dapo/`.
        judged (`list[StreamedGroup]`):
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
        observe: Callable[..., None] = lambda groups, rollout_at, row_of: None,
    ):
        self.args = args
        self.ranks = ranks
        self.tokenize = sources.tokenize
        self.groups = LocalGroups(sources.engine, sources.grader)
        self.judge = judge
        self.exchange = GroupExchange(ranks, judge, args.num_generations, num_rewards)
        self.planner = planner
        self.row_of = row_of
        self.draw = draw
        self.observe = observe
        self.stream_position = stream_position
        self.suspended: dict[int, tuple[Draw, int]] = {}
        self.last_plan: RoundPlan | None = None
        self.num_unscored: list[int] = [0] * ranks.num_ranks
        self.seconds = 0.0
        self.figures: dict[str, float] = {}
        self.judged: list[StreamedGroup] = []
        self.spare: tuple[Draw, Rollout] | None = None
        self._num_batches = 0
        self._num_news = min(_NEWS_PER_RANK, -(-_NEWS_PER_EXCHANGE // ranks.num_ranks))

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

    def state_dict(self) -> dict[str, Any]:
        """Returns the groups that go on, with what this rank has of its own."""
        return {
            "num_batches": self._num_batches,
            "suspended": [[draw.position, draw.index, rank] for draw, rank in self.suspended.values()],
            "groups": [group.state_dict() for group in self.groups.by_position.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues with a saved state. The rows of the groups are read anew."""
        self._num_batches = state["num_batches"]
        self.suspended = {position: (Draw(position, index), rank) for position, index, rank in state["suspended"]}
        groups = [StreamedGroup.from_state_dict(group) for group in state["groups"]]
        for group in groups:
            group.row = copy.deepcopy(self.row_of(group.draw))
        self.groups.by_position = {group.draw.position: group for group in groups}

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
        start = self._clock()
        self._begin(collection, policy_step)
        pending = self._tell()
        while True:
            if self.groups.is_idle or pending.is_done():
                self._learn(pending.wait())
                if self._flow.is_decided:
                    return self._settle(collection, start)
                self.groups.attempt(self._adjust)
                pending = self._tell()
            self.groups.attempt(self.groups.work)

    def unscored(self) -> list[tuple[StreamedGroup, int]]:
        """Returns the completions of this rank that go on later and have new tokens: their group, and number in it."""
        return [
            (group, sample)
            for group in self.groups.by_position.values()
            for sample in range(len(group.token_ids))
            if group.has_new_tokens(sample)
        ]

    @property
    def fresh_rollouts(self) -> list[Rollout]:
        """A rollout of each group of this rank that the present policy sampled alone."""
        return [group.rollouts[0] for group in self.judged if group.policy_step == self._policy_step]

    def _begin(self, collection: BatchCollection, policy_step: int) -> None:
        self._policy_step = policy_step
        self._num_judged = [0] * self.ranks.num_ranks
        self._num_idle_slots = 0
        self._draws = {position: draw for position, (draw, _) in self.suspended.items()}
        self.judged = []
        flow = self._flow = RefillFlow(
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
        self.groups.begin()

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
            self._raise_failure()
        self._num_idle_slots = sum(idle for _, idle in headers)
        for position, is_informative in news:
            if position in self._flow.in_flight:
                self._num_judged[self._flow.in_flight[position]] += 1
            self._flow.resolve(position, bool(is_informative))
            if position in self.groups.by_position:
                self.judged.append(self.groups.by_position.pop(position))
        if news:
            self.planner.observe(sum(is_informative for _, is_informative in news), len(news))

    def _adjust(self) -> None:
        """Starts and gives up groups."""
        flow, target = self._flow, 0
        self.groups.give_up(flow.unneeded())
        if flow.num_missing:
            self.last_plan = self.planner.groups_in_flight(flow.num_missing)
            target = self.last_plan.num_prompts
        mine = []
        for draw in self.draw(flow.num_to_start(target, self._num_idle_slots, self.args.num_generations)):
            self._draws[draw.position] = draw
            if flow.start(draw.position) == self.ranks.rank:
                mine.append(draw)
        rows = [copy.deepcopy(self.row_of(draw)) for draw in mine]
        for draw, row, prompt_ids in zip(mine, rows, self.tokenize(rows) if rows else [], strict=True):
            group = StreamedGroup.begin(draw, row, prompt_ids, self._policy_step, self.args.num_generations)
            self.groups.start(group)

    def _raise_failure(self) -> None:
        failure, self.suspended = self.groups.reset(), {}
        self.ranks.raise_failure(failure)

    def _settle(self, collection: BatchCollection, start: list[float]) -> dict[Location, Rollout]:
        """Ends the batch, and returns the rollouts of this rank's informative groups."""
        flow = self._flow
        kept = [position for position in flow.kept() if position in flow.in_flight]
        self.suspended = {position: (self._draws[position], flow.in_flight[position]) for position in kept}
        self.groups.give_up([position for position in self.groups.by_position if position not in self.suspended])
        self.groups.suspend()
        self._num_batches += 1
        spent = [round(1e6 * (end - begin)) for end, begin in zip(self._clock(), start, strict=True)]
        groups, of_ranks = self.exchange.gather(
            self.judged,
            max(self._num_judged),
            self._draws,
            self._num_batches,
            [self.groups.num_aborted_tokens, len(self.unscored()), *spent],
        )
        num_aborted_tokens, self.num_unscored, seconds, grading, waited = map(list, zip(*of_ranks, strict=True))
        self.seconds = max(seconds) / 1e6
        collection.settle(groups, flow.next_position(self.stream_position()), self.seconds, sum(num_aborted_tokens))
        self.figures = {
            "stream/groups_suspended": float(len(self.suspended)),
            "stream/grading_hidden": 1.0 - sum(waited) / sum(grading) if sum(grading) else math.nan,
        }
        self.spare = self._spare()
        size, judged = self.args.num_generations, self.judged
        self.observe(groups, lambda at: judged[at.row // size].rollouts[at.row % size], self.row_of)
        return {
            Location(self._num_batches, self.ranks.rank, number * size + sample): rollout
            for number, group in enumerate(self.judged)
            if self._is_informative(group)
            for sample, rollout in enumerate(group.rollouts)
        }

    def _spare(self) -> tuple[Draw, Rollout] | None:
        if self.judged:
            return self.judged[0].draw, self.judged[0].rollouts[0]
        if not self._draws:
            return None  # nobody sampled anything, so that nothing is missing or has to be scored
        draw = next(iter(self._draws.values()))
        (prompt_ids,) = self.tokenize([copy.deepcopy(self.row_of(draw))])
        return draw, Rollout.from_lists(prompt_ids, prompt_ids[-1:], [0.0])

    def _is_informative(self, group: StreamedGroup) -> bool:
        (judged,) = self.judge.judge([group.draw], group.rewards, group.facts)
        return judged.verdict is GroupVerdict.INFORMATIVE

    def _clock(self) -> list[float]:
        """Returns the time, and how much of it the grader spent so far, and how much was spent waiting for it, in seconds."""
        return [time.perf_counter(), self.groups.grader.seconds, self.groups.grader.seconds_waited]
