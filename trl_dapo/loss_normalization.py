"""The denominator of the token-level loss (DAPO Eq. 12): the tokens of the optimizer step, whatever it is cut into."""

from collections.abc import Mapping
from typing import Any

import torch


# TRL's loss types that divide by `num_items_in_batch`.
TOKEN_NORMALIZED_LOSSES = ("dapo", "cispo", "vespo")


def num_live_tokens(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Returns the number of completion tokens that carry loss in one micro-batch, shape `()`, int64."""
    mask = inputs["completion_mask"]
    tool_mask = inputs.get("tool_mask")
    count: torch.Tensor = (mask if tool_mask is None else mask * tool_mask).sum()
    return count


def window_denominators(num_tokens: torch.Tensor, gradient_accumulation_steps: int) -> torch.Tensor:
    """
    Returns the `num_items_in_batch` with which TRL divides each micro-batch by the tokens of its optimizer step.

    TRL takes the tokens of a whole generation batch of S micro-batches and rescales them to the A micro-batches of one
    optimizer step by A / S, which is right on average only. Given `tokens of the step * S / A`, it divides exactly.

    Args:
        num_tokens (`torch.Tensor`):
            Tokens of each micro-batch of the generation batch over all ranks, in training order, shape `(S,)`.
        gradient_accumulation_steps (`int`):
            Micro-batches of one optimizer step A, a divisor of S.

    Returns:
        `torch.Tensor`: shape `(S,)`, int64. 0 for a step without tokens.

    Example:

    >>> window_denominators(torch.tensor([10, 30, 5, 5]), gradient_accumulation_steps=2).tolist()
    [80, 80, 20, 20]
    """
    windows = num_tokens.view(-1, gradient_accumulation_steps).sum(dim=1)
    num_windows = len(windows)
    return (windows * num_windows).repeat_interleave(gradient_accumulation_steps)
