"""What reward functions log, in values that checkpoints and tables can hold."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa


logger = logging.getLogger(__name__)


class LoggedValues:
    """Makes storable what the reward functions of a run log. What cannot be used is left out, with one warning each."""

    def __init__(self) -> None:
        self._warned: set[tuple[str, str]] = set()

    def clean(self, columns: dict[str, list[Any]], metrics: dict[str, list[Any]], num_completions: int) -> None:
        """
        Makes logged values storable, in place.

        Args:
            columns (`dict[str, list[Any]]`):
                Values of `log_extra` by column. A column without one value for each completion is left out.
            metrics (`dict[str, list[Any]]`):
                Values of `log_metric` by name. One that is not a finite number is left out.
            num_completions (`int`):
                Completions that were scored.
        """
        for column, values in list(columns.items()):
            if len(values) == num_completions:
                values[:] = [storable(value) for value in values]
                continue
            self._warn(
                "log_extra",
                column,
                f"log_extra got {len(values)} values for the column {column!r}, but there are {num_completions} completions: "
                "the column is left out. Give one value for each completion, and each reward function its own columns.",
            )
            del columns[column]
        for name, values in list(metrics.items()):
            numbers = [_number(value) for value in values]
            for value, number in zip(values, numbers, strict=True):
                if number is None:
                    self._warn(
                        "log_metric",
                        name,
                        f"log_metric got {repr(value)[:80]} for {name!r}, but must get a finite number: the value is left out.",
                    )
            values[:] = [number for number in numbers if number is not None]
            if not values:
                del metrics[name]

    def _warn(self, function: str, name: str, message: str) -> None:
        if (function, name) not in self._warned:
            self._warned.add((function, name))
            logger.warning(message)


def storable(value: Any) -> Any:
    """
    Returns a value as JSON has it: numbers and arrays of numpy and torch as Python's, anything unknown as text.

    >>> storable({1: (2.5, {3})})
    {'1': [2.5, '{3}']}
    >>> import numpy
    >>> storable(numpy.float32(0.5)), storable(numpy.arange(3))
    (0.5, [0, 1, 2])
    """
    if isinstance(value, str):
        # UTF-8 cannot hold lone surrogates, which JSON can bring into a completion.
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int | float):
        # Subclasses, such as numbers of numpy and members of an enumeration, as what they are.
        return value if value is None else next(kind(value) for kind in (bool, int, float) if isinstance(value, kind))
    if isinstance(value, Mapping):
        entries = {storable(str(key)): storable(part) for key, part in value.items()}
        # A state file marks its tensors like this.
        return json.dumps(entries) if "__tensor__" in entries else entries
    if isinstance(value, list | tuple):
        return [storable(part) for part in value]
    if hasattr(value, "tolist"):
        plain = value.tolist()
        if plain is None or isinstance(plain, str | bool | int | float | list):
            return storable(plain)
    try:
        return storable(str(value))
    except Exception:  # of the object's own code
        return f"<{type(value).__name__}>"


def of_one_type(values: Sequence[Any]) -> list[Any]:
    """
    Returns the values of a column, as text where Parquet could not hold them side by side.

    Args:
        values (`Sequence[Any]`):
            Values as `storable` returns them.

    Example:

    >>> of_one_type([1, 2.5, None]), of_one_type([1, "a", None]), of_one_type([{}])
    ([1, 2.5, None], ['1', 'a', None], ['{}'])
    """
    try:
        if _can_be_written(pa.array(values, from_pandas=True).type):
            return list(values)
    except (pa.ArrowException, OverflowError):
        pass
    return [
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values
    ]


def _can_be_written(kind: pa.DataType) -> bool:
    """Returns whether Parquet has the type: not a mapping without keys, at any depth."""
    parts = [kind.field(number).type for number in range(kind.num_fields)]
    return (not pa.types.is_struct(kind) or bool(parts)) and all(map(_can_be_written, parts))


def _number(value: Any) -> float | None:
    try:
        number = None if isinstance(value, str) else float(value)
    except Exception:  # of the object's own code, too
        return None
    return number if number is None or not math.isinf(number) else None
