"""Filling the generation batch in rounds of sampling, each planned from what the earlier ones found."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.sampling.group_filter import GroupVerdict
from trl_dapo.sampling.groups import GroupJudge, Location, RowFacts, SampledGroup
from trl_dapo.sampling.placement import deal_prompts
from trl_dapo.sampling.prompt_stream import Draw, SequenceKey
from trl_dapo.sampling.refill_ledger import BatchCollection
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan
from trl_dapo.streaming.streamed_group import StreamedGroup


@dataclass(frozen=True, slots=True)
class RoundOutput:
    """
    What one rank generated in one round.

    Attributes:
        rollouts (`list[Rollout]`):
            The rollouts of this rank.
        rewards (`list[list[float]]`):
            Reward of each completion of *all* ranks by each reward function, rank-major, shape `(R, F)`.
        facts (`list[RowFacts]`):
            Lengths and truncation of the completions of this rank.
    """

    rollouts: list[Rollout]
    rewards: list[list[float]]
    facts: list[RowFacts]


class RoundRefill:
    """
    Samples the groups of generation batches in rounds.

    In a round only numbers cross ranks (rewards, lengths, the time it took), so that all ranks take the same decisions;
    rollouts stay where they were generated until the batch is complete.

    Args:
        args (`DAPOConfig`):
            The trainer's configuration.
        ranks (`Ranks`):
            The ranks of the run.
        sample (`Callable[[list[dict], list[SequenceKey]], RoundOutput]`):
            Generates one completion for each given dataset row, and scores it. The keys name the completions.
        judge (`GroupJudge`):
            Judges the sampled groups.
        planner (`RefillPlanner`):
            Plans the rounds, and learns from them.
        row_of (`Callable[[Draw], dict]`):
            Returns the dataset row of a draw.
        draw (`Callable[[int], list[Draw]]`):
            Takes the next draws from the prompt stream.
        observe (`Callable`, *optional*):
            Is shown groups as soon as they are judged, as `RolloutRecorder.observe`.

    Attributes:
        last_plan (`RoundPlan` or `None`):
            The last round's.
        seconds (`float`):
            Seconds that the rounds of the last batch took, each on its slowest rank.
        spare (`tuple[Draw, Rollout]` or `None`):
            Some rollout of this rank.
        figures (`dict[str, float]`):
            What there is to say of the last batch beside what any refill says: nothing.
    """

    def __init__(
        self,
        args: DAPOConfig,
        ranks: Ranks,
        sample: Callable[[list[dict[str, Any]], list[SequenceKey]], RoundOutput],
        judge: GroupJudge,
        planner: RefillPlanner,
        row_of: Callable[[Draw], dict[str, Any]],
        draw: Callable[[int], list[Draw]],
        observe: Callable[..., None] = lambda groups, rollout_at, row_of: None,
    ):
        self.args = args
        self.ranks = ranks
        self.sample = sample
        self.judge = judge
        self.planner = planner
        self.row_of = row_of
        self.draw = draw
        self.observe = observe
        self.last_plan: RoundPlan | None = None
        self.seconds = 0.0
        self.spare: tuple[Draw, Rollout] | None = None
        self.figures: dict[str, float] = {}
        self._num_rounds = 0

    @property
    def suspended(self) -> Mapping[int, tuple[Draw, int]]:
        """Groups that go on in the next batch: none, a round ends with its last completion."""
        return {}

    @property
    def num_unscored(self) -> list[int]:
        """For each rank, the completions that go on in the next batch and have new tokens: none."""
        return [0] * self.ranks.num_ranks

    def unscored(self) -> list[tuple[StreamedGroup, int]]:
        """Returns those of this rank: none."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Returns what tells the locations of later rounds from those so far."""
        return {"num_rounds": self._num_rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues with a saved state."""
        self._num_rounds = state["num_rounds"]

    def fill(self, collection: BatchCollection, policy_step: int) -> dict[Location, Rollout]:
        """
        Samples rounds until the batch is full or `max_generation_rounds` are spent. A collective.

        Args:
            collection (`BatchCollection`):
                Gets the sampled groups.
            policy_step (`int`):
                Optimizer steps that the policy has taken.

        Returns:
            `dict[Location, Rollout]`: the rollouts of informative groups that this rank generated.
        """
        kept: dict[Location, Rollout] = {}
        self.seconds, self.spare = 0.0, None
        while collection.num_missing and collection.num_rounds < self.args.max_generation_rounds:
            rounds_left = self.args.max_generation_rounds - collection.num_rounds
            plan = self.last_plan = self.planner.plan(collection.num_missing, rounds_left)
            groups, rollouts, seconds = self._sample_round(self.draw(plan.num_prompts), policy_step)
            kept |= rollouts
            num_informative = sum(group.verdict is GroupVerdict.INFORMATIVE for group in groups)
            self.planner.observe(num_informative, len(groups), seconds)
            self.seconds += seconds
            collection.add_round(groups, seconds)
        return kept

    def _sample_round(
        self, draws: list[Draw], policy_step: int
    ) -> tuple[list[SampledGroup], dict[Location, Rollout], float]:
        """Returns the groups in stream order, this rank's rollouts of informative ones, and the slowest rank's seconds."""
        start = time.perf_counter()
        num_generations, rank = self.args.num_generations, self.ranks.rank
        order = deal_prompts(len(draws), self.ranks.num_ranks)
        num_rows = len(draws) * num_generations // self.ranks.num_ranks
        rows = [divmod(row, num_generations) for row in range(rank * num_rows, (rank + 1) * num_rows)]
        local_draws = [draws[order[number]] for number, _ in rows]
        keys = [SequenceKey(draw.position, sample) for draw, (_, sample) in zip(local_draws, rows, strict=True)]
        output = self.sample([copy.deepcopy(self.row_of(draw)) for draw in local_draws], keys)
        self.spare = local_draws[0], output.rollouts[0]
        microseconds = round((time.perf_counter() - start) * 1e6)
        facts = self.ranks.gather_rows([[*row, microseconds] for row in output.facts])
        groups = self.judge.judge(
            [draws[number] for number in order],
            output.rewards,
            [RowFacts(*row[:3]) for row in facts],
            [Location(self._num_rounds, *divmod(row, num_rows)) for row in range(len(facts))],
            policy_step,
        )
        self._num_rounds += 1
        self.observe(groups, lambda at: output.rollouts[at.row], self.row_of)
        kept = {
            at: output.rollouts[at.row]
            for group in groups
            if group.verdict is GroupVerdict.INFORMATIVE
            for at in group.locations
            if at.rank == rank
        }
        groups.sort(key=lambda group: group.draw.position)
        return groups, kept, max(row[3] for row in facts) / 1e6
