"""A group while it is sampled sequence by sequence."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from trl_dapo.ranks.rollout import Rollout
from trl_dapo.sampling.judge import RowFacts
from trl_dapo.sampling.prompt_stream import Draw, SequenceKey
from trl_dapo.vllm_engine.sequence_engine import Decoded


@dataclass
class StreamedGroup:
    """
    A group on the rank that samples it.

    Attributes:
        draw (`Draw`):
            The draw from the prompt stream.
        row (`dict[str, Any]`):
            The dataset row.
        prompt_ids (`np.ndarray`):
            The prompt in tokens, shape `(P,)`, int32.
        policy_step (`int`):
            Optimizer steps that the policy had taken when the group was begun.
        token_ids (`list[np.ndarray]`):
            Tokens of each of the G completions so far, shape `(C,)`, int32.
        logps (`list[np.ndarray]`):
            The log-probability of each when it was sampled, shape `(C,)`, float32; NaN: unknown.
        old_logps (`list[torch.Tensor | None]`):
            Log-probabilities under the trained model of those tokens that were sampled by earlier policies, float32.
        unfinished (`set[int]`):
            Numbers of the completions that are still being decoded.
        rewards (`list[list[float]]`):
            Reward of each completion by each reward function, shape `(G, F)`, once they are graded.
        facts (`list[RowFacts]`):
            Lengths and truncation of the G completions, once they are graded.
        rollouts (`list[Rollout]`):
            The G rollouts, once they are graded.
    """

    draw: Draw
    row: dict[str, Any]
    prompt_ids: np.ndarray
    policy_step: int
    token_ids: list[np.ndarray]
    logps: list[np.ndarray]
    old_logps: list[torch.Tensor | None]
    unfinished: set[int]
    rewards: list[list[float]] = field(default_factory=list)
    facts: list[RowFacts] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)

    @classmethod
    def begin(
        cls, draw: Draw, row: dict[str, Any], prompt_ids: list[int], policy_step: int, num_generations: int
    ) -> "StreamedGroup":
        """Returns a group without a token."""
        nothing = Decoded.of([], [])
        return cls(
            draw,
            row,
            np.asarray(prompt_ids, np.int32),
            policy_step,
            token_ids=[nothing.token_ids] * num_generations,
            logps=[nothing.logps] * num_generations,
            old_logps=[None] * num_generations,
            unfinished=set(range(num_generations)),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens decoded so far."""
        return sum(map(len, self.token_ids))

    @property
    def is_graded(self) -> bool:
        """Whether the rewards are there."""
        return bool(self.rewards)

    @property
    def keys(self) -> list[SequenceKey]:
        """The completions that are still being decoded."""
        return [SequenceKey(self.draw.position, sample) for sample in sorted(self.unfinished)]

    def has_new_tokens(self, sample: int) -> bool:
        """Whether a completion has tokens that the policy as it is sampled."""
        known = self.old_logps[sample]
        return len(self.token_ids[sample]) > (0 if known is None else len(known))

    def extend(self, sample: int, decoded: Decoded, is_finished: bool) -> None:
        """Adds tokens to a completion."""
        self.token_ids[sample] = np.concatenate([self.token_ids[sample], decoded.token_ids])
        self.logps[sample] = np.concatenate([self.logps[sample], decoded.logps])
        if is_finished:
            self.unfinished.discard(sample)

    def keep_logps(self, sample: int, old_logps: torch.Tensor | None) -> None:
        """Notes the log-probabilities of the policies that sampled the tokens so far."""
        self.old_logps[sample] = old_logps
        if self.rollouts:
            self.rollouts[sample] = self.rollouts[sample].with_old_logps(old_logps)

    def rollout_so_far(self, sample: int) -> Rollout:
        """Returns a completion as far as it is decoded."""
        rollout = Rollout.from_lists(self.prompt_ids, self.token_ids[sample], self.logps[sample])
        return rollout.with_old_logps(self.old_logps[sample])

    def copy(self) -> "StreamedGroup":
        """Returns a group that stays as it is when this one goes on."""
        return replace(
            self,
            token_ids=list(self.token_ids),
            logps=list(self.logps),
            old_logps=list(self.old_logps),
            unfinished=set(self.unfinished),
            rewards=list(self.rewards),
            facts=list(self.facts),
            rollouts=list(self.rollouts),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the group for a checkpoint, without its dataset row. One that is graded is graded again."""
        return {
            "draw": [self.draw.position, self.draw.index],
            "prompt_ids": torch.from_numpy(self.prompt_ids),
            "policy_step": self.policy_step,
            "token_ids": list(map(torch.from_numpy, self.token_ids)),
            "logps": list(map(torch.from_numpy, self.logps)),
            "old_logps": self.old_logps,
            "unfinished": sorted(self.unfinished),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "StreamedGroup":
        """Inverse of `state_dict`, with an empty dataset row."""
        # Earlier releases wrote lists.
        arrays = {
            "prompt_ids": np.asarray(state["prompt_ids"], np.int32),
            "token_ids": [np.asarray(ids, np.int32) for ids in state["token_ids"]],
            "logps": [np.asarray(logps, np.float32) for logps in state["logps"]],
        }
        rest = {"draw": Draw(*state["draw"]), "unfinished": set(state["unfinished"]), "row": {}}
        return cls(**{**state, **arrays, **rest})


@dataclass(frozen=True, slots=True)
class UnfinishedCompletion:
    """
    A completion that goes on in the next batch; an [`Unfinished`].

    Attributes:
        group (`StreamedGroup`):
            Its group.
        sample (`int`):
            Its number in the group.
    """

    group: StreamedGroup
    sample: int

    @property
    def rollout(self) -> Rollout:
        """The completion as far as it is decoded."""
        return self.group.rollout_so_far(self.sample)

    def keep_logps(self, old_logps: torch.Tensor | None) -> None:
        """Notes the log-probabilities of the policies that sampled its tokens so far."""
        self.group.keep_logps(self.sample, old_logps)
