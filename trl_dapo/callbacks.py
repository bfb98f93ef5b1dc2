"""What the trainer does at fixed points of the training loop."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback


class EmptyUpdateGuard(TrainerCallback):
    """
    Keeps an optimizer step without any gradient from moving the weights.

    A batch for which no informative group was found has gradient zero, but Adam's momentum and weight decay would move
    the weights all the same. Without gradients the optimizer leaves a parameter and its state alone.

    Args:
        buffered_inputs (`Callable[[], list[dict] | None]`):
            Returns the slices of the generation batch in training.
    """

    def __init__(self, buffered_inputs: Callable[[], list[dict[str, Any]] | None]):
        self.buffered_inputs = buffered_inputs

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: torch.nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Drops the gradients when the generation batch holds no token that carries loss."""
        batch = self.buffered_inputs()
        if model is not None and batch and not any(part["num_items_in_batch"].item() for part in batch):
            model.zero_grad(set_to_none=True)
