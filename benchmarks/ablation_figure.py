"""The figure of `ablation.json`."""

import statistics
from pathlib import Path

from ablation_tables import LADDER, Record, seeds_of


PANELS = (
    ("step", "accuracy", "optimizer steps", "held-out avg@4"),
    ("tokens", "accuracy", "generated tokens", "held-out avg@4"),
    ("step", "entropy", "optimizer steps", "held-out entropy, nats a token"),
    ("step", "length_wrong", "optimizer steps", "length of wrong answers, tokens"),
)


def draw(record: Record, path: Path) -> None:
    """Draws the means over seeds of the ladder and of TRL's own DAPO, by steps and by tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = [arm for arm in (*LADDER, "TRL") if record["results"].get(arm)]
    seeds = seeds_of(record, arms)
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.5))
    for axis, (cost, name, x_label, y_label) in zip(axes.flat, PANELS, strict=True):
        for number, arm in enumerate(arms):
            curves = [record["results"][arm][seed]["curve"] for seed in seeds]
            points = list(zip(*curves, strict=True))
            x = [statistics.fmean(point[cost] for point in same) for same in points]
            y = [statistics.fmean(point[name] for point in same) for same in points]
            axis.plot(x, y, label=arm, color=f"C{number}", linestyle="--" if arm == "TRL" else "-", marker=".")
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.suptitle(f"The ladder of DAPO, mean of {len(seeds)} seeds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
