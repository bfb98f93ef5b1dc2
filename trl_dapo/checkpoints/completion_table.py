"""Reads the table of completions that TRL wrote: a resumed run takes from there the texts that no checkpoint has."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def read_table(output_dir: str | Path, step: int, reward_names: Collection[str]) -> dict[str, Any]:
    """
    Returns the rows of the table of a step, as TRL's trainer keeps them.

    Args:
        output_dir (`str` or `Path`):
            The folder of the run.
        step (`int`):
            Optimizer steps taken when it was written.
        reward_names (`Collection[str]`):
            Names of the columns that are rewards; those that are not known were logged by reward functions.

    Returns:
        `dict[str, Any]`: Lists of `prompt`, `completion` and `advantages`, and by name those of `rewards` and `extra`. Empty:
        there is no such table.
    """
    path = Path(output_dir, "completions", f"completions_{step:05d}.parquet")
    if not path.is_file():
        return {}
    columns = {
        str(name): list(map(_plain, values)) for name, values in pd.read_parquet(path).items() if name != "step"
    }
    table: dict[str, Any] = {name: columns.pop(name) for name in ("prompt", "completion")}
    table["advantages"] = columns.pop("advantage")
    table["rewards"] = {name: columns.pop(name) for name in reward_names if name in columns}
    return table | {"extra": columns}


def _plain(value: Any) -> Any:
    """Returns lists where Parquet gives arrays."""
    if isinstance(value, np.ndarray):
        return list(map(_plain, value.tolist()))
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value
