"""What fills a generation batch: the protocol that rounds and streaming implement, and what they return."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from trl_dapo.ranks.rollout import Rollout
from trl_dapo.sampling.judge import Location, SampledGroup
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.sampling.refill_ledger import RefillLedger
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan


# Is shown groups as soon as they are judged: the groups, the rollouts of this rank by location, and the rows of draws.
ObserveGroups = Callable[
    [Sequence[SampledGroup], Callable[[Location], Rollout], Callable[[Draw], Mapping[str, Any]]], None
]


class Unfinished(Protocol):
    """A completion of this rank that goes on in the next batch, and that the present policy sampled tokens of."""

    @property
    def rollout(self) -> Rollout:
        """The completion as far as it is decoded."""

    def keep_logps(self, old_logps: torch.Tensor | None) -> None:
        """Notes the log-probabilities of the policies that sampled its tokens so far, shape `(C,)`."""


@dataclass(frozen=True, slots=True)
class RefillResult:
    """
    What filled a generation batch on this rank.

    Attributes:
        kept (`dict[Location, Rollout]`):
            The rollouts of informative groups that this rank sampled.
        spare (`tuple[Draw, Rollout]`, *optional*):
            Any rollout of this rank. `None`: it sampled nothing.
        seconds (`float`):
            Seconds of sampling on the slowest rank.
        plan (`RoundPlan`, *optional*):
            The last plan that was made. `None`: none was needed.
        metrics (`dict[str, float]`):
            Metrics by their names below `dapo/`, beside those of any refill.
        num_uncounted_tokens (`int`):
            Tokens of prompts and completions over all ranks that TRL has not counted.
        unchecked (`list[Rollout]`, *optional*):
            Rollouts by which the weights of the engine can be checked. `None`: they are checked.
        unfinished (`list[Unfinished]`):
            Completions of this rank that need the log-probabilities of the present policy before it changes.
        num_unfinished (`Sequence[int]`):
            How many each rank has. Empty: none has any.
        first_suspended (`int`, *optional*):
            Stream position of the first group that goes on in the next batch. `None`: there is none.
    """

    kept: dict[Location, Rollout]
    spare: tuple[Draw, Rollout] | None
    seconds: float
    plan: RoundPlan | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    num_uncounted_tokens: int = 0
    unchecked: list[Rollout] | None = None
    unfinished: list[Unfinished] = field(default_factory=list)
    num_unfinished: Sequence[int] = ()
    first_suspended: int | None = None


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
