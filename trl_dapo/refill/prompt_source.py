"""Where the prompts of a run come from: which dataset row is drawn next, and what is in it."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from trl_dapo.sampling.judge import SampledGroup
from trl_dapo.sampling.prompt_selection import PromptSelection, SelectiveRollout
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
        selective (`SelectiveRollout`, *optional*):
            How draws whose groups would hardly teach are passed over. `None`: none are.
        row_fault (`Callable[[Mapping], str | None]`, *optional*):
            Tells why a row cannot be sampled, for rows that were not checked before. `None`: all were.
    """

    def __init__(
        self,
        dataset: Dataset | IterableDataset,
        seed: int = 0,
        shuffle: bool = True,
        selective: SelectiveRollout | None = None,
        row_fault: Callable[[Mapping[str, Any]], str | None] | None = None,
    ):
        self.dataset = dataset
        self.row_fault = row_fault
        self.stream: PromptStream | IterablePromptStream
        self.selection: PromptSelection | None = None
        if isinstance(dataset, IterableDataset):
            self.stream = IterablePromptStream(dataset, seed, shuffle, row_fault)
        else:
            self.stream = PromptStream(len(dataset), seed=seed, shuffle=shuffle)
            if selective is not None:
                self.selection = PromptSelection(
                    self.stream, selective.rates, seed, selective.exploration_share, selective.evict_above
                )

    @property
    def position(self) -> int:
        """Position of the next draw in the stream."""
        return self.stream.position

    @property
    def metrics(self) -> dict[str, float]:
        """Passes over the data so far, and how well the predictions of selective rollout hold."""
        metrics = {"data_passes": self.stream.num_passes}
        if self.selection is not None:
            metrics |= {f"selection/{name}": value for name, value in self.selection.metrics().items()}
        return metrics

    def draw(self, num_prompts: int) -> list[Draw]:
        """Takes the next draws from the stream; selective rollout passes over some."""
        if self.selection is not None:
            return self.selection.draw(num_prompts)
        draws = self.stream.peek(num_prompts)
        self.stream.seek(self.stream.position + num_prompts)
        return draws

    def chances(self, in_flight: Sequence[Draw] = ()) -> Iterator[float] | None:
        """Yields P(informative) of these draws, and then of those that come next. `None`: nothing is predicted."""
        if self.selection is None:
            return None
        return itertools.chain(self.selection.chances_of(in_flight), self.selection.chances())

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
        """Learns what the groups of a batch found."""
        if self.selection is not None:
            self.selection.settle(list(groups))

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
            "selection": None if self.selection is None else self.selection.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self.stream.load_state_dict(state["stream"])
        if self.selection is not None and state["selection"] is not None:
            self.selection.load_state_dict(state["selection"])

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
