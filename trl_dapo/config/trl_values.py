"""Refuses values of TRL's own fields that TRL, transformers and vLLM find out only when they use them, steps later."""

import math
from collections.abc import Callable
from typing import Any


def check_trl_values(config: Any) -> None:
    """
    Checks TRL's fields of sampling, rewards and loss.

    Args:
        config (`DAPOConfig`):
            The configuration, after TRL's `__post_init__`.

    Raises:
        `ValueError`: naming field, value and what it must be.
    """
    # Greedy completions of a prompt are all alike, and TRL divides the logits by the temperature.
    _check(config, "temperature", lambda value: value > 0, "above 0, so that completions of a prompt differ. Use 1.0")
    _check(config, "top_p", lambda value: 0 < value <= 1, "above 0 and at most 1. Use 1.0 to keep all tokens")
    fewest = -1 if config.use_vllm else 0
    _check(config, "top_k", lambda value: value >= fewest, "a number of tokens, or 0 to keep all")
    _check(config, "min_p", lambda value: 0 <= value <= 1, "between 0 and 1, or None")
    _check(config, "repetition_penalty", lambda value: value > 0, "above 0. Use 1.0 for no penalty")
    _check(config, "top_entropy_quantile", lambda value: 0 <= value <= 1, "between 0 and 1. Use 1.0 for all tokens")
    # With NaN, a reward would count for nothing.
    _check(
        config, "reward_weights", lambda value: all(map(math.isfinite, value)), "finite numbers, one for each reward"
    )


def check_use_cpu(config: Any) -> None:
    """
    Refuses a `use_cpu` that was set after the configuration had chosen its device and its precision.

    Args:
        config (`DAPOConfig`):
            The configuration, as a trainer receives it.

    Raises:
        `ValueError`: naming field, device and fix.
    """
    if config.use_cpu and config.device.type != "cpu":
        raise ValueError(
            f"use_cpu was set to True after the configuration was made, which had chosen {config.device} with "
            f"bf16={config.bf16}. It must be given when the configuration is made: DAPOConfig(use_cpu=True, ...)."
        )


def _check(config: Any, name: str, is_good: Callable[[Any], bool], expected: str) -> None:
    value = getattr(config, name)
    if value is not None and not is_good(value):
        raise ValueError(f"{name} is {value!r}, but must be {expected}.")
