"""What somebody looks for in a record."""

import math
from dataclasses import dataclass


ORDERS = ("oldest first", "newest first", "longest first")


@dataclass(frozen=True)
class Query:
    """
    What to look for. `None` and empty: anything.

    The first four are of a group; the others of a completion, and one completion of the group has to meet them all.

    Attributes:
        first_step, last_step (`float`, *optional*):
            Steps, both included.
        verdicts, fates (`frozenset[str]`):
            Names of `shard_reader.VERDICTS` and `FATES`.
        reward (`str`):
            Column of `lowest` and `highest`: `reward`, `advantage` or `rewards/<name>`.
        lowest, highest (`float`, *optional*):
            Range of that column, both included.
        shortest, longest (`float`, *optional*):
            Tokens of the completion, both included.
        is_truncated (`bool`, *optional*):
            Whether it ran into the length limit.
        text (`str`):
            To be found in the prompt, the solution or the completion, in capitals or not.
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
    Returns the bounds that somebody typed, `None` for none.

    Args:
        name (`str`):
            What is limited, for the message.
        text (`str`):
            `low..high`, `low..`, `..high` or one number; empty: no bounds.

    Raises:
        `ValueError`: when it is something else.

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
    return bounds[0], bounds[1]
