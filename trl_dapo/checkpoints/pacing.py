"""The dataloader of a run whose prompts come from the prompt stream: it only counts the steps."""

import itertools
from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset


class _Rows(Dataset[dict[str, Any]]):
    """As many empty rows as the training data have."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {}


class _EndlessRows(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        return itertools.repeat({})


class _Batches:
    """Batch sampler of `num_batches` batches of one row."""

    def __init__(self, num_batches: int):
        self.num_batches = num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.repeat([0], self.num_batches)


def pacing_dataloader(dataset: object, num_groups: int, num_micro_batches: int) -> DataLoader[Any]:
    """
    Returns a dataloader of empty batches with the length of TRL's.

    On resume, skipping its batches takes no time. It never uses torch's global random state, so the random numbers after a
    resume do not depend on how many batches were skipped (`ignore_data_skip`).

    Args:
        dataset (`Sized` or `object`):
            The training data. Their rows, divided by `num_groups`, are the generation batches of an epoch. Data without a
            length have one endless epoch: `max_steps` ends the run.
        num_groups (`int`):
            Prompts per generation batch.
        num_micro_batches (`int`):
            Micro-batches per generation batch.

    Example:

    >>> loader = pacing_dataloader(range(50), num_groups=20, num_micro_batches=3)
    >>> len(loader), len(loader.dataset), list(loader)[:2]
    (6, 50, [[{}], [{}]])
    """
    options: dict[str, Any] = {"collate_fn": list, "generator": torch.Generator()}
    if not isinstance(dataset, Sized):
        return DataLoader(_EndlessRows(), batch_size=1, **options)
    num_batches = len(dataset) // num_groups * num_micro_batches
    return DataLoader(_Rows(len(dataset)), batch_sampler=_Batches(num_batches), **options)
