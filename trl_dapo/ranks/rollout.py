"""Rollouts between generation and training: unpadded, on the CPU, and ready to travel between ranks."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from trl_dapo.sampling.judge import EmptyCompletion, Location, Tokens


# Log-probabilities of one completion, in nats; `None` or NaN: unknown.
Logps = Sequence[float | None] | np.ndarray

_NOTHING_LOGGED: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Rollout:
    """
    One prompt with one of its completions.

    Attributes:
        prompt_ids (`torch.Tensor`):
            Shape `(P,)`, int32.
        completion_ids (`torch.Tensor`):
            Shape `(C,)`, int32.
        sampling_logps (`torch.Tensor`, *optional*):
            Log-probability of each completion token under the engine that sampled it, shape `(C,)`, float32; NaN where
            the engine gave none. `None`: sampled by the trained model itself.
        old_logps (`torch.Tensor`, *optional*):
            Log-probability of the first completion tokens under the trained model as it was when each was sampled, shape
            `(K,)` with K <= C, float32. The other tokens were sampled by the policy as it is, and so were all where it is
            `None`.
        extra_logs (`Mapping[str, Any]`):
            What reward functions logged for the rollout, by column. It does not travel with `pack`.
        completion (`Any`):
            The completion as reward functions saw it, a text or a conversation. It does not travel with `pack`; `None`:
            to be decoded from `completion_ids`.
        tool_mask (`torch.Tensor`, *optional*):
            Which of the completion tokens the model wrote, shape `(C,)`, bool; the others came from tools, an environment or
            the chat template between two turns. `None`: all of them.
        prompt (`Any`):
            The prompt with what an environment added to it. It does not travel with `pack`; `None`: that of the dataset row.
    """

    prompt_ids: torch.Tensor
    completion_ids: torch.Tensor
    sampling_logps: torch.Tensor | None = None
    old_logps: torch.Tensor | None = None
    extra_logs: Mapping[str, Any] = field(default_factory=dict)
    completion: Any = None
    tool_mask: torch.Tensor | None = None
    prompt: Any = None

    @classmethod
    def from_lists(
        cls,
        prompt_ids: Tokens,
        completion_ids: Tokens,
        sampling_logps: Logps | None,
        extra_logs: Mapping[str, Any] | None = None,
        completion: Any = None,
        tool_mask: Sequence[int] | None = None,
        prompt: Any = None,
    ) -> "Rollout":
        """
        Builds a rollout from token ids, log-probabilities (`None` or NaN where the engine gave none) and which tokens the model
        wrote. Arrays of int32 and float32 are kept as they are.
        """
        # numpy reads a list of numbers five times as fast as torch, and `None` as NaN.
        return cls(
            torch.from_numpy(np.asarray(prompt_ids, np.int32)),
            torch.from_numpy(np.asarray(completion_ids, np.int32)),
            None if sampling_logps is None else torch.from_numpy(np.asarray(sampling_logps, np.float32)),
            extra_logs=extra_logs or _NOTHING_LOGGED,
            completion=completion,
            tool_mask=None if tool_mask is None or all(tool_mask) else torch.tensor(tool_mask, dtype=torch.bool),
            prompt=prompt,
        )

    @property
    def num_tool_tokens(self) -> int:
        """Completion tokens that the model did not write."""
        return 0 if self.tool_mask is None else int((~self.tool_mask).sum())

    @property
    def stretches(self) -> list[int]:
        """Tokens of the model, of others, of the model, and so on, in the order of the completion."""
        if self.tool_mask is None:
            return [len(self.completion_ids)]
        cuts = (self.tool_mask[1:] != self.tool_mask[:-1]).nonzero().flatten() + 1
        ends = [0, *cuts.tolist(), len(self.tool_mask)]
        lengths = [end - start for start, end in itertools.pairwise(ends)]
        return lengths if self.tool_mask[0] else [0, *lengths]

    def truncated(self, num_tokens: int) -> "Rollout":
        """Returns the rollout with only the first `num_tokens` tokens of its completion."""
        logps = None if self.sampling_logps is None else self.sampling_logps[:num_tokens]
        mask = None if self.tool_mask is None else self.tool_mask[:num_tokens]
        return Rollout(self.prompt_ids, self.completion_ids[:num_tokens], logps, tool_mask=mask, prompt=self.prompt)

    def with_old_logps(self, known: torch.Tensor | None, logps: torch.Tensor | None = None) -> "Rollout":
        """
        Returns the rollout with the log-probabilities of the policies that sampled it.

        Args:
            known (`torch.Tensor`, *optional*):
                Those of its first tokens, which earlier policies sampled, shape `(K,)`.
            logps (`torch.Tensor`, *optional*):
                Those of all tokens under the policy as it is, which sampled the others, shape `(C,)`.
        """
        if logps is None:
            return replace(self, old_logps=known)
        return replace(self, old_logps=logps if known is None else torch.cat([known, logps[len(known) :]]))

    def pack(self, has_old_logps: bool | None = None) -> torch.Tensor:
        """
        Returns the rollout as one int32 tensor; the log-probabilities keep their bits. A token that the model did not write
        is the complement of its id, which is below 0.

        Args:
            has_old_logps (`bool`, *optional*):
                Whether the tensor has a place for `old_logps`, NaN where there is none. `None`: if there are any.
        """
        parts = [] if self.sampling_logps is None else [self.sampling_logps]
        if self.old_logps is not None if has_old_logps is None else has_old_logps:
            known = torch.empty(0) if self.old_logps is None else self.old_logps
            parts.append(torch.cat([known, torch.full((len(self.completion_ids) - len(known),), torch.nan)]))
        ids = self.completion_ids
        if self.tool_mask is not None:
            ids = torch.where(self.tool_mask, ids, ~ids)
        return torch.cat([self.prompt_ids, ids, *(part.view(torch.int32) for part in parts)])

    @classmethod
    def unpack(
        cls,
        packed: torch.Tensor,
        prompt_length: int,
        completion_length: int,
        has_sampling_logps: bool = False,
        has_old_logps: bool = False,
        extra_logs: Mapping[str, Any] | None = None,
    ) -> "Rollout":
        """Inverse of `pack`; the two lengths in tokens, and which log-probabilities there are, tell the parts apart."""
        sizes = [prompt_length] + [completion_length] * (1 + has_sampling_logps + has_old_logps)
        prompt_ids, completion_ids, *rest = packed.split(sizes)
        # Cloned because a view of int32 memory at an odd offset cannot be read as float32.
        logps = [part.clone().view(torch.float32) for part in rest]
        sampling_logps = logps.pop(0) if has_sampling_logps else None
        old_logps = logps.pop(0) if has_old_logps else None
        if old_logps is not None:
            old_logps = old_logps[: int((~old_logps.isnan()).sum())]
        tool_mask, is_own = None, completion_ids >= 0
        if not is_own.all():
            tool_mask, completion_ids = is_own, torch.where(is_own, completion_ids, ~completion_ids)
        return cls(prompt_ids, completion_ids, sampling_logps, old_logps, extra_logs or {}, tool_mask=tool_mask)

    def shown(self) -> dict[str, Any]:
        """Returns what people see of the rollout, and `pack` leaves out. What can be decoded from its tokens is not in it."""
        shown: dict[str, Any] = {"extra_logs": dict(self.extra_logs)}
        if self.tool_mask is not None or self.prompt is not None:
            shown |= {"completion": self.completion, "prompt": self.prompt}
        return shown

    def state_dict(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """
        Returns the rollout for a checkpoint, without texts that can be decoded from its tokens, or that are in the dataset row.

        Args:
            row (`Mapping`):
                The dataset row. A text that was logged as it is there is saved as the name of its column.
        """
        shown = self.shown()
        logged = shown["extra_logs"]
        in_row = [name for name, value in logged.items() if isinstance(value, str) and row.get(name) == value]
        if in_row:
            # Their places stay: the record shows columns in the order in which they were logged.
            logged |= dict.fromkeys(in_row)
            shown["row_columns"] = in_row
        return {
            "prompt_ids": self.prompt_ids,
            "completion_ids": self.completion_ids,
            "sampling_logps": self.sampling_logps,
            "old_logps": self.old_logps,
            "tool_mask": self.tool_mask,
            **shown,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], row_of: Callable[[], Mapping[str, Any]]) -> "Rollout":
        """
        Inverse of `state_dict`.

        Args:
            state (`Mapping`):
                The state.
            row_of (`Callable[[], Mapping]`):
                Returns the dataset row. Called if there are columns to take from it.
        """
        values = dict(state)
        in_row = values.pop("row_columns", ())
        if in_row:
            row = row_of()
            values["extra_logs"] = {**values["extra_logs"], **{name: row[name] for name in in_row}}
        return cls(**values)


def rollouts_of(
    prompt_ids: Sequence[Tokens],
    completion_ids: Sequence[Tokens],
    sampling_logps: Sequence[Logps] | None,
    completions: Sequence[Any],
    logged_columns: Mapping[str, Sequence[Any]],
    tool_mask: Sequence[Sequence[int]] | None = None,
    prompts: Sequence[Any] | None = None,
) -> list[Rollout]:
    """
    Returns the rollouts of R completions.

    Args:
        prompt_ids (`Sequence[Tokens]`), completion_ids (`Sequence[Tokens]`):
            Tokens of each, without placeholders.
        sampling_logps (`Sequence[Logps]`, *optional*):
            Log-probability of each completion token by the engine that sampled it.
        completions (`Sequence`):
            Each completion as reward functions saw it.
        logged_columns (`Mapping[str, Sequence]`):
            What reward functions logged, R values a column.
        tool_mask (`Sequence[Sequence[int]]`, *optional*):
            1 where the model wrote the token, else 0. `None`: it wrote all of them.
        prompts (`Sequence`, *optional*):
            The prompts with what environments added to them. `None`: those of the dataset rows.
    """
    rollouts: list[Rollout] = []
    for row, completion in enumerate(completions):
        rollout = Rollout.from_lists(
            prompt_ids[row],
            completion_ids[row],
            None if sampling_logps is None else sampling_logps[row],
            {column: values[row] for column, values in logged_columns.items()},
            completion,
            None if tool_mask is None else tool_mask[row],
            None if prompts is None else prompts[row],
        )
        if rollouts and torch.equal(rollout.prompt_ids, rollouts[-1].prompt_ids):
            # The completions of a group have one prompt between them.
            rollout = replace(rollout, prompt_ids=rollouts[-1].prompt_ids)
        rollouts.append(rollout)
    return rollouts


def without_texts(rollouts: Mapping[Location, Rollout]) -> dict[Location, Rollout]:
    """Returns rollouts without those completions, as reward functions saw them, that can be decoded from their tokens."""

    def can_be_decoded(rollout: Rollout) -> bool:
        seen = rollout.completion
        if rollout.tool_mask is not None or rollout.prompt is not None or seen is None:
            return False
        return isinstance(seen, str) or (len(seen) == 1 and "tool_calls" not in seen[0])

    return {
        at: replace(rollout, completion=None) if can_be_decoded(rollout) else rollout
        for at, rollout in rollouts.items()
    }


def packed_size(prompt_length: int, completion_length: int, num_logps: int) -> int:
    """
    Length of a packed rollout with `num_logps` kinds of log-probabilities, in int32 words.

    >>> packed_size(prompt_length=5, completion_length=3, num_logps=1)
    11
    """
    return prompt_length + completion_length * (1 + num_logps)


def with_placeholders(
    completion_ids: Sequence[Tokens], logps: Sequence[Logps] | None, pad_token_id: int
) -> tuple[list[Tokens], list[Logps] | None]:
    """
    Puts one padding token, of unknown log-probability, where a completion is empty: TRL reads the last token of each. Its
    row is an [`EmptyCompletion`].

    >>> with_placeholders([[7, 8], []], [[-1.0, -2.0], []], pad_token_id=0)
    ([[7, 8], [0]], [[-1.0, -2.0], [None]])
    """
    placeholder: Logps = [None]
    return (
        [ids if len(ids) else EmptyCompletion([pad_token_id]) for ids in completion_ids],
        None if logps is None else [row if len(row) else placeholder for row in logps],
    )
