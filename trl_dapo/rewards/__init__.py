"""Reward functions with TRL's signature, by name or dotted path. Importable without torch and without sympy."""

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
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
    Look up a reward function by its name, or import it by its dotted path.

    Args:
        name (`str`):
            One of the keys of `REWARDS`, or `module.function`: a module of the current directory or an installed one. Of
            an installed module and a file of the current directory with the same name, the installed one is taken.

    Returns:
        `Callable`: The reward function.

    Raises:
        `ValueError`: If no reward has that name, the module is not found, it has no such attribute, or the attribute is
            no function. An error that the module itself raises is not changed.

    Example:

    >>> get_reward("accuracy_reward").__name__
    'accuracy_reward'
    >>> get_reward("trl_dapo.rewards.accuracy.signed_accuracy_reward").__name__
    'signed_accuracy_reward'
    """
    if name in REWARDS:
        module_name, _, function_name = REWARDS[name].partition(":")
        reward: Any = getattr(importlib.import_module(module_name), function_name)
        return reward  # type: ignore[no-any-return]
    module_name, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")) or attribute == "py":
        raise ValueError(
            f"{name!r} is no name of a reward. Write module and function with a dot between them, as in my_rewards.brevity "
            "for the function brevity in my_rewards.py."
        )
    if not module_name:
        raise ValueError(
            f"There is no reward named {name!r}.{_hint(name, REWARDS)} The known rewards are: "
            f"{', '.join(sorted(REWARDS))}. For a function of your own, write module.function."
        )
    return _imported(name, module_name, attribute)  # type: ignore[no-any-return]


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


def _imported(name: str, module_name: str, attribute: str) -> Any:
    module = _import_module(name, module_name)
    if not hasattr(module, attribute):
        known = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        raise ValueError(
            f"The reward {name!r} does not exist: {_place(module)} has no {attribute!r}.{_hint(attribute, known)}"
        )
    reward = getattr(module, attribute)
    if isinstance(reward, type):
        raise ValueError(
            f"The reward {name!r} is a class, but must be a function or an instance. Put `reward = {attribute}(...)` into "
            "the module, and name that."
        )
    if not callable(reward):
        raise ValueError(
            f"The reward {name!r} is of type `{type(reward).__name__}` and cannot be called. A reward is a function "
            "(completions, **kwargs) -> list[float | None]."
        )
    if not hasattr(reward, "__name__"):
        raise ValueError(
            f"The reward {name!r} has no `__name__`, under which it would be logged. Set {attribute}.__name__ in the module."
        )
    return reward


def _import_module(name: str, module_name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        # A console script does not look there. At the end, so that no file there hides an installed package.
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != module_name and not module_name.startswith(f"{missing}."):
            raise  # the module exists, and imports one that does not
    # The parent of the module that is missing may be a package, or a file.
    is_top = missing == module_name.partition(".")[0]
    nearby = [path.stem for path in Path(folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    hint = _hint(missing, nearby) if is_top else ""
    raise ValueError(
        f"The reward {name!r} does not exist: there is no module {missing!r}, neither in the current directory ({folder}) "
        f"nor installed.{hint}"
    )


def _place(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return f"module {module.__name__!r}" + (f" ({file})" if file else "")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
