"""Checks of what selective rollout needs: its fields, and the columns of the training dataset that it reads."""

import math
import numbers
from typing import Any

from datasets import Dataset

from trl_dapo.sampling.pass_rates import prior_kinds


# Fields that mean nothing without `selective_rollout`, and their defaults.
_NEEDS_SELECTIVE = {"exploration_share": 0.1, "evict_above": None, "pass_rate_column": None, "label_column": None}


def check_selective_fields(args: Any) -> None:
    """
    Checks the fields of selective rollout.

    Args:
        args (`DAPOConfig`):
            The configuration.

    Raises:
        `ValueError`: naming field, value, accepted range and fix.
    """
    for name, example in (("exploration_share", 0.1), ("evict_above", 0.9)):
        value = getattr(args, name)
        if value is not None and not 0.0 < value <= 1.0:
            raise ValueError(f"{name} is {value}, but must be above 0 and at most 1. Use {example}.")
    for name, default in _NEEDS_SELECTIVE.items():
        value = getattr(args, name)
        if value != default and not args.selective_rollout:
            raise ValueError(
                f"{name} is {value!r}, but has no effect without selective_rollout. Set selective_rollout=True, or leave "
                f"{name} out."
            )


def check_selective_columns(dataset: Any, args: Any) -> None:
    """
    Checks the columns of the training dataset that selective rollout reads.

    Args:
        dataset (`Dataset`):
            The training dataset.
        args (`DAPOConfig`):
            The configuration.

    Raises:
        `ValueError`: a column is missing, or holds something else than rates in [0, 1] or labels.
    """
    if not args.selective_rollout or not isinstance(dataset, Dataset):
        return
    for name in ("pass_rate_column", "label_column"):
        column = getattr(args, name)
        if column is not None and column not in dataset.column_names:
            raise ValueError(
                f"{name} is {column!r}, but train_dataset has only the columns {dataset.column_names}. Name one of them, or "
                f"leave {name} out."
            )
    read_prior_kinds(dataset, args.pass_rate_column, args.label_column)


def read_prior_kinds(dataset: Dataset, pass_rate_column: str | None, label_column: str | None) -> tuple[Any, Any]:
    """
    Sorts the rows of a dataset into kinds by what is known of them before training.

    Args:
        dataset (`Dataset`):
            The training dataset.
        pass_rate_column (`str` or `None`):
            Column with a known pass rate, in [0, 1]; None or NaN where it is not known.
        label_column (`str` or `None`):
            Column with a source or a level.

    Returns:
        `tuple[np.ndarray or None, np.ndarray or None]`: `kinds` and `prior_rates` of [`PassRates`].

    Raises:
        `ValueError`: a pass rate is not a number in [0, 1], or there are too many labels.
    """
    rates = (
        None if pass_rate_column is None else [_rate(value, pass_rate_column) for value in dataset[pass_rate_column]]
    )
    labels = None if label_column is None else [str(value) for value in dataset[label_column]]
    return prior_kinds(rates, labels)


def _rate(value: Any, column: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(
            f"The column {column!r} (pass_rate_column) holds {value!r}, but must hold numbers between 0 and 1, or None."
        )
    return float(value)
