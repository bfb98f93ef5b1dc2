"""A search in the record of a run."""

import math
from dataclasses import dataclass


ORDERS = ("oldest first", "newest first", "longest first")


@dataclass(frozen=True)
class Query:
    """
    Conditions on groups and completions. `None` or empty: no condition.

    The first four are conditions on a group. The others are conditions on a completion, and at least one completion of the group
    must meet them all.

    Attributes:
        first_step, last_step (`float`, *optional*):
            Range of steps, both ends included.
        verdicts, fates (`frozenset[str]`):
            Names of `shard_reader.VERDICTS` and `FATES`.
        reward (`str`):
            Column of `lowest` and `highest`: `reward`, `advantage` or `rewards/<name>`.
        lowest, highest (`float`, *optional*):
            Range of that column, both ends included.
        shortest, longest (`float`, *optional*):
            Range of the completion's tokens, both ends included.
        is_truncated (`bool`, *optional*):
            Whether the completion reached the length limit.
        text (`str`):
            Text in the prompt, the solution or the completion; upper and lower case are the same.
        order (`str`):
            One of `ORDERS`.
    """

    first_step: float | None = None
    last_step: float | None = None
    verdicts: frozenset[str] = frozenset()
    fates: frozenset[str] = frozenset()
    reward: str = "reward"
    lowest: float | None = None
    highest: float | None = None
    shortest: float | None = None
    longest: float | None = None
    is_truncated: bool | None = None
    text: str = ""
    order: str = ORDERS[0]


def parse_range(name: str, text: str) -> tuple[float | None, float | None]:
    """
    Returns the bounds of a range that a user typed; `None` is no bound.

    Args:
        name (`str`):
            Name of the field, for the message.
        text (`str`):
            `low..high`, `low..`, `..high`, one number, or nothing.

    Raises:
        `ValueError`: when the text is not a range.

    >>> parse_range("steps", "10..50"), parse_range("reward", "..-0.5"), parse_range("steps", "7")
    ((10.0, 50.0), (None, -0.5), (7.0, 7.0))
    """
    text = "".join(text.split())
    if not text:
        return None, None
    low, dots, high = text.partition("..")
    try:
        bounds = [float(bound) if bound else None for bound in (low, high if dots else low)]
    except ValueError:
        bounds = [math.nan]
    if any(bound is not None and not math.isfinite(bound) for bound in bounds):
        raise ValueError(f"{name} is {text[:40]!r}, but must be a range like 10..50, 10.. or ..50, or one number.")
    if bounds[0] is not None and bounds[1] is not None and bounds[0] > bounds[1]:
        raise ValueError(f"{name} is {text[:40]!r}, but its first number must not be above the second: {high}..{low}.")
    return bounds[0], bounds[1]
