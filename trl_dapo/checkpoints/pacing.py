"""The dataloader of a run whose prompts come from elsewhere: it counts the steps and reads nothing."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset


class _Rows(Dataset[dict[str, Any]]):
    """As many rows as the training data have, all empty."""

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


def pacing_dataloader(dataset: Any, num_groups: int, num_micro_batches: int) -> DataLoader[Any]:
    """
    Returns a dataloader of empty batches, as long as TRL's.

    Skipping batches of it on resume takes no time, and it leaves torch's own random numbers alone: a run goes on with the
    same ones whether or not batches were skipped (`ignore_data_skip`).

    Args:
        dataset (`Sized` or any):
            What it stands for: an epoch has as many generation batches as its rows fill. Without a length the epoch never
            ends, and `max_steps` ends the run.
        num_groups (`int`):
            Prompts of a generation batch.
        num_micro_batches (`int`):
            Micro-batches that are trained on each of them.

    Example:

    >>> loader = pacing_dataloader(range(50), num_groups=20, num_micro_batches=3)
    >>> len(loader), len(loader.dataset), list(loader)[:2]
    (6, 50, [[{}], [{}]])
    """
    options: dict[str, Any] = {"collate_fn": list, "generator": torch.Generator()}
    if not hasattr(dataset, "__len__"):
        return DataLoader(_EndlessRows(), batch_size=1, **options)
    num_batches = len(dataset) // num_groups * num_micro_batches
    return DataLoader(_Rows(len(dataset)), batch_sampler=_Batches(num_batches), **options)
