"""Refuses reward models that the ranks can only run together where each rank grades by itself."""

from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled


def check_reward_models(reward_funcs: Any, args: Any) -> None:
    """
    Checks that every reward model can score on one rank alone, as `refill="stream"` needs.

    Args:
        reward_funcs (`str`, `Callable`, or a list of them, or `None`):
            As TRL takes them. A text is the name of a reward model.
        args (`DAPOConfig`):
            The configuration.

    Raises:
        `ValueError`: naming the reward model.
    """
    if not (args.dynamic_sampling and args.refill == "stream"):
        return
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    sharded = [number for number, function in enumerate(functions) if _is_sharded(function)]
    if sharded:
        function = functions[sharded[0]]
        name = function if isinstance(function, str) else type(function).__name__
        fix = (
            'Set overlap=False and refill="rounds", where all ranks score together'
            if args.overlap
            else 'Set refill="rounds", where all ranks score together'
        )
        raise ValueError(
            f'refill is "stream", but reward function {sharded[0]} ({name}) is a model whose weights are split over the ranks '
            "(ZeRO-3 or FSDP): a forward pass is of all ranks at once, and each rank grades its groups when they are finished. "
            f"{fix}, or train with ZeRO-2 or DDP, which keep reward models whole."
        )


def _is_sharded(function: Any) -> bool:
    """Returns whether the ranks hold parts of a reward model, or will when TRL has prepared it."""
    if isinstance(function, str | PreTrainedModel) and is_deepspeed_zero3_enabled():
        return True
    if not isinstance(function, torch.nn.Module):
        return False
    # DeepSpeed numbers the parameters that it has split.
    return any(isinstance(module, FullyShardedDataParallel) for module in function.modules()) or any(
        isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in function.parameters()
    )
