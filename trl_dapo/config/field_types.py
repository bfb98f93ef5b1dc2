"""Checks of single configuration fields, before anything computes with them: their types, and that numbers are numbers."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from .loss_types import LOSS_TYPES


# Fields of TRL and transformers that shape the batch. Neither checks them before it divides by them.
_COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
    "num_generations",
    "num_generations_eval",
    "num_iterations",
    "max_completion_length",
)
_NOT_NEGATIVE = ("epsilon", "epsilon_high", "beta", "temperature")
_MAY_BE_NONE = (
    "steps_per_generation",
    "generation_batch_size",
    "num_generations_eval",
    "max_completion_length",
    "epsilon_high",
)
# Fields of TRL with a few values, of which it finds out in the first step that there is no other.
_CHOICES = {
    "loss_type": LOSS_TYPES,
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "vllm_mode": ("colocate", "server"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}


def check_choices(values: Mapping[str, Any]) -> None:
    """
    Checks the fields that have a few values.

    Args:
        values (`Mapping[str, Any]`):
            Fields by their names. Those that are not there are not checked.

    Raises:
        `ValueError`: naming the field, its value and the others.

    Example:

    >>> check_choices({"loss_type": "dapo", "num_generations": 7})
    """
    for name, choices in _CHOICES.items():
        if name in values and values[name] not in choices:
            near = difflib.get_close_matches(str(values[name]), [str(choice) for choice in choices], n=1)
            raise ValueError(
                f"{name} is {values[name]!r}, but must be one of {', '.join(map(repr, choices))}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )


def check_field_types(config: Any, names: Collection[str]) -> None:
    """
    Checks fields against their annotations, as far as those are `bool`, `int`, `float`, `str`, `list`, `dict` or `None`.

    Args:
        config (`Any`):
            The dataclass.
        names (`Collection[str]`):
            The fields.

    Raises:
        `ValueError`: naming field, value and what it must be. A number that is infinite or not a number is refused too.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        if field.name in names:
            value = getattr(config, field.name)
            if not any(_fits(value, kind) for kind in _alternatives(hints[field.name])):
                expected = " or ".join(_name(kind) for kind in _alternatives(hints[field.name]))
                example = f" For example {field.default!r}, the default." if field.default is not None else ""
                raise ValueError(f"{field.name} is {value!r}, but must be {expected}.{example}")


def check_batch_shape(config: Any) -> None:
    """
    Checks the numbers that a batch is made of.

    Raises:
        `ValueError`: naming field and value, when a count is not a whole number of 1 or more, or a weight is negative.
    """
    check_choices(vars(config))
    for name in _COUNTS:
        value = getattr(config, name)
        if not _is_left_out(name, value) and (not _fits(value, int) or value < 1):
            raise ValueError(f"{name} is {value!r}, but must be a whole number of 1 or more.")
    for name in _NOT_NEGATIVE:
        value = getattr(config, name)
        if not _is_left_out(name, value) and (not _fits(value, float) or value < 0):
            raise ValueError(f"{name} is {value!r}, but must be a number of 0 or more.")


def _is_left_out(name: str, value: Any) -> bool:
    return value is None and name in _MAY_BE_NONE


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return typing.get_args(hint)
    return (hint,)


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is list:
        (item,) = typing.get_args(kind) or (Any,)
        return isinstance(value, list | tuple) and all(item is Any or _fits(part, item) for part in value)
    return value is None if origin is types.NoneType else isinstance(value, origin)


def _name(kind: Any) -> str:
    names = {
        float: "a finite number", int: "a whole number", bool: "True or False", str: "a text", types.NoneType: "None",
        list: f"a list of {'texts' if typing.get_args(kind) == (str,) else 'numbers'}", dict: "a mapping",
    }  # fmt: skip
    name: str = names.get(typing.get_origin(kind) or kind, str(kind))
    return name
