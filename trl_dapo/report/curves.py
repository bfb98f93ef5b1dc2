"""Draws the training curves of a run: the metrics that the paper's authors watch, from what the trainer logged."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_dapo.atomic_write import atomic_write


logger = logging.getLogger(__name__)

# The panels: title, and the label of each metric. `DAPOTrainer` and `GRPOTrainer` log the sampled accuracy under different
# names. A metric that a run did not log is left out.
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
    (
        "prompts by predicted pass rate",
        {"dapo/selection/frac_solved": "above 0.9", "dapo/selection/frac_unsolved": "below 0.1"},
    ),
    (
        "selective rollout",
        {
            "dapo/selection/completions_of_blind": "completions, over blind sampling",
            "dapo/selection/rare_of_blind": "rare successes, over blind sampling",
            "dapo/selection/calibration_error": "calibration error",
        },
    ),
)
# Drawn only if a run logged something of them.
_OPTIONAL = ("prompts by predicted pass rate", "selective rollout")
# Metrics that only a `DAPOTrainer` logs, and the less exact metrics of TRL, which are drawn only without the first ones.
_BETTER = {
    "dapo/entropy": ("entropy",),
    "dapo/sampled_accuracy": ("rewards/accuracy_reward/mean",),  # the filter biases the accuracy of the trained batch
    "dapo/length/correct": ("completions/mean_length",),
    "dapo/acceptance_rate": ("frac_reward_zero_std",),
    "dapo/clip_high/frac_of_positive": ("clip_ratio/high_mean", "clip_ratio/low_mean"),
}


def plot_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | Path,
    num_columns: int = 4,
) -> Path | None:
    """
    Draws the training curves of one or more runs into one picture. Without matplotlib it logs a warning and draws nothing.

    Args:
        histories (`Mapping[str, Sequence[Mapping[str, Any]]]`):
            `trainer.state.log_history` of each run, by the name of the run.
        path (`str` or `Path`):
            The file of the picture. Its suffix is the format: `.png`, `.svg`, `.pdf`.
        num_columns (`int`, *optional*, defaults to 4):
            Panels side by side: 4 for a slide, 2 for a page of text.

    Returns:
        `Path`, *optional*: The path. `None`: matplotlib is not installed.
    """
    path = Path(path)
    panels = [
        (title, metrics)
        for title, metrics in _PANELS
        if title not in _OPTIONAL or any(_logged(metrics, history) for history in histories.values())
    ]
    num_rows = -(-len(panels) // num_columns)
    figure = new_figure(path, 4.25 * num_columns, (3.5 if num_columns > 2 else 2.8) * num_rows)
    if figure is None:
        return None
    colors = [f"C{number}" for number in range(10)]
    for axes, (title, metrics) in zip(
        figure.subplots(num_rows, num_columns, squeeze=False).flat, panels, strict=False
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
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=110, format=path.suffix[1:] or "png"))
    return path


def new_figure(path: Path, width: float, height: float) -> Any | None:
    """
    Returns an empty figure. Without matplotlib it logs a warning and returns `None`.

    Args:
        path (`Path`):
            The file of the picture, for the warning.
        width, height (`float`):
            In inches.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning(
            f"{path} was not drawn because matplotlib is not installed. Install it (pip install 'trl-dapo[curves]'), then "
            "draw the curves with trl_dapo.report.curves.plot_curves; `trl-dapo push` draws them too."
        )
        return None
    # Not pyplot, which chooses a backend for the whole process.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _logged(metrics: Mapping[str, str], history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns those metrics of a panel that are drawn for a run."""
    logged = {
        metric: label for metric, label in metrics.items() if any(entry.get(metric) is not None for entry in history)
    }
    for better, others in _BETTER.items():
        if better in logged:
            for metric in others:
                logged.pop(metric, None)
    return logged
