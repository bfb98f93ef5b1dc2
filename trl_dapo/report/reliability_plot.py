"""Draws how far the predictions of selective rollout can be trusted: predicted against found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from trl_dapo.atomic_write import atomic_write

from .curves import new_figure


RELIABILITY_FILE = "reliability.png"


def plot_reliability(table: Sequence[Mapping[str, float]], path: str | Path) -> Path | None:
    """
    Draws the share of informative groups that was found against the predicted probability. On the diagonal they agree.

    Args:
        table (`Sequence[Mapping[str, float]]`):
            [`Reliability.table`] of the trainer's `dynamic_sampler.source.selection.reliability`.
        path (`str` or `Path`):
            The file of the picture. Its suffix is the format.

    Returns:
        `Path`, *optional*: The path. `None`: matplotlib is not installed (a warning is logged).
    """
    path = Path(path)
    figure = new_figure(path, 4.25, 4.25)
    if figure is None:
        return None
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    total = sum(row["num_groups"] for row in table)
    axes.plot([row["predicted"] for row in table], [row["found"] for row in table], "-", color="C0", linewidth=1)
    # A larger dot: more groups.
    sizes = [10 + 190 * row["num_groups"] / total for row in table]
    axes.scatter([row["predicted"] for row in table], [row["found"] for row in table], s=sizes, color="C0")
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability to be informative", ylabel="share found informative"
    )
    axes.grid(alpha=0.3)
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=110, format=path.suffix[1:] or "png"))
    return path
