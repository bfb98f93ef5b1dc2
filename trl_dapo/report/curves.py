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
    ("entropy (nats per token)", {"dapo/entropy": "", "entropy": ""}),
    (
        "length (tokens)",
        {"dapo/length/correct": "correct", "dapo/length/wrong": "wrong", "completions/mean_length": "mean"},
    ),
    (
        "groups sampled",
        {
            "dapo/acceptance_rate": "informative",
            "dapo/frac_all_correct": "all correct",
            "dapo/frac_all_wrong": "all wrong",
            "frac_reward_zero_std": "no spread",
        },
    ),
    (
        "clipped tokens",
        {
            "dapo/clip_high/frac_of_positive": "from above, of A > 0",
            "dapo/clip_low/frac_of_negative": "from below, of A < 0",
            "clip_ratio/high_mean": "from above, of all",
            "clip_ratio/low_mean": "from below, of all",
        },
    ),
    (
        "probability of clipped tokens",
        {
            "dapo/clip_high/token_prob_max": "from above, max",
            "dapo/clip_high/token_prob_mean": "from above, mean",
            "dapo/clip_low/token_prob_mean": "from below, mean",
        },
    ),
    (
        "overlong completions",
        {
            "dapo/overlong/frac": "share of all sampled",
            "dapo/length/frac_long_given_negative": "share of those with A < 0",
            "completions/clipped_ratio": "truncated",
        },
    ),
    ("trained tokens / generated tokens", {"dapo/rollout_efficiency": ""}),
)
# What a `DAPOTrainer` logs, and the metric of TRL's beside it that says less: drawn only where the first is missing.
_BETTER = {
    "dapo/entropy": ("entropy",),
    "dapo/sampled_accuracy": ("rewards/accuracy_reward/mean",),  # of a filtered batch it is no learning curve
    "dapo/length/correct": ("completions/mean_length",),
    "dapo/acceptance_rate": ("frac_reward_zero_std",),
    "dapo/clip_high/frac_of_positive": ("clip_ratio/high_mean", "clip_ratio/low_mean"),
}


def plot_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | Path,
    format: str | None = None,
    num_columns: int = 4,
) -> Path:
    """
    Draws the training curves of one or more runs into one picture.

    Args:
        histories (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` of each run, by its name.
        path (`str` or `Path`):
            Where to write the picture.
        format (`str`, *optional*):
            `"png"` or another format of matplotlib's. `None`: by the ending of the path.
        num_columns (`int`, *optional*, defaults to 4):
            Panels beside each other: 4 for a slide, 2 for a page of text.

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
    num_rows = -(-len(_PANELS) // num_columns)
    figure = Figure(figsize=(4.25 * num_columns, (3.5 if num_columns > 2 else 2.8) * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    colors = [f"C{number}" for number in range(10)]
    for axes, (title, metrics) in zip(
        figure.subplots(num_rows, num_columns, squeeze=False).flat, _PANELS, strict=False
    ):
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
    figure.savefig(path, dpi=110, format=format)
    return Path(path)


def _logged(metrics: Mapping[str, str], history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    logged = {
        metric: label for metric, label in metrics.items() if any(entry.get(metric) is not None for entry in history)
    }
    for better, others in _BETTER.items():
        if better in logged:
            for metric in others:
                logged.pop(metric, None)
    return logged
