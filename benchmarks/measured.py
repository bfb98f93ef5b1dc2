"""Trainers that note what training has cost at each evaluation, for benchmarks that compare them."""

import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

from trl import GRPOTrainer

from trl_dapo import DAPOTrainer


# Evaluations of which the accuracy at the end of a run is the mean.
NUM_LAST = 3
ACCURACY = "eval_rewards/accuracy_reward/mean"


class Measured:
    """Counts what is sampled for training, and the CPU time outside of evaluation, at each evaluation."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.num_completions = self.num_tokens = 0
        self.seconds_in_eval = 0.0
        self.start = time.process_time()
        self.curve: list[dict[str, float]] = []

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._generate_single_turn(*args, **kwargs)
        # A part of a large round comes through here too, by way of TRL's method and not of this one.
        if self.model.training:
            self.num_completions += len(output[0])
            self.num_tokens += sum(map(len, output[0]))
        return output

    def point(self, metrics: dict[str, float]) -> dict[str, float]:
        """Returns what is noted of an evaluation beside the cost."""
        return {"accuracy": metrics[ACCURACY]}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates, and notes what training has cost until now."""
        start = time.process_time()
        metrics = super().evaluate(*args, **kwargs)
        cost = {
            "completions": self.num_completions,
            "tokens": self.num_tokens,
            "cpu_seconds": round(start - self.start - self.seconds_in_eval, 2),
        }
        self.curve.append({"step": self.state.global_step} | self.point(metrics) | cost)
        self.seconds_in_eval += time.process_time() - start
        return metrics


class MeasuredGRPO(Measured, GRPOTrainer):
    """TRL's trainer, measured."""


class MeasuredDAPO(Measured, DAPOTrainer):
    """Ours, measured."""


def cost_to_reach(curve: Sequence[dict[str, float]], accuracy: float, cost: str) -> float | None:
    """Returns the cost at which the curve first reaches an accuracy, interpolated; `None` where it never does."""
    for before, after in itertools.pairwise(curve):
        if after["accuracy"] >= accuracy > before["accuracy"]:
            share = (accuracy - before["accuracy"]) / (after["accuracy"] - before["accuracy"])
            return before[cost] + share * (after[cost] - before[cost])
    return None


def end_accuracy(curve: Sequence[dict[str, float]]) -> float:
    """Returns the accuracy with which a run ends: the mean of its last evaluations."""
    return statistics.mean(point["accuracy"] for point in curve[-NUM_LAST:])


def cost_ratios(
    curves: Sequence[Sequence[dict[str, float]]], others: Sequence[Sequence[dict[str, float]]], cost: str
) -> list[float | None]:
    """Returns, by seed, the cost of a run over that of another one, to the accuracy with which the other one ends."""
    ratios: list[float | None] = []
    for curve, other in zip(curves, others, strict=True):
        mine, its = (cost_to_reach(one, end_accuracy(other), cost) for one in (curve, other))
        ratios.append(None if mine is None or its is None else mine / its)
    return ratios


def ratio_cell(ratios: Sequence[float | None]) -> str:
    """Returns the geometric mean of ratios, and each of them; `-`: not reached."""
    found = [ratio for ratio in ratios if ratio is not None]
    mean = f"{statistics.geometric_mean(found):.2f}" if found else "-"
    return f"{mean} ({', '.join('-' if ratio is None else f'{ratio:.2f}' for ratio in ratios)})"
