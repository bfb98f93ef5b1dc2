"""Optimizer steps that must not move the weights: without a token that carries loss, or with NaN or infinite gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import TrainerCallback

from trl_dapo.checkpoints.files import write_state
from trl_dapo.errors import NonFiniteGradientError
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.trl_seams import TrainerSeams


logger = get_logger(__name__)

# Begins with an underscore, since such files are not pushed to the Hub.
FOLDER = "_non_finite"
# Batches of a run that are written down. The first ones show the cause; a rank's part may have hundreds of megabytes.
_MAX_WRITTEN = 3


def check_trainable(model: Any) -> None:
    """
    Checks that there is something to train.

    Args:
        model (`nn.Module`):
            The model.

    Raises:
        `ValueError`: it has no trainable parameter, and what to do.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        return
    fix = (
        "An adapter is loaded frozen: load it with PeftModel.from_pretrained(..., is_trainable=True)"
        if hasattr(model, "peft_config")
        else "Call model.requires_grad_(True), or pass a peft_config"
    )
    raise ValueError(f"The model has no trainable parameter, so that training would change nothing. {fix}.")


class NonFiniteGuard(TrainerCallback):
    """
    Keeps an optimizer step with NaN or infinite gradients from ruining the weights.

    One such step makes every weight NaN. Without gradients the optimizer leaves weights and moments alone, and the run
    continues with the next batch. The first few such batches are written to `<output_dir>/_non_finite/`. The metric
    `dapo/frac_non_finite_steps` is the share of such steps. After `max_non_finite_steps` consecutive ones the run stops.

    With float16 the gradient scaler meets such steps now and then, and skips them itself; under DeepSpeed the gradients
    are not visible. In both cases the guard does nothing, and the metric is not logged.

    Args:
        seams (`TrainerSeams`):
            Owns the batch that is trained.
        ranks (`Ranks`):
            The ranks of the run.
        limit (`int` or `None`):
            Consecutive steps after which the run stops. `None`: nothing is skipped.
        log (`Callable[[dict[str, float]], None]`):
            Takes metrics by their names below `dapo/`.

    Raises:
        `NonFiniteGradientError`: on all ranks, when too many consecutive steps were skipped.
    """

    def __init__(self, seams: TrainerSeams, ranks: Ranks, limit: int | None, log: Callable[[dict[str, float]], None]):
        self.seams = seams
        self.ranks = ranks
        self.limit = limit
        self.log = log
        self._num_in_a_row = 0
        self._num_written = 0

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: torch.nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Drops gradients that are not finite on any rank."""
        if model is None or self.limit is None or not self.seams.sees_gradients:
            return
        # A rank may hold a part of the gradients only, so all of them decide together.
        faults = self.ranks.gather_rows([[not _has_finite_gradients(model)]])
        faulty = [rank for rank, (fault,) in enumerate(faults) if fault]
        self.log({"frac_non_finite_steps": float(bool(faulty))})
        if not faulty:
            self._num_in_a_row = 0
            return
        self._num_in_a_row += 1
        model.zero_grad(set_to_none=True)
        batch = self.seams.micro_batches_of_step()
        suspects = sorted({name for part in batch for name, value in part.items() if not _is_finite(value)})
        folder = Path(args.output_dir, FOLDER, f"step-{state.global_step + 1}")
        if self._num_written < _MAX_WRITTEN:
            self._num_written += 1
            try:
                write_state(folder, f"rank{self.ranks.rank}", {"step": state.global_step + 1, "micro_batches": batch})
            except OSError as failure:
                # A full disk must not end the run.
                logger.warning(f"The batch of optimizer step {state.global_step + 1} could not be written: {failure}.")
        error = NonFiniteGradientError(state.global_step + 1, self._num_in_a_row, faulty, suspects, str(folder.parent))
        if self._num_in_a_row >= self.limit:
            raise error
        logger.warning(f"{error}\nThe step is skipped; {self.limit} consecutive ones stop the run.")

    def state_dict(self) -> dict[str, Any]:
        """Returns how many consecutive steps were skipped, and how many batches were written."""
        return {"num_in_a_row": self._num_in_a_row, "num_written": self._num_written}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state."""
        self._num_in_a_row, self._num_written = state["num_in_a_row"], state["num_written"]


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


def _has_finite_gradients(model: torch.nn.Module) -> bool:
    """Whether the gradients are finite that this rank holds: under FSDP2 those of its shards, without a collective each."""
    gradients: list[Any] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    local = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in gradients]
    flags = [gradient.isfinite().all() for gradient in local]
    # One wait for the device, not one for each parameter.
    return not flags or bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())


def _is_finite(value: Any) -> bool:
    return not (isinstance(value, torch.Tensor) and value.is_floating_point()) or bool(value.isfinite().all())
