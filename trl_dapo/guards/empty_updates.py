"""Optimizer steps without a token that carries loss: they must not move the weights."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback


class EmptyUpdateGuard(TrainerCallback):
    """
    Keeps an optimizer step without any gradient from moving the weights.

    A step for which no informative group was found has gradient zero, but Adam's momentum and weight decay would move the
    weights all the same. Without gradients the optimizer leaves a parameter and its state alone.

    Args:
        step_has_tokens (`Callable[[], bool]`):
            Whether any token of the step about to be taken carries loss. The same on all ranks.
    """

    def __init__(self, step_has_tokens: Callable[[], bool]):
        self.step_has_tokens = step_has_tokens

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: torch.nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Drops the gradients of a step without tokens."""
        if model is not None and not self.step_has_tokens():
            model.zero_grad(set_to_none=True)
