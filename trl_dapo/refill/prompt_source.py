"""Where the prompts of a run come from: which dataset row is drawn next, and what is in it."""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from trl_dapo.sampling.judge import GroupVerdict, SampledGroup
from trl_dapo.sampling.prompt_history import PromptHistory
from trl_dapo.sampling.prompt_stream import Draw, PromptStream

from .iterable_stream import IterablePromptStream


class PromptSource:
    """
    The prompt stream over a dataset, with its rows.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Dataset with a `prompt` column.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order.
        shuffle (`bool`, *optional*, defaults to `True`):
            `False` keeps the order of the dataset.
        is_selective (`bool`, *optional*, defaults to `False`):
            Whether prompts whose past groups were not informative are passed over, with a probability below 1.
        row_fault (`Callable[[Mapping], str | None]`, *optional*):
            Tells why a row cannot be sampled, for rows that were not checked before. `None`: all were.
    """

    def __init__(
        self,
        dataset: Dataset | IterableDataset,
        seed: int = 0,
        shuffle: bool = True,
        is_selective: bool = False,
        row_fault: Callable[[Mapping[str, Any]], str | None] | None = None,
    ):
        self.dataset = dataset
        self.row_fault = row_fault
        self.stream: PromptStream | IterablePromptStream
        self.history: PromptHistory | None = None
        if isinstance(dataset, IterableDataset):
            self.stream = IterablePromptStream(dataset, seed, shuffle, row_fault)
        else:
            self.stream = PromptStream(len(dataset), seed=seed, shuffle=shuffle)
            if is_selective:
                self.history = PromptHistory(len(dataset), seed=seed)

    @property
    def position(self) -> int:
        """Position of the next draw in the stream."""
        return self.stream.position

    @property
    def num_passes(self) -> float:
        """Passes over the data so far."""
        return self.stream.num_passes

    def draw(self, num_prompts: int) -> list[Draw]:
        """Takes the next draws from the stream; selective rollout passes over some."""
        draws: list[Draw] = []
        while len(draws) < num_prompts:
            for draw in self.stream.peek(num_prompts - len(draws)):
                self.stream.seek(draw.position + 1)
                if self.history is None or not self.history.skips(draw.position, draw.index):
                    draws.append(draw)
        return draws

    def row(self, draw: Draw) -> dict[str, Any]:
        """Returns the dataset row of a draw: a copy, which reward functions may change."""
        return self.rows([draw])[0]

    def rows(self, draws: Sequence[Draw]) -> list[dict[str, Any]]:
        """Returns the dataset row of each draw: copies. Equal draws in a row are read once."""
        rows = []
        for _, equal in itertools.groupby(draws, key=lambda draw: draw.position):
            first, *others = equal
            row = self._read(first)
            rows += [copy.deepcopy(row) for _ in range(1 + len(others))]
        return rows

    def seek(self, position: int) -> None:
        """Continues the stream at a position: draws from there on are drawn again."""
        self.stream.seek(position)

    def observe(self, groups: Iterable[SampledGroup]) -> None:
        """Learns which prompts gave informative groups."""
        if self.history is not None:
            for group in groups:
                self.history.observe(group.draw.index, group.verdict is GroupVerdict.INFORMATIVE)

    def forget_before(self, position: int) -> None:
        """Frees what is held of draws before `position`."""
        if isinstance(self.stream, IterablePromptStream):
            self.stream.forget_before(position)

    def advance(self, position: int) -> None:
        """Moves forward to a position. An iterable dataset is read up to there, so that the rows on the way are at hand."""
        self.stream.peek(position - self.stream.position)
        self.stream.seek(position)

    def state_dict(self, position: int) -> dict[str, Any]:
        """Returns what a resumed run needs to draw from `position` what this one would."""
        return {
            "stream": self.stream.state_dict(position=position),
            "history": None if self.history is None else self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self.stream.load_state_dict(state["stream"])
        if self.history is not None and state["history"] is not None:
            self.history.load_state_dict(state["history"])

    def _read(self, draw: Draw) -> dict[str, Any]:
        if isinstance(self.stream, IterablePromptStream):
            return self.stream.row_of(draw)
        row: dict[str, Any] = self.dataset[draw.index]
        fault = None if self.row_fault is None else self.row_fault(row)
        if fault is not None:
            raise ValueError(
                f"Row {draw.index} of train_dataset cannot be used: {fault}. Correct it, or leave it out and begin the run anew."
            )
        return row
