"""
The record of rollout groups on disk: Parquet files that can be read while the run continues.

`<output_dir>/rollouts/groups-<start>-<batch>.parquet` holds the groups of one generation batch, one row per completion;
`pandas.read_parquet("<output_dir>/rollouts")` reads all batches. A file is written in one step and never changed. Each resume
of a run gets the next start number. Of an earlier start, only the batches before the first step of the next one count.
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

from trl_dapo.atomic_write import atomic_write
from trl_dapo.sampling.env_faults import EnvFault
from trl_dapo.sampling.judge import SampledGroup


ROLLOUTS_FOLDER = "rollouts"
HISTORY_FILE = "log_history.jsonl"
_SHARD_NAME = re.compile(r"groups-(\d{3,})-(\d{6,})\.parquet")
# Key of the facts about the batch in the metadata of the Parquet schema.
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
    "filter_reward": _REPEATED,
    "fate": _REPEATED,
    "reward": pa.float64(),
    "advantage": pa.float64(),
    "length": pa.int32(),
    "prompt_length": pa.int32(),
    "is_truncated": pa.bool_(),
    "extra": pa.string(),
}
# Of completions in which tools, an environment or a rollout function took part.
_TURN_COLUMNS: dict[str, pa.DataType] = {
    "num_turns": pa.int32(),
    "num_tool_tokens": pa.int32(),
    "stretches": pa.string(),
    "env_fault": _REPEATED,
}


class RolloutShards:
    """
    Writes the record of one start of a run: the first one, or a resume.

    Args:
        output_dir (`str` or `Path`):
            The folder of the run.
        reward_names (`Sequence[str]`):
            Names of the reward functions. Each has a column `rewards/<name>`.
        has_turns (`bool`, *optional*, defaults to `False`):
            Whether there are columns for turns.

    Attributes:
        start (`int`):
            Number of earlier starts with a record in this folder.
    """

    def __init__(self, output_dir: str | Path, reward_names: Sequence[str], has_turns: bool = False):
        self.folder = Path(output_dir, ROLLOUTS_FOLDER)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reward_names = list(reward_names)
        starts = [int(name[1]) for name in map(_SHARD_NAME.fullmatch, os.listdir(self.folder)) if name]
        self.start = max(starts, default=-1) + 1
        self.num_batches = 0
        columns = _COLUMNS | (_TURN_COLUMNS if has_turns else {})
        columns |= {f"rewards/{name}": pa.float64() for name in self.reward_names}
        self._schema = pa.schema(list(columns.items()))

    def add(self, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Path:
        """
        Writes the groups of a batch, and waits until they are on disk.

        Args:
            rows (`Sequence[Mapping[str, Any]]`):
                One per completion; the completions of a group follow each other. Missing columns and NaN become null.
            facts (`Mapping[str, Any]`):
                Facts about the whole batch, as JSON.

        Returns:
            `Path`: The new file.
        """
        path = self.folder / f"groups-{self.start:03d}-{self.num_batches:06d}.parquet"
        described = json.dumps({"version": _VERSION, **facts, "reward_names": self.reward_names})
        schema = self._schema.with_metadata({BATCH_KEY: described.encode()})
        table = pa.Table.from_pylist(
            [{name: _storable(value) for name, value in row.items()} for row in rows], schema=schema
        )
        atomic_write(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
        self.num_batches += 1
        return path

    def add_logs(self, logs: Mapping[str, Any]) -> None:
        """Appends a log line of the trainer to `<output_dir>/log_history.jsonl`, without NaN and infinite values."""
        finite = {name: value for name, value in logs.items() if not isinstance(value, float) or math.isfinite(value)}
        with (self.folder.parent / HISTORY_FILE).open("ab+") as file:
            is_torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n"
            # If a killed run left an incomplete line, the new line must not be appended to it.
            file.write(b"\n" * is_torn + json.dumps({"start": self.start, **finite}, default=str).encode() + b"\n")


def completion_columns(
    group: SampledGroup, sample: int, reward_names: Sequence[str], reward_weights: Sequence[float]
) -> dict[str, Any]:
    """
    Returns the columns of a completion that need neither its text nor its fate.

    Args:
        group (`SampledGroup`):
            Its group.
        sample (`int`):
            Its number in the group.
        reward_names (`Sequence[str]`):
            Names of the reward functions.
        reward_weights (`Sequence[float]`):
            Their weights. `reward` is the weighted sum over the functions that scored the completion.
    """
    rewards = group.rewards[sample]
    scored = [weight * reward for weight, reward in zip(reward_weights, rewards, strict=True) if reward == reward]
    return {
        "sampled_step": group.policy_step,
        "position": group.draw.position,
        "row": None if group.draw.index < 0 else group.draw.index,
        "sample": sample,
        "verdict": group.verdict.value,
        "filter_reward": reward_names[group.filter_column],
        "reward": sum(scored) if scored else None,
        "length": group.lengths[sample][1],
        "prompt_length": group.lengths[sample][0],
        "is_truncated": group.is_truncated[sample],
    } | {f"rewards/{name}": reward for name, reward in zip(reward_names, rewards, strict=True)}


def turn_columns(group: SampledGroup, sample: int) -> dict[str, Any]:
    """
    Returns the columns that tell the turns of a completion.

    Args:
        group (`SampledGroup`):
            Its group.
        sample (`int`):
            Its number in the group.
    """
    fault = EnvFault(group.env_faults[sample] if group.env_faults else 0)
    return {
        "num_turns": group.num_turns[sample] if group.num_turns else 1,
        "num_tool_tokens": group.num_tool_tokens[sample] if group.num_tool_tokens else 0,
        "env_fault": None if fault is EnvFault.NONE else fault.name.lower(),
    }


def as_text(value: Any) -> str | None:
    """
    Returns a prompt, a completion or a gold answer as text that Parquet can store.

    A conversation becomes JSON, except that a single assistant turn becomes its content. Lone surrogates, which UTF-8 cannot
    encode, become question marks.

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
