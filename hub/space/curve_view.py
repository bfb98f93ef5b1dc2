"""The curves of a run as SVG in HTML, drawn without a plotting library."""

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


def curves_html(
    history: Sequence[dict[str, Any]],
    batches: Sequence[Batch] = (),
    passes: Sequence[Batch] = (),
    reliability: Sequence[dict[str, float]] = (),
    other: Sequence[dict[str, Any]] = (),
) -> str:
    """
    Returns the curves of a run, or those of two runs over each other.

    Args:
        history (`Sequence[dict]`):
            The log of the run; each entry has a `step`.
        batches (`Sequence[Batch]`, *optional*):
            The batches of the record, by the fates of their groups.
        passes (`Sequence[Batch]`, *optional*):
            The passes over the data, by the pass rates of their groups. A single pass is not drawn.
        reliability (`Sequence[dict]`, *optional*):
            What selective rollout `predicted` and `found`.
        other (`Sequence[dict]`, *optional*):
            The log of another run, drawn in broken lines.
    """
    figures = [_bars(GROUPS_SAMPLED, batches)] if batches else []
    for title, metrics in PANELS:
        lines = [
            (f"l{number}{kind}", label, points)
            for number, (names, label) in enumerate(metrics)
            for kind, log in (("", history), (" other", other))
            if (points := _points(log, names))
        ]
        # The record has more details of the groups than the log.
        if lines and not (batches and title == GROUPS_SAMPLED):
            figures.append(_figure(title, lines))
    if len(passes) > 1:
        figures.append(_bars("Recorded groups by pass rate, of each pass over the data", passes, "pass"))
    if reliability:
        figures.append(_reliability(reliability))
    if not figures:
        return '<div class="empty">The run has logged nothing yet.</div>'
    return f'<div class="figures">{"".join(figures)}</div>'


def _points(history: Sequence[dict[str, Any]], names: Sequence[str]) -> list[tuple[int, float]]:
    for name in names:
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            # Every n-th point and the last one: a picture has too few pixels for all.
            stride = math.ceil(len(points) / _MAX_POINTS)
            return points[::stride] + (points[-1:] if (len(points) - 1) % stride else [])
    return []


def _figure(title: str, lines: Sequence[tuple[str, str, list[tuple[int, float]]]]) -> str:
    steps = [step for _, _, points in lines for step, _ in points]
    values = [value for _, _, points in lines for _, value in points]
    low, high = min(0.0, *values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        high = low + max(1.0, abs(low))
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step: float) -> float:
        return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(f"{first:g}", f"step {last:g}", low, high, y)]
    for kind, label, points in lines:
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        dots = points if len(points) <= 60 else []
        parts += [
            f'<circle class="{kind}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.2">'
            f"<title>{label}, step {step}: {value:.4g}</title></circle>"
            for step, value in dots
        ]
    legend, last_label = "", ""
    for kind, label, points in lines:
        # The second run's line follows the first one's.
        legend += f'<span class="{kind}">{label + " " if label != last_label else ""}<b>{points[-1][1]:.3g}</b></span>'
        last_label = label
    return _framed(title, "".join(parts), legend)


def _reliability(table: Sequence[dict[str, float]]) -> str:
    """Draws the share of informative groups that was found against the predicted probability. A larger dot: more groups."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(predicted: float, found: float) -> tuple[float, float]:
        return _LEFT + predicted * width, _TOP + (1 - found) * height

    total = sum(row.get("num_groups", 0) for row in table) or 1
    (left, bottom), (right, top) = place(0, 0), place(1, 1)
    parts = [_axes("predicted 0", "1", 0.0, 1.0, lambda value: place(0, value)[1])]
    parts.append(f'<line class="grid" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>')
    for row in table:
        x, y = place(row["predicted"], row["found"])
        share = max(0.0, min(row.get("num_groups", 0) / total, 1.0))
        parts.append(
            f'<circle class="l0" cx="{x:.1f}" cy="{y:.1f}" r="{2.5 + 7 * math.sqrt(share):.1f}">'
            f"<title>predicted {row['predicted']:.2f}, found {row['found']:.2f}, {share:.0%} of the groups</title></circle>"
        )
    legend = (
        '<span class="l0">share of informative groups that was found; on the diagonal, predictions are right</span>'
    )
    return _framed("Reliability of the predictions", "".join(parts), legend)


def _bars(title: str, batches: Sequence[Batch], unit: str = "step") -> str:
    """Draws shares of groups: of each batch by their fates, or of each pass by their pass rates."""
    stride = math.ceil(len(batches) / _MAX_BARS)
    shown = [batch for batch in batches[::stride] if sum(batch.counts.values())]
    width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(shown))
    height = _HEIGHT - _TOP - _BOTTOM
    parts = []
    if shown:
        ends = f"{shown[0].step}", f"{unit} {shown[-1].step}"
        parts.append(_axes(*ends, 0.0, 1.0, lambda value: _TOP + (1 - value) * height))
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
                    f"<title>{unit} {batch.step}: {count} of {total} {name.replace('_', ' ')}</title></rect>"
                )
                below += part
    legend = "".join(
        f'<span class="{name}">{name.replace("_", " ")} <b>{count / sum(totals.values()):.0%}</b></span>'
        for name, count in totals.items()
        if count
    )
    return _framed(title, "".join(parts), legend)


def _axes(first: str, last: str, low: float, high: float, y: Any) -> str:
    parts = []
    for value in _ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text class="tick" x="{_LEFT - 4}" y="{y(value) + 3:.1f}" text-anchor="end">{value:.4g}</text>')
    bottom = _HEIGHT - 5
    parts.append(f'<text class="tick" x="{_LEFT}" y="{bottom}">{first}</text>')
    parts.append(f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{bottom}" text-anchor="end">{last}</text>')
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
