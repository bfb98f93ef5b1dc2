"""What the trainer does at fixed points of the training loop."""

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


class RunAnnouncement(TrainerCallback):
    """
    Prints what a run is going to do, once, before it begins.

    Args:
        describe (`Callable[[int], str]`):
            Describes a run of so many optimizer steps.
    """

    def __init__(self, describe: Callable[[int], str]):
        self.describe = describe

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prints it on the first rank."""
        if state.is_world_process_zero:
            print(self.describe(state.max_steps))
