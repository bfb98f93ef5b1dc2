"""Dynamic sampling: a generation batch is collected, with what earlier batches kept and what later ones will need."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Protocol

import torch

from trl_dapo.config.batch_shape import BatchShape
from trl_dapo.errors import RefillExhaustedError
from trl_dapo.ranks.rollout import Rollout, without_texts
from trl_dapo.sampling.judge import Location, SampledGroup
from trl_dapo.sampling.refill_ledger import RefillLedger
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan

from .assembly import BatchAssembler, GenerationBatch, RefillResult
from .progress import SamplingProgress
from .prompt_source import PromptSource


class Refill(Protocol):
    """
    Samples the groups of a generation batch.

    Attributes:
        planner (`RefillPlanner`):
            Plans how many prompts to sample, and learns from what was found.
    """

    planner: RefillPlanner

    def fill(self, ledger: RefillLedger, policy_step: int) -> RefillResult:
        """
        Samples until the batch is full or the prompts that it may sample are used up. A collective.

        Args:
            ledger (`RefillLedger`):
                Gets the sampled groups. It has those that an earlier batch kept.
            policy_step (`int`):
                Optimizer steps that the policy has taken.

        Raises:
            `RankFailedError`: another rank failed. A rank that failed itself raises its own failure.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of this rank between two batches."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""


class DynamicSampler:
    """
    Collects generation batches in which every group is informative (DAPO Eq. 11).

    Args:
        shape (`BatchShape`):
            The shape of a generation batch.
        source (`PromptSource`):
            Gives the prompts.
        refill (`Refill`):
            Samples groups until a batch is full.
        assembler (`BatchAssembler`):
            Makes a batch of them.
        score (`Callable[[list[Rollout]], list[torch.Tensor]]`):
            Returns the log-probabilities of the completions under the present policy. Called on all ranks at once, with
            equally many rollouts.
        keep_awake (`Callable[[], AbstractContextManager[None]]`, *optional*):
            A batch is sampled inside it: an engine that sleeps while the model trains stays awake meanwhile.
        reward_names (`Sequence[str]`, *optional*):
            Names of the reward functions, without penalties.
        progress (`SamplingProgress`, *optional*):
            Is told when a batch begins and ends.

    Attributes:
        last_plan (`RoundPlan`, *optional*):
            The last plan that was made.
        num_generated_tokens (`int`), num_trained_tokens (`int`):
            Tokens since the run began.
    """

    def __init__(
        self,
        shape: BatchShape,
        source: PromptSource,
        refill: Refill,
        assembler: BatchAssembler,
        score: Callable[[list[Rollout]], list[torch.Tensor]],
        keep_awake: Callable[[], AbstractContextManager[None]] = nullcontext,
        reward_names: Sequence[str] = (),
        progress: SamplingProgress | None = None,
    ):
        self.shape = shape
        self.source = source
        self.refill = refill
        self.assembler = assembler
        self.score = score
        self.keep_awake = keep_awake
        self.reward_names = reward_names
        self.progress = progress or SamplingProgress()
        self.last_plan: RoundPlan | None = None
        self.num_generated_tokens = 0
        self.num_trained_tokens = 0
        self._carried: list[SampledGroup] = []
        # Rollouts of carried groups that this rank generated.
        self._kept: dict[Location, Rollout] = {}
        # Stream position of the first group that is carried, or goes on; else the stream's.
        self._first_needed = source.position

    @property
    def rollout_efficiency(self) -> float:
        """Trained tokens over generated tokens, since the run began."""
        return self.num_trained_tokens / self.num_generated_tokens if self.num_generated_tokens else 0.0

    def collect(self, policy_step: int, raises_if_exhausted: bool = False) -> GenerationBatch:
        """
        Samples until the batch is full or the prompts that it may sample are used up. A collective.

        Args:
            policy_step (`int`):
                Optimizer steps that the policy has taken.
            raises_if_exhausted (`bool`, *optional*, defaults to `False`):
                Whether a batch that is not full is an error.

        Raises:
            `RefillExhaustedError`: the batch is not full, and that is an error.
        """
        ledger = self._new_ledger(policy_step)
        first_position = ledger.next_position
        self.progress.begin(policy_step + 1, self.shape.num_groups)
        try:
            with self.keep_awake():
                result = self.refill.fill(ledger, policy_step)
        except Exception:
            # Nothing of the batch trains, so all of its prompts go back to the stream.
            self.source.seek(first_position)
            raise
        finally:
            self.progress.end()
        return self._finish(ledger, first_position, result, raises_if_exhausted)

    def _new_ledger(self, policy_step: int) -> RefillLedger:
        is_fresh = [policy_step - group.policy_step <= self.shape.max_off_policy_steps for group in self._carried]
        return RefillLedger(
            self.shape.num_groups,
            next_position=self.source.position,
            keeps_surplus=self.shape.keeps_surplus,
            carried=[group for group, fresh in zip(self._carried, is_fresh, strict=True) if fresh],
            num_stale=is_fresh.count(False),
            policy_step=policy_step,
            reward_names=self.reward_names,
        )

    def _finish(
        self, ledger: RefillLedger, first_position: int, result: RefillResult, raises_if_exhausted: bool
    ) -> GenerationBatch:
        """Makes a batch of what was sampled, and keeps what is beyond it."""
        # They were graded and shown: what trains are their tokens.
        kept = self._kept | without_texts(result.kept)
        self.last_plan = result.plan or self.last_plan
        self.num_generated_tokens += ledger.num_sampled_tokens
        if ledger.num_missing and raises_if_exhausted:
            # Nothing of the batch trains, so all of its prompts go back to the stream.
            self.source.seek(first_position)
            raise RefillExhaustedError(
                len(ledger.accepted),
                ledger.num_groups,
                ledger.num_rounds,
                ledger.verdict_counts,
                ledger.describe_filter(),
            )
        self.source.seek(ledger.next_position)
        used = ledger.used
        ledger.num_skipped = ledger.next_position - first_position - len(used)
        self.source.observe(used)
        self.num_trained_tokens += sum(group.num_tokens for group in ledger.accepted)
        batch = self.assembler.assemble(ledger, kept, result)
        self._carry(ledger, kept, result)
        return replace(batch, last_plan=self.last_plan, source_metrics=self.source.metrics)

    def begin_next(self, policy_step: int) -> None:
        """Begins to sample the next batch beside training, where the sampler is one that does so; here nothing. A collective."""

    def drain(self) -> None:
        """Waits until nothing is sampled beside training. A collective."""

    def cancel(self, is_orderly: bool) -> None:
        """Gives up what is sampled beside training. `is_orderly`: on all ranks together."""

    def state_dict(self) -> dict[str, Any]:
        """
        Returns what a resumed run needs to draw the prompts that this one would draw next.

        Carried groups are not in it: the saved stream stands before the first of them, so that they are sampled again
        unless `load_carried_state_dict` brings them back.
        """
        return {
            **self.source.state_dict(self._first_needed),
            "planner": self.refill.planner.state_dict(),
            "last_plan": None if self.last_plan is None else asdict(self.last_plan),
            "num_generated_tokens": self.num_generated_tokens,
            "num_trained_tokens": self.num_trained_tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any], restart_stream: bool = False) -> None:
        """Continues the run that `state` was taken from, without what it carried; from the beginning of the stream if asked."""
        if not restart_stream:
            self.source.load_state_dict(state)
        self.refill.planner.load_state_dict(state["planner"])
        self.last_plan = None if state["last_plan"] is None else RoundPlan(**state["last_plan"])
        self.num_generated_tokens = state["num_generated_tokens"]
        self.num_trained_tokens = state["num_trained_tokens"]
        self._carried, self._kept = [], {}
        self._first_needed = self.source.position

    def carried_state_dict(self) -> dict[str, Any]:
        """Returns the carried groups, this rank's rollouts of them, the refill, and where the stream continues."""
        return {
            "position": self.source.position,
            "refill": self.refill.state_dict(),
            "groups": [group.state_dict() for group in self._carried],
            "rollouts": self._state_of(self._kept, self._carried),
        }

    def load_carried_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the carried groups back. To be called after `load_state_dict`, on as many ranks as were saved."""
        self.source.advance(state["position"])
        self.refill.load_state_dict(state["refill"])
        self._carried = [SampledGroup.from_state_dict(group) for group in state["groups"]]
        self._kept = self._rollouts_of(state["rollouts"], self._carried)

    def _state_of(self, rollouts: Mapping[Location, Rollout], groups: Iterable[SampledGroup]) -> list[list[Any]]:
        """Returns rollouts of groups by their locations, for a checkpoint. What is in the dataset is not in it."""
        draw_of = {at: group.draw for group in groups for at in group.locations}
        rows = self.source.rows([draw_of[at] for at in rollouts])
        return [[list(at), rollout.state_dict(row)] for (at, rollout), row in zip(rollouts.items(), rows, strict=True)]

    def _rollouts_of(
        self, saved: Sequence[tuple[Sequence[int], Mapping[str, Any]]], groups: Iterable[SampledGroup]
    ) -> dict[Location, Rollout]:
        """Returns saved rollouts of groups by their locations. What is in the dataset is read there again."""
        draw_of = {at: group.draw for group in groups for at in group.locations}
        return {
            at: Rollout.from_state_dict(state, partial(self.source.row, draw_of[at]))
            for at, state in ((Location(*at), state) for at, state in saved)
        }

    def _carry(self, ledger: RefillLedger, kept: Mapping[Location, Rollout], result: RefillResult) -> None:
        """Keeps the rollouts of the surplus, with the log-probabilities of the policies that sampled them."""
        self._carried = ledger.surplus if ledger.keeps_surplus else []
        rank = self.assembler.ranks.rank
        self._kept = {at: kept[at] for group in self._carried for at in group.locations if at.rank == rank}
        positions = [self.source.position, *(group.draw.position for group in self._carried)]
        if result.first_suspended is not None:
            positions.append(result.first_suspended)
        self._first_needed = min(positions)
        self.source.forget_before(self._first_needed)
        # Groups that were carried before have their log-probabilities. Those of new tokens are computed now, while the
        # policy is still the one that sampled them.
        was_carried = {group.draw.position for group in ledger.carried}
        new = [at for group in self._carried if group.draw.position not in was_carried for at in group.locations]
        if new or any(result.num_unfinished):
            self._keep_logps(new, result)

    def _keep_logps(self, new: Sequence[Location], result: RefillResult) -> None:
        """Scores what the present policy sampled for later batches. A collective."""
        rank = self.assembler.ranks.rank
        mine = [at for at in new if at.rank == rank]
        rollouts = [self._kept[at] for at in mine] + [completion.rollout for completion in result.unfinished]
        # A forward pass may be a collective, so all ranks run equally many rows.
        num_rows = Counter(at.rank for at in new)
        num_rows.update(dict(enumerate(result.num_unfinished)))
        assert result.spare is not None  # every rank takes part in sampling
        fillers = [result.spare[1]] * (max(num_rows.values()) - len(rollouts))
        scored = [
            rollout.with_old_logps(rollout.old_logps, logps)
            for rollout, logps in zip(rollouts, self.score(rollouts + fillers), strict=False)
        ]
        self._kept |= dict(zip(mine, scored, strict=False))
        for completion, rollout in zip(result.unfinished, scored[len(mine) :], strict=True):
            completion.keep_logps(rollout.old_logps)
