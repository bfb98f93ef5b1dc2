"""Keeps the problems that measure a model apart from those that train it."""

import json
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset


# Of the different prompts of a dataset, the most that are cut off as held-out problems.
MAX_SHARE_HELD_OUT = 0.1


@dataclass(frozen=True, slots=True)
class HeldOut:
    """
    How the held-out problems are kept apart from the training problems. It is published with the results.

    Args:
        num_problems (`int`):
            Held-out problems.
        is_cut_from_training (`bool`):
            Whether they were cut off the training data, because there are no other data.
        num_left_out (`int`):
            Training rows that were left out because their prompt is held out: the cut rows, or the overlap.
        rows (`list[int]`, *optional*):
            Numbers of the held-out rows in the training data, if they were cut off.
        seed (`int`, *optional*):
            Seed of the cut.
    """

    num_problems: int
    is_cut_from_training: bool
    num_left_out: int
    rows: list[int] | None = None
    seed: int | None = None

    def describe(self) -> str:
        """
        Returns a sentence for people.

        >>> HeldOut(10, False, 0).describe()
        'Held out: 10 problems; none of their prompts is in the training data.'
        """
        if self.is_cut_from_training:
            return (
                f"Held out: {self.num_problems} problems, cut off the training data by prompt (seed {self.seed}); "
                f"{self.num_left_out} rows with these prompts do not train."
            )
        if self.num_left_out:
            return (
                f"Held out: {self.num_problems} problems; {self.num_left_out} training rows with the same prompts were "
                "left out of training."
            )
        return f"Held out: {self.num_problems} problems; none of their prompts is in the training data."


def prompt_key(prompt: Any) -> str:
    """
    Returns a text that is the same for prompts that differ in white space and letter case only.

    >>> prompt_key("What is  1 + 1?") == prompt_key([{"role": "user", "content": "what is 1 + 1?"}])
    True
    """
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        prompt = prompt[0].get("content")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
    return " ".join(text.casefold().split())


def cut_held_out(prompts: Iterable[Any], num_problems: int, seed: int, kept: Collection[str] = ()) -> list[int]:
    """
    Chooses the rows that are held out: the first row of each of a few prompts, drawn at random.

    Args:
        prompts (`Iterable`):
            The prompt of each row.
        num_problems (`int`):
            Prompts to hold out. At most a tenth of the different prompts is, and at least one.
        seed (`int`):
            Seed of the draw.
        kept (`Collection[str]`, *optional*):
            Keys of prompts that are not held out.

    Raises:
        `ValueError`: there are not two different prompts, so that nothing could train.

    Example:

    >>> cut_held_out(["a", "b", "A ", "c"], num_problems=1, seed=0)
    [1]
    """
    first_row: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        first_row.setdefault(prompt_key(prompt), number)
    candidates = [key for key in first_row if key not in kept]
    if len(first_row) < 2 or not candidates:
        raise ValueError(
            f"The dataset has {len(first_row)} different prompts, which is too few to hold some out and train on the rest. "
            "Add rows, or name held-out data with --eval_dataset_name."
        )
    count = min(num_problems, max(1, int(MAX_SHARE_HELD_OUT * len(first_row))), len(candidates))
    return sorted(first_row[key] for key in random.Random(seed).sample(candidates, count))


def without_prompts(rows: Dataset, prompts: Iterable[Any], held_out: Collection[str]) -> Dataset:
    """
    Returns the rows whose prompt is not held out.

    Args:
        rows (`Dataset`):
            The rows.
        prompts (`Iterable`):
            The prompt of each of them.
        held_out (`Collection[str]`):
            Keys of the held-out prompts.
    """
    left = [number for number, prompt in enumerate(prompts) if prompt_key(prompt) not in held_out]
    return rows if len(left) == len(rows) else rows.select(left)


def num_shared_prompts(train_dataset: Any, eval_dataset: Any) -> int:
    """
    Returns how many prompts of an evaluation dataset are in the training data too. 0 if they cannot be compared.

    Args:
        train_dataset (`Dataset`), eval_dataset (`Dataset`):
            Datasets with a column `prompt`. Others, such as streams, are not read.
    """
    if not all(isinstance(data, Dataset) and "prompt" in data.column_names for data in (train_dataset, eval_dataset)):
        return 0
    # A transform of the user may need other columns.
    held_out, trained = (
        {prompt_key(prompt) for prompt in data.with_format(None).select_columns("prompt")["prompt"]}
        for data in (eval_dataset, train_dataset)
    )
    return len(held_out & trained)
