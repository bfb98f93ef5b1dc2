"""What limits a run that samples while it trains: the servers or the trainer."""

from collections.abc import Mapping


# Batches after which it is said, the first one left out: it has nothing before it to be hidden behind.
_NUM_BATCHES = 4
# Shares of the longer part by which the two may differ and count as equal.
_EVEN = 0.05


class OverlapBalance:
    """Says once, after a few batches, what limits the run."""

    def __init__(self) -> None:
        self._batches: list[Mapping[str, float]] = []

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        """
        Takes the metrics of a batch, and returns what there is to say.

        Args:
            metrics (`Mapping[str, float]`):
                Its metrics, by their names below `dapo/`.
        """
        if len(self._batches) > _NUM_BATCHES:
            return None
        self._batches.append(metrics)
        if len(self._batches) <= _NUM_BATCHES:
            return None
        means = [
            sum(batch.get(name, 0.0) for batch in self._batches[1:]) / _NUM_BATCHES
            for name in ("seconds_sampling", "overlap/wait_seconds", "overlap/idle_seconds")
        ]
        return describe_balance(*means)


def describe_balance(sampling: float, waited: float, idle: float) -> str | None:
    """
    Says what limits a run, and what would balance it.

    Args:
        sampling (`float`):
            Seconds that the servers sample for a batch.
        waited (`float`):
            Seconds that the trainer waits for it.
        idle (`float`):
            Seconds that the batch is ready before the trainer needs it.

    Returns:
        `str`: a line. `None`: nothing was sampled.

    Example:

    >>> describe_balance(sampling=30.0, waited=10.0, idle=0.0)
    'Overlap: a batch takes 30.0 s of sampling and 20.0 s of training. The servers limit the run: 1.5 times as many GPUs for them would balance it.'
    """
    # While a batch is sampled the one before it trains; one of the two ends first.
    training = sampling - waited + idle
    if sampling <= 0 or training <= 0:
        return None
    text = f"Overlap: a batch takes {sampling:.1f} s of sampling and {training:.1f} s of training."
    ratio = sampling / training
    if max(ratio, 1 / ratio) < 1 + _EVEN:
        return f"{text} That is balanced."
    if ratio > 1:
        return f"{text} The servers limit the run: {ratio:.1f} times as many GPUs for them would balance it."
    return (
        f"{text} The trainer limits the run: {1 / ratio:.1f} times as many GPUs for it, or {ratio:.1f} times those of the "
        "servers, would balance it."
    )
