"""Rollouts between generation and training: unpadded, on the CPU, and ready to travel between ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


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
    """

    prompt_ids: torch.Tensor
    completion_ids: torch.Tensor
    sampling_logps: torch.Tensor | None = None

    @classmethod
    def from_lists(
        cls, prompt_ids: Sequence[int], completion_ids: Sequence[int], logps: Sequence[float | None] | None
    ) -> "Rollout":
        """Builds a rollout from token ids and log-probabilities (`None` where the engine gave none)."""
        return cls(
            torch.tensor(prompt_ids, dtype=torch.int32),
            torch.tensor(completion_ids, dtype=torch.int32),
            None
            if logps is None
            else torch.tensor([float("nan") if logp is None else logp for logp in logps], dtype=torch.float32),
        )

    def truncated(self, num_tokens: int) -> "Rollout":
        """Returns the rollout with only the first `num_tokens` tokens of its completion."""
        logps = None if self.sampling_logps is None else self.sampling_logps[:num_tokens]
        return Rollout(self.prompt_ids, self.completion_ids[:num_tokens], logps)

    def pack(self) -> torch.Tensor:
        """Returns the rollout as one int32 tensor; the log-probabilities keep their bits."""
        parts = [self.prompt_ids, self.completion_ids]
        if self.sampling_logps is not None:
            parts.append(self.sampling_logps.view(torch.int32))
        return torch.cat(parts)

    @classmethod
    def unpack(cls, packed: torch.Tensor, prompt_length: int, completion_length: int) -> "Rollout":
        """Inverse of `pack`; the two lengths in tokens tell the parts apart."""
        prompt_ids, completion_ids, logps = packed.split(
            [prompt_length, completion_length, len(packed) - prompt_length - completion_length]
        )
        # Cloned because a view of int32 memory at an odd offset cannot be read as float32.
        return cls(prompt_ids, completion_ids, logps.clone().view(torch.float32) if len(logps) else None)


def packed_size(prompt_length: int, completion_length: int, has_logps: bool) -> int:
    """
    Length of a packed rollout, in int32 words.

    >>> packed_size(prompt_length=5, completion_length=3, has_logps=True)
    11
    """
    return prompt_length + completion_length * (2 if has_logps else 1)
