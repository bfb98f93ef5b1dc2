"""Reward functions with TRL's signature, by name for recipes. Importable without torch and without sympy."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from .accuracy import AccuracyReward, accuracy_reward
from .overlong import SoftOverlongPunishment


__all__ = ["REWARDS", "AccuracyReward", "SoftOverlongPunishment", "accuracy_reward", "get_reward"]

# The rewards a recipe can name, as `module:function`. Strings, because importing TRL's takes seconds and torch.
REWARDS: dict[str, str] = {
    "accuracy_reward": "trl_dapo.rewards.accuracy:accuracy_reward",
    "signed_accuracy_reward": "trl_dapo.rewards.accuracy:signed_accuracy_reward",
    "think_format_reward": "trl.rewards:think_format_reward",
}


def get_reward(name: str) -> Callable[..., list[float | None]]:
    """
    Look up a reward function by its name.

    Args:
        name (`str`):
            One of the keys of `REWARDS`.

    Returns:
        `Callable`: The reward function.

    Raises:
        `ValueError`: If no reward has that name.

    Example:

    >>> get_reward("accuracy_reward").__name__
    'accuracy_reward'
    """
    if name not in REWARDS:
        close = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"There is no reward named {name!r}.{hint} The known rewards are: {', '.join(sorted(REWARDS))}."
        )
    module_name, _, function_name = REWARDS[name].partition(":")
    reward: Any = getattr(importlib.import_module(module_name), function_name)
    return reward  # type: ignore[no-any-return]
