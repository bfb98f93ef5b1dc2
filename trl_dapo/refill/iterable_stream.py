"""The prompt stream over a dataset that can only be read in order."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from datasets import IterableDataset

from trl_dapo.sampling.prompt_stream import WAYS_TO_GO_ON, Draw, check_same_stream


logger = logging.getLogger(__name__)

# Rows that are named before a stream passes over them in silence.
_MAX_WARNINGS = 10


class IterablePromptStream:
    """
    Endless stream over an iterable dataset, pass after pass, that can go back to draws which it has not forgotten.

    Every rank reads the whole dataset in the same order. Shuffling is that of `IterableDataset.shuffle`, through a
    buffer, in another order for each pass. Rows are held in memory from the first one that may still be needed.

    Args:
        dataset (`IterableDataset`):
            The dataset.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the shuffling.
        shuffle (`bool`, *optional*, defaults to `True`):
            `False` keeps the order of the dataset.
        row_fault (`Callable[[Mapping], str | None]`, *optional*):
            Tells why a row cannot be sampled. Such rows are passed over, with a warning. `None`: all can.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        seed: int = 0,
        shuffle: bool = True,
        row_fault: Callable[[Mapping[str, Any]], str | None] | None = None,
    ):
        self.dataset = dataset.shuffle(seed=seed) if shuffle else dataset
        self.seed = seed
        self.shuffle = shuffle
        self.row_fault = row_fault
        self._num_warnings = 0
        self.position = 0
        self._rows: dict[int, dict[str, Any]] = {}
        self._num_read = 0
        # Position at which each pass begins; the last one is being read.
        self._pass_starts = [0]
        self._reader = self._read_pass()

    def peek(self, num_draws: int) -> list[Draw]:
        """Returns the next `num_draws` draws in stream order. The position does not move."""
        while self._num_read < self.position + num_draws:
            row = next(self._reader, None)
            if row is None:
                if self._num_read == self._pass_starts[-1]:
                    raise ValueError(
                        "train_dataset gave no rows in a whole pass that can be sampled. Check the split, any filter and the "
                        "prompts."
                    )
                self._pass_starts.append(self._num_read)
                self._reader = self._read_pass()
            else:
                self._rows[self._num_read] = row
                self._num_read += 1
        return [Draw(position, position) for position in range(self.position, self.position + num_draws)]

    def row_of(self, draw: Draw) -> dict[str, Any]:
        """Returns the row of a draw."""
        return self._rows[draw.position]

    def seek(self, position: int) -> None:
        """Continues the stream at a position that is not yet forgotten."""
        self.position = position

    def forget_before(self, position: int) -> None:
        """Frees the rows of all draws before `position`."""
        self._rows = {held: row for held, row in self._rows.items() if held >= position}

    @property
    def num_passes(self) -> float:
        """Whole passes over the dataset so far."""
        return float(self._pass_of(self.position))

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """Returns what `load_state_dict` needs to continue the stream, from `position` or from where it stands."""
        position = self.position if position is None else position
        pass_number = self._pass_of(position)
        return {
            "pass_starts": self._pass_starts[: pass_number + 1],
            "position": position,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continues a saved stream. The rows of the begun pass are read again up to its position.

        Raises:
            `ValueError`: when that stream had another kind of dataset, seed or shuffling, or more rows than this one.
        """
        check_same_stream(state, self.state_dict())
        self._rows = {}
        self._pass_starts = list(state["pass_starts"])
        self._num_read = self._pass_starts[-1]
        self._reader = self._read_pass()
        self.position = self._num_read
        num_drawn = state["position"] - self._num_read
        self.peek(num_drawn)
        if len(self._pass_starts) > len(state["pass_starts"]):
            raise ValueError(
                f"train_dataset gives fewer than the {num_drawn} rows that the saved run drew in a pass. {WAYS_TO_GO_ON}"
            )
        self.position = state["position"]
        self.forget_before(self.position)

    def _pass_of(self, position: int) -> int:
        return max(number for number, start in enumerate(self._pass_starts) if start <= position)

    def _read_pass(self) -> Iterator[dict[str, Any]]:
        # The shuffling of `datasets` is keyed by the epoch.
        self.dataset.set_epoch(len(self._pass_starts) - 1)
        return (row for number, row in enumerate(self.dataset) if self._is_usable(number, row))

    def _is_usable(self, number: int, row: Mapping[str, Any]) -> bool:
        fault = None if self.row_fault is None else self.row_fault(row)
        # In the first pass, since the later ones come to the same rows.
        if fault is not None and len(self._pass_starts) == 1:
            self._num_warnings += 1
            if self._num_warnings <= _MAX_WARNINGS:
                order = ", counted as it is shuffled," if self.shuffle else ""
                last = " Further rows are passed over without a warning." * (self._num_warnings == _MAX_WARNINGS)
                logger.warning(f"Row {number} of train_dataset{order} is passed over: {fault}.{last}")
        return fault is None
