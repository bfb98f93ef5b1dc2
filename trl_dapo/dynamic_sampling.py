"""
Refilling the generation batch: rounds of sampling until every group can teach, then one batch for TRL to train on.

In a round only numbers cross ranks (rewards, lengths); rollouts stay where they were generated. When the batch is
complete, those of which a rank has too many move, as tensors and in one exchange.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset

from .collectives import exchange, gather_rows
from .config import DAPOConfig
from .errors import RefillExhaustedError
from .rollouts import Rollout, packed_size
from .sampling.collection import BatchCollection, SampledGroup
from .sampling.group_filter import GroupFilter, GroupVerdict
from .sampling.placement import Move, deal_prompts, place_groups, prompts_multiple
from .sampling.prompt_stream import Draw, PromptStream
from .sampling.refill_planner import RefillPlanner


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
        extra_logs (`Mapping[str, list]`):
            Columns that reward functions logged for the rollouts of this rank.
    """

    rollouts: list[Rollout]
    rewards: list[list[float]]
    extra_logs: Mapping[str, list[Any]]


@dataclass(frozen=True, slots=True)
class CollectedBatch:
    """
    A generation batch as one rank trains it: B rows of N * G.

    Attributes:
        inputs (`list[dict]`):
            The dataset row of each of the B rollouts.
        rollouts (`list[Rollout]`):
            The B rollouts.
        rewards (`torch.Tensor`):
            Reward of each completion of all ranks by each reward function, rank-major, shape `(N * G, F)`, float32. NaN:
            not scored, or a row without weight.
        is_filler (`torch.Tensor`):
            Which of the B rows stand in for groups that were not found, shape `(B,)`, bool. They carry no weight.
        extra_logs (`dict[str, list]`):
            Logged columns of the B rows.
        collection (`BatchCollection`):
            What was sampled, and what became of it. The same on all ranks.
    """

    inputs: list[dict[str, Any]]
    rollouts: list[Rollout]
    rewards: torch.Tensor
    is_filler: torch.Tensor
    extra_logs: dict[str, list[Any]]
    collection: BatchCollection


class DynamicSampler:
    """
    Draws prompts and samples groups until the generation batch is full of informative ones.

    Args:
        args (`DAPOConfig`):
            The trainer's configuration.
        accelerator (`Accelerator`):
            The trainer's.
        dataset (`Dataset`):
            Map-style dataset with a `prompt` column.
        sample (`Callable[[list[dict]], RoundOutput]`):
            Generates one completion for each given dataset row, and scores it.
        filter_column (`int`):
            Column of the rewards that decides whether a group is informative.
        end_token_ids (`Sequence[int]`):
            Tokens with which a completion ends of itself; any other last token means that it was truncated.
    """

    def __init__(
        self,
        args: DAPOConfig,
        accelerator: Accelerator,
        dataset: Dataset,
        sample: Callable[[list[dict[str, Any]]], RoundOutput],
        filter_column: int,
        end_token_ids: Sequence[int],
    ):
        self.args = args
        self.accelerator = accelerator
        self.dataset = dataset
        self.sample = sample
        self.filter_column = filter_column
        self.end_token_ids = frozenset(end_token_ids)
        self.stream = PromptStream(len(dataset), seed=args.seed, shuffle=bool(args.shuffle_dataset))
        self.group_filter = GroupFilter(mean_range=args.filter_range)  # type: ignore[arg-type]
        self.planner = RefillPlanner(
            num_groups=args.num_groups_per_batch,
            confidence=args.refill_confidence,
            max_prompts=args.max_prompts_per_round,
            multiple_of=prompts_multiple(args.num_generations, accelerator.num_processes),
        )
        self.num_generated_tokens = 0
        self.num_trained_tokens = 0

    @property
    def rollout_efficiency(self) -> float:
        """Trained tokens over generated tokens, since the run began."""
        return self.num_trained_tokens / self.num_generated_tokens if self.num_generated_tokens else 0.0

    def collect(self) -> CollectedBatch:
        """
        Samples rounds until the batch is full or `max_generation_rounds` are spent.

        Raises:
            `RefillExhaustedError`: the rounds are spent, the batch is not full, and `on_exhausted="error"`.
        """
        collection = BatchCollection(self.args.num_groups_per_batch, next_position=self.stream.position)
        # Rollouts of accepted groups, by the round and the row in which this rank generated them.
        kept: dict[tuple[int, int], tuple[Rollout, dict[str, Any]]] = {}
        while collection.num_missing and collection.num_rounds < self.args.max_generation_rounds:
            plan = self.planner.plan(collection.num_missing)
            draws = self.stream.peek(plan.num_prompts)
            self.stream.seek(self.stream.position + plan.num_prompts)
            output, groups, spare = self._sample_round(draws, collection.num_rounds)
            self.planner.observe(sum(group.verdict is GroupVerdict.INFORMATIVE for group in groups), len(groups))
            for group in collection.add_round(groups):
                for number, rank, row in group.locations:
                    if rank == self.accelerator.process_index:
                        extras = {column: values[row] for column, values in output.extra_logs.items()}
                        kept[number, row] = output.rollouts[row], extras
        self.stream.seek(collection.next_position)
        self.num_generated_tokens += sum(group.num_tokens for group in collection.sampled)
        self.num_trained_tokens += sum(group.num_tokens for group in collection.accepted)
        if collection.num_missing and self.args.on_exhausted == "error":
            raise RefillExhaustedError(
                len(collection.accepted), collection.num_groups, collection.num_rounds, collection.verdict_counts
            )
        return self._assemble(collection, kept, spare)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs to draw the prompts that this one would draw next."""
        return {
            "version": _STATE_VERSION,
            "stream": self.stream.state_dict(),
            "planner": self.planner.state_dict(),
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
        self.num_generated_tokens = state["num_generated_tokens"]
        self.num_trained_tokens = state["num_trained_tokens"]

    def _sample_round(
        self, draws: list[Draw], round_number: int
    ) -> tuple[RoundOutput, list[SampledGroup], tuple[Draw, Rollout]]:
        num_generations = self.args.num_generations
        order = deal_prompts(len(draws), self.accelerator.num_processes)
        num_rows = len(draws) * num_generations // self.accelerator.num_processes
        first_row = self.accelerator.process_index * num_rows
        local_draws = [draws[order[row // num_generations]] for row in range(first_row, first_row + num_rows)]
        output = self.sample([dict(self.dataset[draw.index]) for draw in local_draws])
        facts = gather_rows(
            self.accelerator,
            [[len(r.prompt_ids), len(r.completion_ids), self._is_truncated(r)] for r in output.rollouts],
        )
        groups = []
        for slot, draw_number in enumerate(order):
            rows = range(slot * num_generations, (slot + 1) * num_generations)
            rewards = [output.rewards[row] for row in rows]
            filter_rewards = [reward[self.filter_column] for reward in rewards]
            is_truncated = [bool(facts[row][2]) for row in rows]
            is_live = [not cut for cut in is_truncated] if self.args.mask_truncated_completions else None
            groups.append(
                SampledGroup(
                    draw=draws[draw_number],
                    verdict=self.group_filter.judge(filter_rewards, is_live),
                    rewards=rewards,
                    filter_rewards=filter_rewards,
                    lengths=[(facts[row][0], facts[row][1]) for row in rows],
                    is_truncated=is_truncated,
                    locations=[(round_number, *divmod(row, num_rows)) for row in rows],
                )
            )
        groups.sort(key=lambda group: group.draw.position)
        return output, groups, (local_draws[0], output.rollouts[0].truncated(1))

    def _is_truncated(self, rollout: Rollout) -> bool:
        return len(rollout.completion_ids) > 0 and int(rollout.completion_ids[-1]) not in self.end_token_ids

    def _assemble(
        self,
        collection: BatchCollection,
        kept: Mapping[tuple[int, int], tuple[Rollout, dict[str, Any]]],
        spare: tuple[Draw, Rollout],
    ) -> CollectedBatch:
        accepted = collection.accepted
        moves = place_groups(
            [[rank for _, rank, _ in group.locations] for group in accepted],
            num_groups=collection.num_groups,
            num_generations=self.args.num_generations,
            num_ranks=self.accelerator.num_processes,
        )
        rank = self.accelerator.process_index
        arrived, arrived_extras = self._move_rollouts(moves, accepted, kept)
        inputs, rollouts = [], []
        extras: list[dict[str, Any]] = []
        local_moves = [move for move in moves if move.target == rank]
        extra: dict[str, Any]
        for move in local_moves:
            if move.group is None:
                # Any rollout of this rank will do, cut to one token: it has no weight and should cost nothing.
                draw, rollout, extra = spare[0], spare[1], {}
            elif move.source == rank:
                group = accepted[move.group]
                number, _, row = group.locations[move.sample]
                draw, (rollout, extra) = group.draw, kept[number, row]
            else:
                draw = accepted[move.group].draw
                rollout = arrived[move.group, move.sample]
                extra = arrived_extras.get((move.group, move.sample), {})
            inputs.append(dict(self.dataset[draw.index]))
            rollouts.append(rollout)
            extras.append(extra)
        not_scored = [math.nan] * len(collection.sampled[0].rewards[0])
        return CollectedBatch(
            inputs=inputs,
            rollouts=rollouts,
            rewards=torch.tensor(
                [not_scored if move.group is None else accepted[move.group].rewards[move.sample] for move in moves]
            ),
            is_filler=torch.tensor([move.group is None for move in local_moves]),
            extra_logs={
                column: [extra.get(column) for extra in extras]
                for column in sorted({column for extra in extras for column in extra})
            },
            collection=collection,
        )

    def _move_rollouts(
        self,
        moves: Sequence[Move],
        accepted: Sequence[SampledGroup],
        kept: Mapping[tuple[int, int], tuple[Rollout, dict[str, Any]]],
    ) -> tuple[dict[tuple[int, int], Rollout], dict[tuple[int, int], dict[str, Any]]]:
        """Returns the rollouts, and their logged columns, that other ranks generated and this one trains."""
        travelling = [move for move in moves if move.source != move.target]
        if not travelling:
            return {}, {}
        rank, ranks = self.accelerator.process_index, range(self.accelerator.num_processes)

        def kept_row(move: Move) -> tuple[Rollout, dict[str, Any]]:
            number, _, row = accepted[move.group].locations[move.sample]
            return kept[number, row]

        leaving = [[move for move in travelling if (move.source, move.target) == (rank, to)] for to in ranks]
        coming = [[move for move in travelling if (move.source, move.target) == (origin, rank)] for origin in ranks]
        has_logps = self.args.use_vllm
        received = exchange(
            self.accelerator,
            [[kept_row(move)[0].pack() for move in row_moves] for row_moves in leaving],
            [
                [packed_size(*accepted[move.group].lengths[move.sample], has_logps) for move in row_moves]
                for row_moves in coming
            ],
        )
        rollouts = {
            (move.group, move.sample): Rollout.unpack(packed, *accepted[move.group].lengths[move.sample])
            for row_moves, tensors in zip(coming, received, strict=True)
            for move, packed in zip(row_moves, tensors, strict=True)
        }
        # Only the table of completions shows the logged columns, so they travel only for it.
        extras = {}
        if self.args.log_completions:
            sent = [((move.group, move.sample), kept_row(move)[1]) for row_moves in leaving for move in row_moves]
            extras = dict(gather_object(sent))
        return rollouts, extras
