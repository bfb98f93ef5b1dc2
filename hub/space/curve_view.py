"""The curves of a run as SVG in HTML, drawn without a plotting library."""

import html
import math
from collections.abc import Sequence
from typing import Any

from rollout_index import Batch


_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 8, 8, 18
_MAX_POINTS = 400  # of one line
_MAX_BARS = 200
GROUPS_SAMPLED = "Groups sampled, by what became of them"
# One picture each: its title, and its metrics with their labels. Metrics that a run did not log are left out. If there are two
# names for a metric, the first one that was logged is drawn.
PANELS: tuple[tuple[str, tuple[tuple[tuple[str, ...], str], ...]], ...] = (
    (
        "Accuracy",
        (
            (("dapo/sampled_accuracy", "rewards/accuracy_reward/mean"), "all sampled"),
            (("dapo/trained_accuracy",), "trained"),
            (("eval_rewards/accuracy_reward/mean",), "held out"),
        ),
    ),
    (
        GROUPS_SAMPLED,
        (
            (("dapo/acceptance_rate",), "informative"),
            (("dapo/frac_all_correct",), "all correct"),
            (("dapo/frac_all_wrong",), "all wrong"),
        ),
    ),
    ("Entropy (nats per token)", ((("dapo/entropy", "entropy"), "entropy"),)),
    (
        "Length (tokens)",
        (
            (("dapo/length/correct",), "correct"),
            (("dapo/length/wrong",), "wrong"),
            (("completions/mean_length",), "mean"),
        ),
    ),
    (
        "Reward",
        ((("reward",), "trained batch"), (("dapo/overlong/penalty_mean",), "overlong penalty")),
    ),
    (
        "Clipped tokens",
        (
            (("dapo/clip_high/frac_of_positive", "clip_ratio/high_mean"), "from above"),
            (("dapo/clip_low/frac_of_negative", "clip_ratio/low_mean"), "from below"),
        ),
    ),
    (
        "Probability of clipped tokens",
        (
            (("dapo/clip_high/token_prob_mean",), "above, mean"),
            (("dapo/clip_high/token_prob_max",), "above, max"),
            (("dapo/clip_low/token_prob_mean",), "below, mean"),
        ),
    ),
    (
        "Overlong completions",
        (
            (("dapo/overlong/frac",), "overlong"),
            (("completions/clipped_ratio",), "truncated"),
            (("dapo/length/frac_long_given_negative",), "overlong where A is negative"),
        ),
    ),
    ("Trained tokens / generated tokens", ((("dapo/rollout_efficiency",), "efficiency"),)),
    (
        "Prompts by predicted pass rate",
        (
            (("dapo/selection/frac_solved",), "above 0.9"),
            (("dapo/selection/frac_unsolved",), "below 0.1"),
        ),
    ),
    (
        "Selective rollout",
        (
            (("dapo/selection/completions_of_blind",), "completions, over blind"),
            (("dapo/selection/rare_of_blind",), "rare successes, over blind"),
            (("dapo/selection/calibration_error",), "calibration error"),
        ),
    ),
    ("Groups without spread", ((("frac_reward_zero_std",), "of the batch"),)),
    ("Loss", ((("loss",), "loss"),)),
    ("Gradient norm", ((("grad_norm",), "norm"),)),
)


def curves_html(history: Sequence[dict[str, Any]], batches: Sequence[Batch]) -> str:
    """
    Returns the curves of a run, and the fates of the groups of each generation batch.

    Args:
        history (`Sequence[dict]`):
            The log of the run; each entry has a `step`.
        batches (`Sequence[Batch]`):
            The batches of the record.
    """
    figures = [_bars(batches)] if batches else []
    for title, metrics in PANELS:
        lines = [(label, points) for names, label in metrics if (points := _points(history, names))]
        # The record has more details of the groups than the log.
        if lines and not (batches and title == GROUPS_SAMPLED):
            figures.append(_figure(title, lines))
    if not figures:
        return '<div class="empty">The run has logged nothing yet.</div>'
    return f'<div class="figures">{"".join(figures)}</div>'


def tiles_html(results: dict[str, float], num_groups: int, num_completions: int, problems: Sequence[str]) -> str:
    """
    Returns the results of a run in one line.

    Args:
        results (`dict[str, float]`):
            The numbers of `results.json`.
        num_groups, num_completions (`int`):
            Size of the record.
        problems (`Sequence[str]`):
            Files that could not be read.
    """
    tiles = [(f"{num_groups:,}", "groups"), (f"{num_completions:,}", "completions")]
    for name, value in list(results.items())[:12]:
        shown = f"{value:.1%}" if "accuracy" in name and 0 <= value <= 1 else f"{value:.4g}"
        tiles.append((shown, name[:60].replace("_", " ")))
    cells = "".join(f"<div class=tile><b>{value}</b><span>{html.escape(name)}</span></div>" for value, name in tiles)
    note = ""
    if problems:
        first = html.escape("; ".join(problems[:3]))
        note = f'<div class="problem">{len(problems)} files could not be read: {first}</div>'
    return f'<div class="tiles">{cells}</div>{note}'


def _points(history: Sequence[dict[str, Any]], names: Sequence[str]) -> list[tuple[int, float]]:
    for name in names:
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            # Every n-th point and the last one: a picture has too few pixels for all.
            stride = math.ceil(len(points) / _MAX_POINTS)
            return points[::stride] + (points[-1:] if (len(points) - 1) % stride else [])
    return []


def _figure(title: str, lines: Sequence[tuple[str, list[tuple[int, float]]]]) -> str:
    steps = [step for _, points in lines for step, _ in points]
    values = [value for _, points in lines for _, value in points]
    low, high = min(0.0, *values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        high = low + max(1.0, abs(low))
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step: float) -> float:
        return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(first, last, low, high, y)]
    for number, (label, points) in enumerate(lines):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<polyline class="l{number}" points="{path}"/>')
        dots = points if len(points) <= 60 else []
        parts += [
            f'<circle class="l{number}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.2">'
            f"<title>{label}, step {step}: {value:.4g}</title></circle>"
            for step, value in dots
        ]
    legend = "".join(
        f'<span class="l{number}">{label} <b>{points[-1][1]:.3g}</b></span>'
        for number, (label, points) in enumerate(lines)
    )
    return _framed(title, "".join(parts), legend)


def _bars(batches: Sequence[Batch]) -> str:
    """Draws the fates of the groups sampled for each batch, as shares."""
    stride = math.ceil(len(batches) / _MAX_BARS)
    shown = [batch for batch in batches[::stride] if sum(batch.counts.values())]
    width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(shown))
    height = _HEIGHT - _TOP - _BOTTOM
    parts = (
        [_axes(shown[0].step, shown[-1].step, 0.0, 1.0, lambda value: _TOP + (1 - value) * height)] if shown else []
    )
    totals: dict[str, int] = {}
    for number, batch in enumerate(shown):
        below, total = float(_TOP), sum(batch.counts.values())
        for name, count in batch.counts.items():
            totals[name] = totals.get(name, 0) + count
            if count:
                part = count / total * height
                parts.append(
                    f'<rect class="{name}" x="{_LEFT + number * width:.2f}" y="{below:.2f}" '
                    f'width="{max(width - 0.6, 0.5):.2f}" height="{part:.2f}">'
                    f"<title>step {batch.step}: {count} of {total} {name.replace('_', ' ')}</title></rect>"
                )
                below += part
    legend = "".join(
        f'<span class="{name}">{name.replace("_", " ")} <b>{count / sum(totals.values()):.0%}</b></span>'
        for name, count in totals.items()
        if count
    )
    return _framed(GROUPS_SAMPLED, "".join(parts), legend)


def _axes(first: float, last: float, low: float, high: float, y: Any) -> str:
    parts = []
    for value in _ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text class="tick" x="{_LEFT - 4}" y="{y(value) + 3:.1f}" text-anchor="end">{value:.4g}</text>')
    bottom = _HEIGHT - 5
    parts.append(f'<text class="tick" x="{_LEFT}" y="{bottom}">{first:g}</text>')
    parts.append(f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{bottom}" text-anchor="end">step {last:g}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Returns three or four round values in a range.

    >>> _ticks(0.0, 0.9)
    [0.0, 0.25, 0.5, 0.75]
    """
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    size = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / size - 1e-9)
    return [number * size for number in range(first, math.floor(high / size + 1e-9) + 1)]


def _framed(title: str, drawing: str, legend: str) -> str:
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{title}">{drawing}</svg><div class="legend">{legend}</div></figure>'
    )
