"""Reward functions with TRL's signature, by name for recipes. Importable without torch and without sympy."""

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .accuracy import AccuracyReward, accuracy_reward
from .overlong import SoftOverlongPunishment


__all__ = ["REWARDS", "AccuracyReward", "SoftOverlongPunishment", "accuracy_reward", "find_rewards", "get_reward"]

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


def find_rewards(reward_funcs: Any) -> Any:
    """
    Returns the reward functions of a trainer, with functions for the names of our rewards.

    Args:
        reward_funcs (`str`, `Callable`, or a list or tuple of them, or `None`):
            As the user passes them. In TRL a name is that of a reward model, and so is one with a `/`, of a folder, or
            without "reward" in it.

    Returns:
        A new list where there are several, else a function, the name of a model, or `None`.

    Raises:
        `ValueError`: a name that can only be meant as one of our rewards is none of them.

    Example:

    >>> [getattr(reward, "__name__", reward) for reward in find_rewards(("accuracy_reward", "some/reward-model"))]
    ['accuracy_reward', 'some/reward-model']
    """
    if isinstance(reward_funcs, list | tuple):
        return [find_rewards(reward) for reward in reward_funcs]
    if not isinstance(reward_funcs, str):
        return reward_funcs
    is_ours = reward_funcs in REWARDS or "reward" in reward_funcs.lower()
    if not is_ours or "/" in reward_funcs or Path(reward_funcs).exists():
        return reward_funcs
    try:
        return get_reward(reward_funcs)
    except ValueError as error:
        raise ValueError(
            f"reward_funcs has {reward_funcs!r}. {error} Pass a function, one of these names, or the name of a reward model as "
            "owner/name."
        ) from None
