"""Trainers that note what training has cost at each evaluation, for benchmarks that compare them."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

from trl import GRPOTrainer

from trl_dapo import DAPOTrainer


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
