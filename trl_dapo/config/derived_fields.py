"""Fields that a configuration sets by itself: in a copy with other values they are set anew."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


class _Derived(int):
    """A number that follows from other fields."""


# Left at None, they follow from others.
_DERIVED = (
    "generation_batch_size",
    "steps_per_generation",
    "max_prompts_per_round",
    "max_off_policy_steps",
    "soft_punish_cache",
    "num_groups_to_log",
)


@contextmanager
def deriving(config: Any, names: Collection[str] = _DERIVED) -> Iterator[None]:
    """
    Inside it, a configuration sets the fields that were left out.

    So `dataclasses.replace(args, ...)` and `DAPOConfig(**args.to_dict())`, which pass on every field, pass on what was
    chosen, and not what followed from it. Tokens that `to_dict` masks are left out too.

    Args:
        config (`Any`):
            The dataclass. Changed in place.
        names (`Collection[str]`, *optional*):
            Fields of whole numbers that may follow from others.

    Example:

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(batch=8, half=None)
    >>> with deriving(config, ["half"]):
    ...     config.half = config.half or config.batch // 2
    >>> config.batch = 20
    >>> with deriving(config, ["half"]):
    ...     config.half = config.half or config.batch // 2
    >>> config.half
    10
    """
    for name, value in vars(config).items():
        if name in names and isinstance(value, _Derived):
            setattr(config, name, None)
        if name.endswith("_token") and value == f"<{name.upper()}>":
            setattr(config, name, None)
    left_out = [name for name in names if getattr(config, name) is None]
    yield
    for name in left_out:
        value = getattr(config, name)
        if value is not None:
            setattr(config, name, _Derived(value))
