"""How a figure that was measured again is compared with the stored one: what it may differ by, and why."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """
    A figure.

    Attributes:
        value (`float`):
            The figure.
        error (`float`):
            Its standard error; 0 where nothing is left to chance, or where it is not known.
    """

    value: float
    error: float = 0.0


@dataclass(frozen=True)
class Tolerance:
    """
    What the figures of one kind may differ by.

    Attributes:
        pattern (`str`):
            Names of the figures, with `*`. The first tolerance that fits a name counts.
        text (`str`):
            What it allows, for the table.
        bounds (`Callable[[Measured, Measured], tuple[float, float]]`):
            Given the stored figure and the new one: the least and the greatest value that the new one may have.
    """

    pattern: str
    text: str
    bounds: Callable[[Measured, Measured], tuple[float, float]]


def equal(pattern: str, relative: float = 1e-4) -> Tolerance:
    """
    The stored value up to rounding: for what is computed and not measured.

    >>> equal("*").bounds(Measured(2.0), Measured(2.0))
    (1.9998, 2.0002)
    """
    return Tolerance(
        pattern,
        "equal",
        lambda old, new: (old.value - relative * abs(old.value), old.value + relative * abs(old.value)),
    )


def within_factor(pattern: str, factor: float) -> Tolerance:
    """
    Up to so many times greater or smaller: for ratios of times on a machine that others use too.

    >>> within_factor("*", 2.0).bounds(Measured(3.0), Measured(4.0))
    (1.5, 6.0)
    """
    return Tolerance(pattern, f"factor {factor:g}", lambda old, new: (old.value / factor, old.value * factor))


def within_errors(pattern: str, num_errors: float = 4.0, floor: float = 0.0) -> Tolerance:
    """
    Up to so many standard errors of the difference, or up to `floor` if that is more.

    >>> within_errors("*", num_errors=2.0).bounds(Measured(1.0, 0.03), Measured(1.2, 0.04))
    (0.9, 1.1)
    """

    def bounds(old: Measured, new: Measured) -> tuple[float, float]:
        margin = max(num_errors * math.hypot(old.error, new.error), floor)
        return old.value - margin, old.value + margin

    text = f"{num_errors:g} standard errors" + (f", at least {floor:g}" if floor else "")
    return Tolerance(pattern, text, bounds)


def at_most(pattern: str, limit: float) -> Tolerance:
    """Below a limit, whatever is stored: for rounding errors, whose size means nothing."""
    return Tolerance(pattern, f"at most {limit:g}", lambda old, new: (-math.inf, limit))


class Row(NamedTuple):
    """
    What came of one kind of figures: that of them which is nearest to its bounds, or furthest outside.

    Attributes:
        figure (`str`):
            Its name.
        num_figures (`int`):
            How many there are of the kind.
        old, new (`Measured` or `None`):
            The stored figure and the new one. `None`: there is none.
        allowed (`str`):
            What it may differ by.
        holds (`bool`):
            Whether all figures of the kind lie inside.
    """

    figure: str
    num_figures: int
    old: Measured | None
    new: Measured | None
    allowed: str
    holds: bool


def compare(stored: Mapping[str, Measured], new: Mapping[str, Measured], tolerances: Sequence[Tolerance]) -> list[Row]:
    """
    Compares the new figures with the stored ones of the same name, one row for each tolerance.

    A figure that is not stored, or that no tolerance is for, is a row that does not hold. So is a tolerance that no new
    figure is for: a benchmark that measures nothing proves nothing.

    Args:
        stored, new (`Mapping[str, Measured]`):
            Figures by name. Stored ones that were not measured again do not matter.
        tolerances (`Sequence[Tolerance]`):
            What they may differ by.
    """
    names: dict[int, list[str]] = {number: [] for number in range(len(tolerances))}
    rows = []
    for name, measured in new.items():
        fitting = [number for number, tolerance in enumerate(tolerances) if fnmatchcase(name, tolerance.pattern)]
        if name not in stored or not fitting:
            reason = "not stored" if name not in stored else "no tolerance"
            rows.append(Row(name, 1, stored.get(name), measured, reason, holds=False))
        else:
            names[fitting[0]].append(name)
    for number, tolerance in enumerate(tolerances):
        if names[number]:
            worst = max(names[number], key=lambda name: _excess(stored[name], new[name], tolerance))
            holds = _excess(stored[worst], new[worst], tolerance) <= 1.0
            rows.append(Row(worst, len(names[number]), stored[worst], new[worst], tolerance.text, holds))
        else:
            rows.append(Row(tolerance.pattern, 0, None, None, "not measured", holds=False))
    return rows


def _excess(old: Measured, new: Measured, tolerance: Tolerance) -> float:
    """Returns how far the new figure is from the middle of what is allowed: 1 at the bounds, more outside."""
    least, greatest = tolerance.bounds(old, new)
    if not least <= new.value <= greatest:  # NaN too
        return math.inf if math.isnan(new.value) else 1.0 + abs(new.value - min(max(new.value, least), greatest))
    if math.isinf(least):
        return new.value / greatest
    half = (greatest - least) / 2
    return abs(new.value - (least + greatest) / 2) / half if half else 0.0


def flatten(record: Any, keys: Sequence[str] = (), prefix: str = "") -> dict[str, Measured]:
    """
    Returns the numbers of a record by their paths. Texts and `None` are left out.

    Args:
        record:
            What was read from JSON.
        keys (`Sequence[str]`, *optional*):
            Fields by which the members of a list of records are named; those of other lists are named by number.

    >>> flatten({"rows": [{"p": 0.5, "waste": 1.2}]}, keys=["p"])
    {'rows/0.5/waste': Measured(value=1.2, error=0.0)}
    """
    if isinstance(record, bool | int | float):
        return {prefix: Measured(float(record))}
    figures: dict[str, Measured] = {}
    if isinstance(record, Mapping):
        members = {name: value for name, value in record.items() if name not in keys}
    elif isinstance(record, list):
        members = {}
        for number, value in enumerate(record):
            named = [str(value[key]) for key in keys if key in value] if isinstance(value, Mapping) else []
            members[", ".join(named) or str(number)] = value
    else:
        members = {}
    for name, value in members.items():
        figures |= flatten(value, keys, f"{prefix}/{name}" if prefix else str(name))
    return figures


def median(values: Sequence[float]) -> Measured:
    """
    The median, and its standard error for values that are about normal: 1.25 standard deviations over the root of n.

    >>> value, error = median([1.0, 2.0, 4.0])
    >>> value, round(error, 3)
    (2.0, 1.105)
    """
    if len(values) < 2:
        return Measured(values[0])
    return Measured(
        statistics.median(values), math.sqrt(math.pi / 2) * statistics.stdev(values) / math.sqrt(len(values))
    )
