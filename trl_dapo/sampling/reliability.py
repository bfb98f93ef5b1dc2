"""How far predicted probabilities can be trusted: predicted against found."""

from typing import Any

import numpy as np
import numpy.typing as npt


NUM_BINS = 10


class Reliability:
    """
    Table of predicted probabilities and what was found, in bins of the same width. Old predictions fade.

    Args:
        memory (`float`, *optional*, defaults to `10_000.0`):
            Predictions after which older ones weigh half.

    Example:

    >>> reliability = Reliability()
    >>> reliability.observe(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]))
    >>> reliability.calibration_error
    0.0
    """

    def __init__(self, memory: float = 10_000.0):
        self.memory = memory
        # Number, sum of the predicted and sum of the found, of each bin.
        self._sums = np.zeros((NUM_BINS, 3))

    def observe(self, predicted: npt.NDArray[np.float64], found: npt.NDArray[np.bool_]) -> None:
        """Learns what came of some predictions."""
        bins = np.minimum((predicted * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        weights = (np.ones_like(predicted), predicted, found.astype(np.float64))
        new = [np.bincount(bins, weights=values, minlength=NUM_BINS) for values in weights]
        self._sums = self._sums * (self.memory / (self.memory + len(predicted))) + np.stack(new, axis=1)

    @property
    def calibration_error(self) -> float:
        """Mean distance between predicted and found, bins weighted by their predictions. NaN: nothing was predicted."""
        counts, predicted, found = self._sums.T
        total = float(counts.sum())
        return float(np.abs(predicted - found).sum()) / total if total else float("nan")

    def table(self) -> list[dict[str, float]]:
        """Returns for each bin that has any: weight of its predictions, mean of the predicted, share of the found."""
        return [
            {"num_groups": float(count), "predicted": float(predicted / count), "found": float(found / count)}
            for count, predicted, found in self._sums
            if count > 0
        ]

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums."""
        return {"sums": self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with saved sums."""
        self._sums = np.array(state["sums"])
