"""Which groups of a batch are recorded for people to read: a few, chosen at random among trained and filtered ones."""

import heapq
from collections.abc import Mapping
from typing import Any

from trl_dapo.sampling.prompt_stream import keyed_hash


class GroupSample:
    """
    Chooses `size` of the groups of a batch at random, while they come and without knowing how many will.

    The groups with the lowest priorities are chosen, and a priority is a function of (seed, batch, stream position). So
    all ranks choose alike, in whatever order and in whatever rounds the groups come.

    Args:
        size (`int`):
            Most groups of one batch.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the priorities.

    Example:

    >>> sample = GroupSample(size=2)
    >>> for position in range(100):
    ...     _ = sample.offer(position)
    >>> sorted(sample.chosen)
    [27, 47]
    """

    def __init__(self, size: int, seed: int = 0):
        self.size = size
        self.seed = seed
        self.num_batches = 0
        # The greatest priority on top: it makes room for a smaller one.
        self._heap: list[tuple[int, int]] = []

    @property
    def chosen(self) -> set[int]:
        """Positions of the groups that are chosen so far."""
        return {position for _, position in self._heap}

    def offer(self, position: int) -> tuple[bool, int | None]:
        """
        Decides about the next group of the batch.

        Args:
            position (`int`):
                Its position in the stream. No two groups of a batch have the same.

        Returns:
            `tuple[bool, int | None]`: whether it is chosen, and the position of the one that has to go for it.
        """
        name = f"{self.seed}/look/{self.num_batches}/{position}"
        entry = (-keyed_hash(name), position)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
            return True, None
        if not self.size or entry < self._heap[0]:
            return False, None
        return True, heapq.heapreplace(self._heap, entry)[1]

    def next_batch(self) -> None:
        """Begins the next batch."""
        self._heap = []
        self.num_batches += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns which batch it is, and what was chosen of it so far."""
        return {"num_batches": self.num_batches, "heap": [list(entry) for entry in self._heap]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self.num_batches = state["num_batches"]
        self._heap = [(priority, position) for priority, position in state["heap"]]
