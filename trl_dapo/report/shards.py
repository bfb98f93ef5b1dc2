"""
The record of rollout groups on disk: Parquet files that a reader can open while the run goes on.

`<output_dir>/rollouts/groups-<start>-<batch>.parquet` holds the groups of one generation batch, one row a completion;
`pandas.read_parquet("<output_dir>/rollouts")` reads them all. A file appears whole or not at all, and is never written
again. A run that is resumed goes on as the next start: of an earlier start, only the batches before its first step count.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trl_dapo.sampling.judge import SampledGroup


ROLLOUTS_FOLDER = "rollouts"
HISTORY_FILE = "log_history.jsonl"
_SHARD_NAME = re.compile(r"groups-(\d{3,})-(\d{6,})\.parquet")
# Key of the schema metadata under which the facts of a batch are.
BATCH_KEY = b"trl_dapo"
_VERSION = 1

_REPEATED = pa.dictionary(pa.int32(), pa.string())
_COLUMNS: dict[str, pa.DataType] = {
    "step": pa.int32(),
    "sampled_step": pa.int32(),
    "position": pa.int64(),
    "row": pa.int64(),
    "sample": pa.int32(),
    "prompt": _REPEATED,
    "solution": _REPEATED,
    "completion": pa.string(),
    "verdict": _REPEATED,
    "fate": _REPEATED,
    "reward": pa.float64(),
    "advantage": pa.float64(),
    "length": pa.int32(),
    "prompt_length": pa.int32(),
    "is_truncated": pa.bool_(),
    "extra": pa.string(),
}


class RolloutShards:
    """
    Writes the record of one start of a run.

    Args:
        output_dir (`str` or `Path`):
            The run's folder.
        reward_names (`Sequence[str]`):
            Reward functions, each a column `rewards/<name>`.

    Attributes:
        start (`int`):
            How many starts the folder has seen before.
    """

    def __init__(self, output_dir: str | Path, reward_names: Sequence[str]):
        self.folder = Path(output_dir, ROLLOUTS_FOLDER)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reward_names = list(reward_names)
        starts = [int(name[1]) for name in map(_SHARD_NAME.fullmatch, os.listdir(self.folder)) if name]
        self.start = max(starts, default=-1) + 1
        self.num_batches = 0
        columns = dict(_COLUMNS) | {f"rewards/{name}": pa.float64() for name in self.reward_names}
        self._schema = pa.schema(list(columns.items()))

    def add(self, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Path:
        """
        Writes the groups of a batch, and waits until they are on disk.

        Args:
            rows (`Sequence[Mapping[str, Any]]`):
                One for each completion, those of a group in a row. Missing columns and NaN are stored as null.
            facts (`Mapping[str, Any]`):
                What is known of the whole batch, as JSON.

        Returns:
            `Path`: the new file.
        """
        path = self.folder / f"groups-{self.start:03d}-{self.num_batches:06d}.parquet"
        described = json.dumps({"version": _VERSION, **facts, "reward_names": self.reward_names})
        schema = self._schema.with_metadata({BATCH_KEY: described.encode()})
        table = pa.Table.from_pylist(
            [{name: _storable(value) for name, value in row.items()} for row in rows], schema=schema
        )
        # Readers of the folder pass over names with a dot in front.
        unfinished = path.with_name(f".{path.name}.tmp")
        with unfinished.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        self.num_batches += 1
        return path

    def add_logs(self, logs: Mapping[str, Any]) -> None:
        """Adds what the trainer logged to `<output_dir>/log_history.jsonl`, but for NaN and infinite values."""
        finite = {name: value for name, value in logs.items() if not isinstance(value, float) or math.isfinite(value)}
        with (self.folder.parent / HISTORY_FILE).open("ab+") as file:
            is_torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n"
            # A line that a killed run left unfinished stays a line of its own.
            file.write(b"\n" * is_torn + json.dumps({"start": self.start, **finite}, default=str).encode() + b"\n")


def completion_columns(
    group: SampledGroup, sample: int, reward_names: Sequence[str], reward_weights: Sequence[float]
) -> dict[str, Any]:
    """
    Returns the columns of a completion that need neither its text nor what became of it.

    Args:
        group (`SampledGroup`):
            Its group.
        sample (`int`):
            Its number in the group.
        reward_names (`Sequence[str]`):
            Reward functions.
        reward_weights (`Sequence[float]`):
            Their weights in `reward`, a sum over the functions that scored the completion.
    """
    rewards = group.rewards[sample]
    scored = [weight * reward for weight, reward in zip(reward_weights, rewards, strict=True) if reward == reward]
    return {
        "sampled_step": group.policy_step,
        "position": group.draw.position,
        "row": None if group.draw.index < 0 else group.draw.index,
        "sample": sample,
        "verdict": group.verdict.value,
        "reward": sum(scored) if scored else None,
        "length": group.lengths[sample][1],
        "prompt_length": group.lengths[sample][0],
        "is_truncated": group.is_truncated[sample],
    } | {f"rewards/{name}": reward for name, reward in zip(reward_names, rewards, strict=True)}


def as_text(value: Any) -> str | None:
    """
    Returns a prompt, a completion or an answer as text that can be stored: conversations as JSON, lone surrogates, which
    UTF-8 cannot hold, as question marks. The answer of a one-turn conversation is its content.

    >>> as_text([{"role": "assistant", "content": "4"}]), as_text([{"role": "user", "content": "2 + 2"}])
    ('4', '[{"role": "user", "content": "2 + 2"}]')
    """
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        content = value[0].get("content")
        if value[0].get("role") == "assistant" and isinstance(content, str):
            value = content
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and math.isnan(value) else value
