"""Tables and figure of `ablation.json`: paired differences over seeds, with Student's 95 % intervals."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from measured import cost_to_reach

from trl_dapo.evaluation.k_metrics import student_quantile


LADDER = (
    "naive GRPO", "+ overlong filtering", "+ clip-higher", "+ soft overlong punishment", "+ token-level loss", "DAPO",
)  # fmt: skip
# The paper's Table 1: AIME 2024, avg@32.
PAPER = dict(zip(LADDER, (30, 36, 38, 41, 42, 50), strict=True))
LEFT_OUT = ("overlong filtering", "clip-higher", "soft overlong punishment", "token-level loss", "dynamic sampling")
RARE = "rare only, epsilon_high {}"
# Points above the warmed-up model, whose accuracy differs from seed to seed.
TARGET_GAINS = (0.04, 0.08, 0.12)

Run = dict[str, Any]
Record = dict[str, Any]


def left_out(part: str) -> str:
    """Returns the arm that has all parts but one. Without dynamic sampling it is a rung of the ladder."""
    return "+ token-level loss" if part == "dynamic sampling" else f"DAPO - {part}"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with the half width of its 95 % interval (Student), NaN for one seed."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """
        Returns the interval of some values.

        >>> Interval.of([1.0, 2.0, 3.0])
        Interval(mean=2.0, half=2.484...)
        """
        if len(values) < 2:
            return cls(statistics.fmean(values), math.nan)
        quantile = student_quantile(0.975, len(values) - 1)
        return cls(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values)))

    def text(self, scale: float = 100, digits: int = 1, signed: bool = False) -> str:
        """Returns mean and half width, in percent unless `scale` says otherwise."""
        sign = "+" if signed else ""
        return f"{scale * self.mean:{sign}.{digits}f} ± {scale * self.half:.{digits}f}"

    def verdict(self, claimed: int = 1) -> str:
        """Returns whether a difference has the claimed sign: "held" or "opposite" if the interval leaves 0 out."""
        if math.isnan(self.half) or abs(self.mean) <= self.half:
            return "not seen"
        return "held" if self.mean * claimed > 0 else "opposite"


def seeds_of(record: Record, arms: Sequence[str]) -> list[str]:
    """Returns the seeds that all of some arms have."""
    results = record["results"]
    common = set.intersection(*({*results.get(arm, {})} for arm in arms))
    return sorted(common, key=int)


def at_step(run: Run, step: int, name: str) -> float:
    """Returns a figure of the curve at an evaluation."""
    return next(point[name] for point in run["curve"] if point["step"] == step)


def at_cost(run: Run, cost: str, amount: float, name: str = "accuracy") -> float:
    """Returns a figure of the curve when so much was spent, interpolated; the last one if the run never spent so much."""
    before = run["curve"][0]
    for point in run["curve"]:
        if point[cost] >= amount:
            share = (amount - before[cost]) / (point[cost] - before[cost]) if point[cost] > before[cost] else 1.0
            return before[name] + share * (point[name] - before[name])
        before = point
    return before[name]


def last_step(record: Record, arm: str = "DAPO") -> int:
    """Returns the step with which the runs of an arm end."""
    return next(iter(record["results"][arm].values()))["curve"][-1]["step"]


class Comparison:
    """Figures of arms over the seeds that they share."""

    def __init__(self, record: Record):
        self.results: dict[str, dict[str, Run]] = record["results"]
        self.record = record
        self.step = last_step(record)

    def values(self, arm: str, figure: str | Callable[[Run], float], seeds: Sequence[str]) -> list[float]:
        """Returns a figure of each seed: by its name at the last common step, or what a function makes of the run."""
        runs = [self.results[arm][seed] for seed in seeds]
        if callable(figure):
            return [figure(run) for run in runs]
        step = last_step(self.record, arm) if arm.startswith("rare") else self.step
        return [at_step(run, step, figure) for run in runs]

    def mean(self, arm: str, figure: str | Callable[[Run], float]) -> Interval:
        """Returns a figure of an arm."""
        return Interval.of(self.values(arm, figure, seeds_of(self.record, [arm])))

    def difference(self, arm: str, base: str, figure: str | Callable[[Run], float]) -> Interval:
        """Returns the paired difference of two arms in a figure."""
        seeds = seeds_of(self.record, [arm, base])
        pairs = zip(self.values(arm, figure, seeds), self.values(base, figure, seeds), strict=True)
        return Interval.of([mine - its for mine, its in pairs])


def mean_of_log(name: str) -> Callable[[Run], float]:
    """Returns the function that takes the mean of a logged figure over a run."""
    return lambda run: statistics.fmean(run["log"][name])


def largest_drop(run: Run) -> float:
    """Returns by how much accuracy fell from its best earlier evaluation, at the worst."""
    best, drop = 0.0, 0.0
    for point in run["curve"]:
        best = max(best, point["accuracy"])
        drop = max(drop, best - point["accuracy"])
    return drop


def growth(name: str) -> Callable[[Run], float]:
    """Returns the function that takes the last quarter of a logged figure less the first."""

    def change(run: Run) -> float:
        values = run["log"][name]
        quarter = max(1, len(values) // 4)
        return statistics.fmean(values[-quarter:]) - statistics.fmean(values[:quarter])

    return change


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ladder(data: Comparison) -> str:
    """Returns the table of the rungs, each against the one before."""
    rows = []
    for number, arm in enumerate(LADDER):
        gain = data.difference(arm, LADDER[number - 1], "accuracy").text(signed=True) if number else ""
        rows.append(
            [
                "+ dynamic sampling = DAPO" if arm == "DAPO" else arm,
                data.mean(arm, "accuracy").text(),
                gain,
                str(PAPER[arm]),
                data.mean(arm, "entropy").text(1, 3),
                data.mean(arm, "length_wrong").text(1),
                data.mean(arm, "truncated").text(),
                f"{data.mean(arm, 'completions').mean:,.0f}",
                f"{data.mean(arm, 'cpu_seconds').mean:.0f}",
            ]
        )
    head = [
        "arm",
        "avg@4, %",
        "over the rung before",
        "paper",
        "entropy, nats",
        "length of wrong answers",
        "cut off, %",
    ]
    return table([*head, "completions", "CPU seconds"], rows)


def leave_one_out(data: Comparison) -> str:
    """Returns the table of the whole and of each part left out."""
    rows = []
    for part in LEFT_OUT:
        arm = left_out(part)
        figures = ("accuracy", "accuracy_rare", "entropy", "length_wrong", "truncated")
        losses = [data.difference("DAPO", arm, figure) for figure in figures]
        cells = [
            loss.text(1, 3, True)
            if figure == "entropy"
            else loss.text(1 if figure == "length_wrong" else 100, 1, True)
            for figure, loss in zip(figures, losses, strict=True)
        ]
        rows.append([part, data.mean(arm, "accuracy").text(), *cells])
    head = [
        "part",
        "avg@4 without it, %",
        "what it adds: avg@4",
        "on rare answers",
        "entropy",
        "length of wrong answers",
    ]
    return table([*head, "cut off"], rows)


def ratios_to_reach(data: Comparison, gain: float, cost: str) -> tuple[list[float], int]:
    """Returns DAPO's cost to a gain in accuracy over TRL's in the seeds where both reach it, and the number of seeds."""
    seeds = seeds_of(data.record, ["DAPO", "TRL"])
    ratios = []
    for seed in seeds:
        curves = [data.results[arm][seed]["curve"] for arm in ("DAPO", "TRL")]
        mine, its = (cost_to_reach(curve, curve[0]["accuracy"] + gain, cost) for curve in curves)
        if mine and its:
            ratios.append(mine / its)
    return ratios, len(seeds)


def against_trl(data: Comparison) -> str:
    """Returns the comparison with TRL's own DAPO at equal steps, tokens and time, and to a given gain."""
    rows = []
    for name, cost in (("optimizer steps", "step"), ("generated tokens", "tokens"), ("CPU seconds", "cpu_seconds")):
        gain = budget_gain(data, cost)
        cells = []
        for target in TARGET_GAINS:
            ratios, num_seeds = ratios_to_reach(data, target, cost)
            if not ratios:
                cells.append(f"none of {num_seeds} seeds")
                continue
            logs = Interval.of([math.log(value) for value in ratios])
            low, high = math.exp(logs.mean - logs.half), math.exp(logs.mean + logs.half)
            cells.append(f"{math.exp(logs.mean):.2f} ({low:.2f} to {high:.2f}; {len(ratios)} of {num_seeds} seeds)")
        rows.append([name, gain.text(signed=True), gain.verdict(), *cells])
    head = ["budget", "DAPO less TRL at equal budget, points", "better"]
    return table([*head, *(f"ratio to +{100 * target:.0f} points" for target in TARGET_GAINS)], rows)


def budget_gain(data: Comparison, cost: str) -> Interval:
    """Returns the accuracy that `DAPO` ends with less that of `TRL` when it has spent as much."""
    differences = []
    for seed in seeds_of(data.record, ["DAPO", "TRL"]):
        mine, its = data.results["DAPO"][seed], data.results["TRL"][seed]
        spent = min(at_step(mine, data.step, cost), its["curve"][-1][cost])
        differences.append(at_cost(mine, cost, spent) - at_cost(its, cost, spent))
    return Interval.of(differences)


def widths(data: Comparison) -> str:
    """Returns the table of the widths of Clip-Higher on rare answers alone."""
    rows = []
    for width in ("0.2", "0.28", "0.4"):
        arm = RARE.format(width)
        rows.append(
            [
                width,
                data.mean(arm, "accuracy").text(),
                data.mean(arm, "entropy").text(1, 3),
                data.mean(arm, mean_of_log("clipped")).text(100, 2),
                data.mean(arm, mean_of_log("clipped_probability")).text(1, 2),
            ]
        )
    head = ["`epsilon_high`", "avg@4, %", "entropy, nats", "growing tokens clipped, %", "their probability"]
    return table(head, rows)
