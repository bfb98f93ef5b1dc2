"""Refilling the generation batch: sampling until every group of it can teach."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from trl_dapo.checkpoints.run_state import RunState
from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.errors import RefillExhaustedError
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.sampling.group_filter import GroupVerdict
from trl_dapo.sampling.groups import GroupJudge, Location, SampledGroup
from trl_dapo.sampling.placement import prompts_multiple
from trl_dapo.sampling.prompt_history import PromptHistory
from trl_dapo.sampling.prompt_stream import Draw, PromptStream, SequenceKey
from trl_dapo.sampling.refill_ledger import BatchCollection
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan
from trl_dapo.streaming.local_groups import StreamSources
from trl_dapo.streaming.stream_refill import StreamRefill

from .assembly import BatchAssembler, CollectedBatch
from .iterable_stream import IterablePromptStream
from .rounds import RoundOutput, RoundRefill


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
        sample (`Callable[[list[dict], list[SequenceKey]], RoundOutput]`):
            Generates one completion for each given dataset row, and scores it.
        compute_logps (`Callable[[list[Rollout]], list[torch.Tensor]]`):
            Returns the log-probabilities of the completions under the present policy. Called on all ranks at once, with
            equally many rollouts.
        num_rewards (`int`):
            Reward functions F.
        judge (`GroupJudge`):
            Judges the sampled groups.
        keep_awake (`Callable[[], AbstractContextManager[None]]`, *optional*):
            A batch is sampled inside it: an engine that sleeps while the model trains need not meanwhile.
        sources (`StreamSources`, *optional*):
            What this rank samples with where groups are refilled one by one.
        observe (`Callable`, *optional*):
            Is shown groups as soon as they are judged, as `RolloutRecorder.observe`.
    """

    def __init__(
        self,
        args: DAPOConfig,
        ranks: Ranks,
        dataset: Dataset | IterableDataset,
        sample: Callable[[list[dict[str, Any]], list[SequenceKey]], RoundOutput],
        compute_logps: Callable[[list[Rollout]], list[torch.Tensor]],
        num_rewards: int,
        judge: GroupJudge,
        keep_awake: Callable[[], AbstractContextManager[None]] = nullcontext,
        sources: StreamSources | None = None,
        observe: Callable[..., None] = lambda groups, rollout_at, row_of: None,
    ):
        self.args = args
        self.keep_awake = keep_awake
        self.ranks = ranks
        self.compute_logps = compute_logps
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
        self.refill: RoundRefill | StreamRefill
        common: Any = {
            "args": args,
            "ranks": ranks,
            "judge": judge,
            "planner": self.planner,
            "row_of": self.row_of,
            "draw": self._draw,
            "observe": observe,
        }
        if sources is None:
            self.refill = RoundRefill(sample=sample, **common)
        else:
            self.refill = StreamRefill(
                sources=sources, num_rewards=num_rewards, stream_position=lambda: self.stream.position, **common
            )
        self._carried: list[SampledGroup] = []
        # Rollouts that this rank generated and that may yet train.
        self._kept: dict[Location, Rollout] = {}

    @property
    def rollout_efficiency(self) -> float:
        """Trained tokens over generated tokens, since the run began."""
        return self.num_trained_tokens / self.num_generated_tokens if self.num_generated_tokens else 0.0

    def collect(self, policy_step: int) -> CollectedBatch:
        """
        Samples until the batch is full or what it may sample is spent.

        Args:
            policy_step (`int`):
                Optimizer steps that the policy has taken.

        Raises:
            `RefillExhaustedError`: it is spent, the batch is not full, and `on_exhausted="error"`.
        """
        is_fresh = [policy_step - group.policy_step <= self.args.max_off_policy_steps for group in self._carried]
        collection = BatchCollection(
            self.args.num_groups_per_batch,
            next_position=self.stream.position,
            keeps_surplus=self.args.surplus == "carry",
            carried=[group for group, fresh in zip(self._carried, is_fresh, strict=True) if fresh],
            num_stale=is_fresh.count(False),
            policy_step=policy_step,
        )
        first_position = self.stream.position
        with self.keep_awake():
            self._kept |= self.refill.fill(collection, policy_step)
        self.num_generated_tokens += collection.num_sampled_tokens
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
        batch = self.assembler.assemble(collection, self._kept, self.refill.spare)
        self._carry(collection)
        if isinstance(self.stream, IterablePromptStream):
            self.stream.forget_before(self._first_needed_position())
        return batch

    def add_to(self, run_state: RunState) -> None:
        """Makes the state of the sampler part of the run's checkpoints."""
        run_state.add("sampler", self.state_dict, self.load_state_dict)
        run_state.add("carried", self.carried_state_dict, self.load_carried_state_dict, needs_layout=True)

    def state_dict(self) -> dict[str, Any]:
        """
        Returns what a resumed run needs to draw the prompts that this one would draw next.

        Carried groups are not in it: the saved stream stands before the first of them, so that they are sampled again
        unless `load_carried_state_dict` brings them back.
        """
        return {
            "stream": self.stream.state_dict(position=self._first_needed_position()),
            "planner": self.planner.state_dict(),
            "last_plan": None if self.refill.last_plan is None else asdict(self.refill.last_plan),
            "history": None if self.history is None else self.history.state_dict(),
            "num_generated_tokens": self.num_generated_tokens,
            "num_trained_tokens": self.num_trained_tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the run that `state` was taken from, without what it carried."""
        self.stream.load_state_dict(state["stream"])
        self.planner.load_state_dict(state["planner"])
        self.refill.last_plan = None if state["last_plan"] is None else RoundPlan(**state["last_plan"])
        if self.history is not None and state["history"] is not None:
            self.history.load_state_dict(state["history"])
        self.num_generated_tokens = state["num_generated_tokens"]
        self.num_trained_tokens = state["num_trained_tokens"]
        self._carried, self._kept = [], {}

    def carried_state_dict(self) -> dict[str, Any]:
        """Returns the carried groups, this rank's rollouts of them, what goes on, and where the stream does."""
        return {
            "position": self.stream.position,
            "refill": self.refill.state_dict(),
            "groups": [group.state_dict() for group in self._carried],
            "rollouts": [[list(at), rollout.state_dict()] for at, rollout in self._kept.items()],
        }

    def load_carried_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the carried groups back. To be called after `load_state_dict`, on as many ranks as were saved."""
        # An iterable dataset is read up to there, so that the rows of the carried groups are at hand.
        self.stream.peek(state["position"] - self.stream.position)
        self.stream.seek(state["position"])
        self.refill.load_state_dict(state["refill"])
        self._carried = [SampledGroup.from_state_dict(group) for group in state["groups"]]
        self._kept = {Location(*at): Rollout.from_state_dict(rollout) for at, rollout in state["rollouts"]}

    def _first_needed_position(self) -> int:
        return min([self.stream.position, *self.refill.suspended, *(group.draw.position for group in self._carried)])

    def _draw(self, num_prompts: int) -> list[Draw]:
        """Takes the next draws from the stream; selective rollout passes over some."""
        draws: list[Draw] = []
        while len(draws) < num_prompts:
            for draw in self.stream.peek(num_prompts - len(draws)):
                self.stream.seek(draw.position + 1)
                if self.history is None or not self.history.skips(draw.position, draw.index):
                    draws.append(draw)
        return draws

    def _carry(self, collection: BatchCollection) -> None:
        """Keeps the rollouts of the surplus, with the log-probabilities of the policies that sampled them; drops the others."""
        self._carried = collection.surplus if collection.keeps_surplus else []
        rank = self.ranks.rank
        self._kept = {at: self._kept[at] for group in self._carried for at in group.locations if at.rank == rank}
        # What was carried before has its log-probabilities. Those of new tokens are computed now, while the policy is still
        # the one that sampled them.
        was_carried = {group.draw.position for group in collection.carried}
        new = [at for group in self._carried if group.draw.position not in was_carried for at in group.locations]
        mine = [at for at in new if at.rank == rank]
        suspended = self.refill.unscored()
        rollouts = [self._kept[at] for at in mine] + [group.rollout_so_far(sample) for group, sample in suspended]
        # A forward pass may be a collective, so all ranks run equally many rows.
        num_new = Counter(at.rank for at in new)
        num_rows = max(unscored + num_new[other] for other, unscored in enumerate(self.refill.num_unscored))
        if not num_rows:
            return
        fillers = [self.refill.spare[1]] * (num_rows - len(rollouts))
        scored = [
            rollout.with_old_logps(rollout.old_logps, logps)
            for rollout, logps in zip(rollouts, self.compute_logps(rollouts + fillers), strict=False)
        ]
        self._kept |= dict(zip(mine, scored, strict=False))
        for (group, sample), rollout in zip(suspended, scored[len(mine) :], strict=True):
            group.keep_logps(sample, rollout.old_logps)
