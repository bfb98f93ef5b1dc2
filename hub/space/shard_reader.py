"""
Reads one file of a record: its numbers, and its texts on request.

Anybody may have made the file. Columns that a run does not write are ignored, a column of another type is an error, and no
content of the file decides which file is read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


VERDICTS = ("informative", "all_correct", "all_wrong", "uniform", "unscorable", "out_of_range", "truncated_out")
FATES = ("trained", "surplus", "stale", "filtered")
# Columns that are read into memory, with their types.
NUMBERS = {
    "step": pa.int64(),
    "position": pa.int64(),
    "sample": pa.int64(),
    "reward": pa.float64(),
    "advantage": pa.float64(),
    "length": pa.int64(),
    "is_truncated": pa.bool_(),
}
# Of runs with tools or environments; 0 in all others.
TURN_NUMBERS = ("num_turns", "num_tool_tokens")
NAMES = {"verdict": VERDICTS, "fate": FATES}
TEXTS = ("prompt", "solution", "completion", "extra", "env_fault")
MAX_REWARDS = 64
_MAX_FILE_BYTES = 2 * 2**30
# Errors for a file that is not a record, or was removed.
READ_ERRORS = (OSError, pa.ArrowException, ValueError, KeyError, OverflowError)


@dataclass
class Shard:
    """
    The numbers of a file.

    Attributes:
        path (`Path`):
            The file.
        start (`int`):
            Number of the start of the run that wrote it.
        columns (`dict[str, np.ndarray]`):
            `NUMBERS`, `TURN_NUMBERS`, and `NAMES` as indices (unknown names have the next index); each of shape `(R,)`.
            `step` is the first optimizer step that trains on the batch, counted from 1 as in the log.
        rewards (`dict[str, np.ndarray]`):
            Reward of each completion by each function, `rewards/<name>`, shape `(R,)`. NaN: not scored.
        facts (`dict`):
            Facts of the whole batch.
    """

    path: Path
    start: int
    columns: dict[str, np.ndarray]
    rewards: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)


def read_shard(path: Path) -> Shard:
    """
    Reads the numbers of a file.

    Raises:
        One of `READ_ERRORS`: when the file is not a record.
    """
    with pq.ParquetFile(path) as file:
        _check_size(file)
        schema = file.schema_arrow
        rewards = [name for name in schema.names if name.startswith("rewards/")][:MAX_REWARDS]
        turns = [name for name in TURN_NUMBERS if name in schema.names]
        table = file.read([*NUMBERS, *NAMES, *rewards, *turns])
        if "completion" not in schema.names:
            raise ValueError("has no completions")
    columns = {name: _as_numpy(table[name].cast(kind)) for name, kind in NUMBERS.items()}
    # The file has the number of steps before the batch.
    columns["step"] = columns["step"] + 1
    for name in TURN_NUMBERS:
        columns[name] = _as_numpy(table[name].cast(pa.int64())) if name in turns else np.zeros(len(table), np.int64)
    for name, names in NAMES.items():
        codes = pc.index_in(table[name].cast(pa.string()), pa.array(names))
        columns[name] = pc.fill_null(codes, len(names)).to_numpy(zero_copy_only=False).astype(np.int8)
    try:
        facts = json.loads((schema.metadata or {}).get(b"trl_dapo", b"{}"))
    except (ValueError, RecursionError):
        facts = {}
    return Shard(
        path,
        int(path.name.split("-")[1]),
        columns,
        {name: _as_numpy(table[name].cast(pa.float64())) for name in rewards},
        facts if isinstance(facts, dict) else {},
    )


def _as_numpy(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False)
    return pc.fill_null(column, pa.scalar(0, pa.int64()).cast(column.type)).to_numpy(zero_copy_only=False)


def read_texts(path: Path, names: Sequence[str]) -> pa.Table:
    """
    Reads those of the named columns that exist. They may have any type.

    Raises:
        One of `READ_ERRORS`: when the file was removed, or is no longer a record.
    """
    with pq.ParquetFile(path) as file:
        _check_size(file)
        return file.read([name for name in names if name in file.schema_arrow.names])


def rows_with(column: pa.ChunkedArray, needle: str) -> np.ndarray:
    """Returns which texts contain another, shape `(R,)`, bool. A text that is stored once for many rows is searched once."""
    hits = []
    for chunk in column.chunks:
        is_coded = pa.types.is_dictionary(chunk.type)
        found = pc.match_substring(
            (chunk.dictionary if is_coded else chunk).cast(pa.string()), needle, ignore_case=True
        )
        hits.append(pc.fill_null(found.take(chunk.indices) if is_coded else found, False))
    return np.concatenate([np.zeros(0, dtype=bool), *(part.to_numpy(zero_copy_only=False) for part in hits)])


def _check_size(file: pq.ParquetFile) -> None:
    # A small file can unpack to any size.
    size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
    if size > _MAX_FILE_BYTES:
        raise ValueError("too large")
