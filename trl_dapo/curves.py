"""The picture of a run: what the paper's authors steer by, from the metrics that the trainer logged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


# One panel each: its title, and the metrics in it. `DAPOTrainer` and `GRPOTrainer` log the sampled accuracy under
# different names; a metric that a run did not log is left out.
_PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "accuracy over all sampled completions",
        {
            "dapo/sampled_accuracy": "",
            "rewards/accuracy_reward/mean": "",
            "eval_rewards/accuracy_reward/mean": "held out",
        },
    ),
    ("entropy (nats per token)", {"entropy": ""}),
    ("length (tokens)", {"completions/mean_length": "mean", "completions/mean_terminated_length": "ended by itself"}),
    (
        "groups sampled",
        {
            "dapo/acceptance_rate": "informative",
            "dapo/frac_all_correct": "all correct",
            "dapo/frac_all_wrong": "all wrong",
            "frac_reward_zero_std": "no spread",
        },
    ),
    ("clipped tokens", {"clip_ratio/high_mean": "from above", "clip_ratio/low_mean": "from below"}),
    ("trained tokens / generated tokens", {"dapo/rollout_efficiency": ""}),
)


def plot_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> Path:
    """
    Draws the training curves of one or more runs into one picture.

    Args:
        histories (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` of each run, by its name.
        path (`str` or `Path`):
            Where to write the PNG.

    Returns:
        `Path`: the path.

    Raises:
        `ImportError`: when matplotlib is not installed (`pip install trl-dapo[curves]`).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing curves needs matplotlib: pip install trl-dapo[curves]") from error

    # Not pyplot: it would choose a backend for the whole process of the user.
    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    colors = [f"C{number}" for number in range(10)]
    for axes, (title, metrics) in zip(figure.subplots(2, 3).flat, _PANELS, strict=True):
        for run_number, (run, history) in enumerate(histories.items()):
            for metric_number, (metric, label) in enumerate(_logged(metrics, history).items()):
                points = [(entry["step"], entry[metric]) for entry in history if entry.get(metric) is not None]
                color = colors[(run_number + len(histories) * metric_number) % len(colors)]
                style = "o--" if metric.startswith("eval_") else "-"
                name = ": ".join(part for part in (run if len(histories) > 1 else "", label) if part)
                axes.plot(
                    *zip(*points, strict=True), style, color=color, label=name or None, linewidth=1.5, markersize=5
                )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return Path(path)


def _logged(metrics: Mapping[str, str], history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    logged = {
        metric: label for metric, label in metrics.items() if any(entry.get(metric) is not None for entry in history)
    }
    if "dapo/sampled_accuracy" in logged:
        # Of such a run TRL's reward mean is that of the filtered batch, which is no learning curve.
        logged.pop("rewards/accuracy_reward/mean", None)
    if "dapo/acceptance_rate" in logged:
        logged.pop("frac_reward_zero_std", None)
    return logged
