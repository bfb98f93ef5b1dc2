"""
Refilling the generation batch: rounds of sampling until every group can teach.

In a round only numbers cross ranks (rewards, lengths, the time it took), so that all ranks take the same decisions;
rollouts stay where they were generated until the batch is complete.
"""

import copy
import functools
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset

from .assembly import BatchAssembler, CollectedBatch
from .collectives import Ranks
from .config import DAPOConfig
from .errors import RefillExhaustedError
from .iterable_stream import IterablePromptStream
from .rollouts import Rollout
from .sampling.collection import BatchCollection
from .sampling.group_filter import GroupVerdict
from .sampling.groups import GroupJudge, Location, RowFacts, SampledGroup
from .sampling.placement import deal_prompts, prompts_multiple
from .sampling.prompt_history import PromptHistory
from .sampling.prompt_stream import Draw, PromptStream
from .sampling.refill_planner import RefillPlanner, RoundPlan


logger = get_logger(__name__)

_STATE_FILE = "dapo_state.json"
_STATE_VERSION = 1


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


class DynamicSampler:
    """
    Draws prompts and samples groups until the generation batch is full of informative ones.

    Args:
        args (`DAPOConfig`):
            The trainer's configuration.
        ranks (`Ranks`):
            The ranks of the run.
        dataset (`Dataset` or `IterableDataset`):
            Dataset with a `prompt` column.
        sample (`Callable[[list[dict]], RoundOutput]`):
            Generates one completion for each given dataset row, and scores it.
        compute_logps (`Callable[[list[Rollout]], list[torch.Tensor]]`):
            Returns the log-probabilities of the completions under the present policy. Called on all ranks at once, with
            equally many rollouts.
        num_rewards (`int`):
            Reward functions F.
        judge (`GroupJudge`):
            Judges the sampled groups.
        keep_awake (`Callable[[], AbstractContextManager[None]]`, *optional*):
            The rounds of a batch run inside it: an engine that sleeps while the model trains need not between them.
        observe (`Callable`, *optional*):
            Is shown the groups of each round as soon as they are judged, as `RolloutRecorder.observe`.
    """

    def __init__(
        self,
        args: DAPOConfig,
        ranks: Ranks,
        dataset: Dataset | IterableDataset,
        sample: Callable[[list[dict[str, Any]]], RoundOutput],
        compute_logps: Callable[[list[Rollout]], list[torch.Tensor]],
        num_rewards: int,
        judge: GroupJudge,
        keep_awake: Callable[[], AbstractContextManager[None]] = nullcontext,
        observe: Callable[..., None] = lambda groups, rollout_at, row_of: None,
    ):
        self.args = args
        self.observe = observe
        self.keep_awake = keep_awake
        self.ranks = ranks
        self.sample = sample
        self.compute_logps = compute_logps
        self.judge = judge
        self.stream: PromptStream | IterablePromptStream
        self.history: PromptHistory | None = None
        row_of: Callable[[Draw], dict[str, Any]]
        if isinstance(dataset, IterableDataset):
            self.stream = IterablePromptStream(dataset, seed=args.seed, shuffle=bool(args.shuffle_dataset))
            row_of = self.stream.row_of
        else:
            self.stream = PromptStream(len(dataset), seed=args.seed, shuffle=bool(args.shuffle_dataset))
            if args.selective_rollout:
                self.history = PromptHistory(len(dataset), seed=args.seed)

            def row_of(draw: Draw) -> dict[str, Any]:
                return dataset[draw.index]

        # The completions of a group stand in a row: each dataset row is read once.
        self.row_of = functools.lru_cache(maxsize=1)(row_of)
        self.planner = RefillPlanner(
            num_groups=args.num_groups_per_batch,
            confidence=args.refill_confidence,
            max_prompts=args.max_prompts_per_round,
            multiple_of=prompts_multiple(args.num_generations, ranks.num_ranks),
            keeps_surplus=args.surplus == "carry",
        )
        self.assembler = BatchAssembler(
            ranks, args.num_generations, num_rewards, self.row_of, bool(args.use_vllm), bool(args.log_completions)
        )
        self.num_generated_tokens = 0
        self.num_trained_tokens = 0
        self.last_plan: RoundPlan | None = None
        self.seconds_sampling = 0.0
        self._num_rounds = 0
        self._carried: list[SampledGroup] = []
        # Rollouts that this rank generated and that may yet train.
        self._kept: dict[Location, Rollout] = {}

    @property
    def rollout_efficiency(self) -> float:
        """Trained tokens over generated tokens, since the run began."""
        return self.num_trained_tokens / self.num_generated_tokens if self.num_generated_tokens else 0.0

    def collect(self, policy_step: int) -> CollectedBatch:
        """
        Samples rounds until the batch is full or `max_generation_rounds` are spent.

        Args:
            policy_step (`int`):
                Optimizer steps that the policy has taken.

        Raises:
            `RefillExhaustedError`: the rounds are spent, the batch is not full, and `on_exhausted="error"`.
        """
        is_fresh = [policy_step - group.policy_step <= self.args.max_off_policy_steps for group in self._carried]
        collection = BatchCollection(
            self.args.num_groups_per_batch,
            next_position=self.stream.position,
            keeps_surplus=self.args.surplus == "carry",
            carried=[group for group, fresh in zip(self._carried, is_fresh, strict=True) if fresh],
            num_stale=is_fresh.count(False),
        )
        first_position, spare = self.stream.position, None
        self.seconds_sampling = 0.0
        with self.keep_awake():
            while collection.num_missing and collection.num_rounds < self.args.max_generation_rounds:
                rounds_left = self.args.max_generation_rounds - collection.num_rounds
                plan = self.last_plan = self.planner.plan(collection.num_missing, rounds_left)
                groups, spare, seconds = self._sample_round(self._draw(plan.num_prompts), policy_step)
                num_informative = sum(group.verdict is GroupVerdict.INFORMATIVE for group in groups)
                self.planner.observe(num_informative, len(groups), seconds)
                self.seconds_sampling += seconds
                collection.add_round(groups, seconds)
        self.num_generated_tokens += sum(group.num_tokens for group in collection.sampled)
        if collection.num_missing and self.args.on_exhausted == "error":
            # Nothing of the batch trains, so all of its prompts go back to the stream.
            self.stream.seek(first_position)
            raise RefillExhaustedError(
                len(collection.accepted), collection.num_groups, collection.num_rounds, collection.verdict_counts
            )
        self.stream.seek(collection.next_position)
        used = collection.used
        collection.num_skipped = collection.next_position - first_position - len(used)
        if self.history is not None:
            for group in used:
                self.history.observe(group.draw.index, group.verdict is GroupVerdict.INFORMATIVE)
        self.num_trained_tokens += sum(group.num_tokens for group in collection.accepted)
        batch = self.assembler.assemble(collection, self._kept, spare)
        self._carry(collection, spare)
        if isinstance(self.stream, IterablePromptStream):
            self.stream.forget_before(self._first_needed_position())
        return batch

    def save(self, folder: str) -> None:
        """Writes the state into a checkpoint folder."""
        Path(folder, _STATE_FILE).write_text(json.dumps(self.state_dict()))

    def load(self, folder: str) -> None:
        """Continues from a checkpoint folder; one that TRL's own trainer wrote has no state, and the stream begins anew."""
        path = Path(folder, _STATE_FILE)
        if path.exists():
            self.load_state_dict(json.loads(path.read_text()))
        else:
            logger.warning(f"{path} does not exist: the prompt stream starts at its beginning.")

    def state_dict(self) -> dict[str, Any]:
        """
        Returns what a resumed run needs to draw the prompts that this one would draw next.

        Carried groups are not in it: the saved stream stands before the first of them, so that they are sampled again.
        """
        return {
            "version": _STATE_VERSION,
            "stream": self.stream.state_dict(position=self._first_needed_position()),
            "planner": self.planner.state_dict(),
            "history": None if self.history is None else self.history.state_dict(),
            "num_generated_tokens": self.num_generated_tokens,
            "num_trained_tokens": self.num_trained_tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the run that `state` was taken from."""
        if state["version"] != _STATE_VERSION:
            raise ValueError(
                f"The checkpoint's dynamic sampling state has version {state['version']}, but this release reads version "
                f"{_STATE_VERSION}. Resume with the release that wrote it."
            )
        self.stream.load_state_dict(state["stream"])
        self.planner.load_state_dict(state["planner"])
        if self.history is not None and state["history"] is not None:
            self.history.load_state_dict(state["history"])
        self.num_generated_tokens = state["num_generated_tokens"]
        self.num_trained_tokens = state["num_trained_tokens"]

    def _first_needed_position(self) -> int:
        return min([self.stream.position, *(group.draw.position for group in self._carried)])

    def _draw(self, num_prompts: int) -> list[Draw]:
        """Takes the next draws from the stream; selective rollout passes over some."""
        draws: list[Draw] = []
        while len(draws) < num_prompts:
            for draw in self.stream.peek(num_prompts - len(draws)):
                self.stream.seek(draw.position + 1)
                if self.history is None or not self.history.skips(draw.position, draw.index):
                    draws.append(draw)
        return draws

    def _sample_round(
        self, draws: list[Draw], policy_step: int
    ) -> tuple[list[SampledGroup], tuple[Draw, Rollout], float]:
        """Returns the groups in stream order, one rollout of this rank, and the seconds of the slowest rank."""
        start = time.perf_counter()
        num_generations, rank = self.args.num_generations, self.ranks.rank
        order = deal_prompts(len(draws), self.ranks.num_ranks)
        num_rows = len(draws) * num_generations // self.ranks.num_ranks
        local_draws = [draws[order[row // num_generations]] for row in range(rank * num_rows, (rank + 1) * num_rows)]
        output = self.sample([copy.deepcopy(self.row_of(draw)) for draw in local_draws])
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
        for group in groups:
            if group.verdict is GroupVerdict.INFORMATIVE:
                self._kept |= {at: output.rollouts[at.row] for at in group.locations if at.rank == rank}
        groups.sort(key=lambda group: group.draw.position)
        return groups, (local_draws[0], output.rollouts[0]), max(row[3] for row in facts) / 1e6

    def _carry(self, collection: BatchCollection, spare: tuple[Draw, Rollout] | None) -> None:
        """Keeps the rollouts of the surplus, with the log-probabilities of the policy that sampled them; drops the others."""
        self._carried = collection.surplus if collection.keeps_surplus else []
        rank = self.ranks.rank
        self._kept = {at: self._kept[at] for group in self._carried for at in group.locations if at.rank == rank}
        # What was carried before comes first, and has its log-probabilities. Those of the new surplus are computed now,
        # while the policy is still the one that sampled it.
        num_carried_on = max(0, len(collection.carried) - collection.num_groups)
        new = [at for group in self._carried[num_carried_on:] for at in group.locations]
        if not new:
            return
        # A forward pass may be a collective, so all ranks run equally many rows.
        num_rows = max(sum(at.rank == other for at in new) for other in range(self.ranks.num_ranks))
        mine = [at for at in new if at.rank == rank]
        rollouts = [self._kept[at] for at in mine] + [spare[1]] * (num_rows - len(mine))
        for at, rollout, logps in zip(mine, rollouts, self.compute_logps(rollouts), strict=False):
            self._kept[at] = replace(rollout, old_logps=logps)
