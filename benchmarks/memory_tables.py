"""What memory.json says: how each figure went from the warm-up to the end."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


# Rollout steps that are not compared: caches fill, and the allocator learns the largest shapes.
FRAC_WARM_UP = 0.2


@dataclass(frozen=True)
class Growth:
    """
    How a figure went after the warm-up.

    Attributes:
        first, last (`float`):
            Median of the first and of the last quarter of the rollout steps.
        largest (`float`):
            Largest of all after the warm-up.
    """

    first: float
    last: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Growth":
        """Reads a series of rollout steps, of which the first fifth is warm-up."""
        kept = values[math.ceil(FRAC_WARM_UP * len(values)) :]
        quarter = max(1, len(kept) // 4)
        return cls(statistics.median(kept[:quarter]), statistics.median(kept[-quarter:]), max(kept))

    @property
    def relative(self) -> float:
        """Growth from the first quarter to the last, relative to the first."""
        return self.last / self.first - 1


# By the name in the record: what it is, and how many of it are one unit.
TRAINER_FIGURES = {
    "rss": ("resident, MiB", 1024),
    "malloc": ("given out by malloc, MiB", 1024),
    "python": ("Python's small blocks, millions", 10**6),
    "completions": ("completions sampled a rollout step", 1),
}
WORKER_FIGURES = {"rss": ("resident, MiB", 1024), "anon": ("allocated pages, MiB", 1024)}


def growths(series: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Growth]:
    """
    Returns the growth of each figure of the trainer, and of each worker that was there from the warm-up to the end.

    Returns:
        `dict`: by process (`"trainer"`, `"worker 0"`, ...) and name of the figure.
    """
    found = {}
    sampled = [entry["completions"] for entry in series]
    of_each = [{"completions": after - before} for before, after in itertools.pairwise(sampled)]
    trainer = [entry["trainer"] | completions for entry, completions in zip(series[1:], of_each, strict=True)]
    for figure, (_, unit) in TRAINER_FIGURES.items():
        found["trainer", figure] = Growth.of([entry[figure] / unit for entry in trainer])
    start = math.ceil(FRAC_WARM_UP * len(series))
    for number, pid in enumerate(sorted(series[-1]["workers"], key=int)):
        for figure, (_, unit) in WORKER_FIGURES.items():
            values = [entry["workers"][pid][figure] / unit for entry in series[start:] if pid in entry["workers"]]
            # The part that was there when the worker began counts as its warm-up.
            found[f"worker {number}", figure] = Growth.of([*values[:1] * math.ceil(len(values) / 4), *values])
    return found


def markdown(record: dict[str, Any]) -> str:
    """Returns the table of the arms that have been run."""
    lines = ["| run | process | | first quarter | last quarter | growth | largest |", "|---|---|---|---|---|---|---|"]
    for name, series in record["results"].items():
        for (process, figure), growth in growths(series).items():
            label, _ = (TRAINER_FIGURES if process == "trainer" else WORKER_FIGURES)[figure]
            first, last, largest = (
                f"{float(f'{value:.4g}'):,g}" for value in (growth.first, growth.last, growth.largest)
            )
            values = f"{first} | {last} | {growth.relative:+.1%} | {largest}"
            lines.append(f"| {name} | {process} | {label} | {values} |")
    return "\n".join(lines)
