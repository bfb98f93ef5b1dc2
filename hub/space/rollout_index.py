"""
The groups of a run's record: found by what is known of them, and read a few at a time.

Numbers are kept in memory, some 50 bytes a completion; texts stay in the files until somebody looks at them or searches
them. Nothing in a file decides which file is read.
"""

import functools
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
OTHER = "other"
ORDERS = ("oldest first", "newest first", "longest first")
# What is read into memory of each file, and as what.
_NUMBERS = {
    "step": pa.int64(),
    "position": pa.int64(),
    "sample": pa.int64(),
    "reward": pa.float64(),
    "advantage": pa.float64(),
    "length": pa.int64(),
    "is_truncated": pa.bool_(),
}
_NAMES = {"verdict": VERDICTS, "fate": FATES}
_TEXTS = ("prompt", "solution", "completion")
_MAX_NEEDLE = 200
_MAX_REWARDS = 64
_MAX_FILE_BYTES = 2 * 2**30
_READ_ERRORS = (OSError, pa.ArrowException, ValueError, KeyError, OverflowError)


@dataclass(frozen=True)
class Query:
    """
    What to look for. `None` and empty: anything.

    The first four are of a group; the others of a completion, and one completion of the group has to meet them all.

    Attributes:
        first_step, last_step (`float`, *optional*):
            Steps, both included.
        verdicts, fates (`frozenset[str]`):
            Names of `VERDICTS` and `FATES`.
        reward (`str`):
            Column of `lowest` and `highest`: `reward`, `advantage` or `rewards/<name>`.
        lowest, highest (`float`, *optional*):
            Range of that column, both included.
        shortest, longest (`float`, *optional*):
            Tokens of the completion, both included.
        is_truncated (`bool`, *optional*):
            Whether it ran into the length limit.
        text (`str`):
            To be found in the prompt, the solution or the completion, in capitals or not.
        order (`str`):
            One of `ORDERS`.
    """

    first_step: float | None = None
    last_step: float | None = None
    verdicts: frozenset[str] = frozenset()
    fates: frozenset[str] = frozenset()
    reward: str = "reward"
    lowest: float | None = None
    highest: float | None = None
    shortest: float | None = None
    longest: float | None = None
    is_truncated: bool | None = None
    text: str = ""
    order: str = ORDERS[0]


def parse_range(name: str, text: str) -> tuple[float | None, float | None]:
    """
    Returns the bounds that somebody typed, `None` for none.

    Args:
        name (`str`):
            What is limited, for the message.
        text (`str`):
            `low..high`, `low..`, `..high` or one number; empty: no bounds.

    Raises:
        `ValueError`: when it is something else.

    >>> parse_range("steps", "10..50"), parse_range("reward", "..-0.5"), parse_range("steps", "7")
    ((10.0, 50.0), (None, -0.5), (7.0, 7.0))
    """
    text = "".join(text.split())
    if not text:
        return None, None
    low, dots, high = text.partition("..")
    try:
        bounds = [float(bound) if bound else None for bound in (low, high if dots else low)]
    except ValueError:
        bounds = [np.nan]
    if any(bound is not None and not np.isfinite(bound) for bound in bounds):
        raise ValueError(f"{name} is {text[:40]!r}, but must be a range like 10..50, 10.. or ..50, or one number.")
    return bounds[0], bounds[1]


@dataclass
class Group:
    """A group with its texts; each completion has the columns of the record."""

    number: int
    step: int
    verdict: str
    fate: str
    prompt: str
    solution: str
    completions: list[dict[str, Any]]


@dataclass
class Batch:
    """What became of the groups that were sampled for one generation batch, all of them and not only those kept."""

    step: int
    counts: dict[str, int]


@dataclass
class _Shard:
    path: Path
    start: int
    columns: dict[str, np.ndarray]
    rewards: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)


class RolloutIndex:
    """
    The record of a run.

    Args:
        paths (`Sequence[Path]`):
            Its files, in the order in which they were written.

    Attributes:
        problems (`list[str]`):
            Files that could not be read, and why.
        reward_names (`list[str]`):
            Columns that a query may ask for.
        filter_reward (`str`):
            The column that decides whether a group is informative.
    """

    def __init__(self, paths: Sequence[Path]):
        self.problems: list[str] = []
        shards = []
        for path in paths:
            try:
                shards.append(_read_shard(path))
            except _READ_ERRORS as error:
                self.problems.append(f"{path.name}: {type(error).__name__}")
        self._join(_without_replaced(shards))
        # Of this record alone, so that it goes when the record goes.
        self.find = functools.lru_cache(maxsize=32)(self._find)
        self._matches_text = functools.lru_cache(maxsize=8)(self._search)
        self._texts = functools.lru_cache(maxsize=32)(self._read_texts)

    def __len__(self) -> int:
        return len(self.first_rows)

    @property
    def num_completions(self) -> int:
        """Completions in the record."""
        return len(self.columns["step"])

    def _join(self, shards: list[_Shard]) -> None:
        self.paths = [shard.path for shard in shards]
        lengths = [len(shard.columns["step"]) for shard in shards]
        self.shard_of_row = np.repeat(np.arange(len(shards)), lengths)
        self.shard_ends = np.cumsum([0, *lengths])
        empty = {**dict.fromkeys(_NUMBERS, np.zeros(0)), **dict.fromkeys(_NAMES, np.zeros(0, dtype=np.int8))}
        self.columns = {
            name: np.concatenate([shard.columns[name] for shard in shards]) if shards else empty[name]
            for name in empty
        }
        names = sorted({name for shard in shards for name in shard.rewards})[:_MAX_REWARDS]
        missing = [np.full(length, np.nan) for length in lengths]
        rewards = {
            name: np.concatenate(
                [shard.rewards.get(name, nothing) for shard, nothing in zip(shards, missing, strict=True)]
            )
            for name in names
        }
        self.columns |= rewards
        self.reward_names = ["reward", "advantage", *names]
        chosen = [f"rewards/{shard.facts.get('filter_reward')}" for shard in shards]
        self.filter_reward = next((name for name in chosen if name in rewards), "reward")
        # A group begins where its position in the stream or the file changes.
        position, shard = self.columns["position"], self.shard_of_row
        changes = (position[1:] != position[:-1]) | (shard[1:] != shard[:-1])
        starts = np.flatnonzero(np.concatenate([[len(position) > 0], changes])) if len(position) else np.zeros(0, int)
        self.first_rows = starts
        self.sizes = np.diff(np.concatenate([starts, [len(position)]])) if len(starts) else starts
        self.group_of_row = np.repeat(np.arange(len(starts)), self.sizes)
        self.batches = [Batch(_int(shard.facts.get("step")), _counts(shard.facts.get("groups"))) for shard in shards]

    def _find(self, query: Query) -> tuple[np.ndarray, np.ndarray]:
        """
        Returns the groups that a query finds.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: the numbers of the groups in the order of the query, shape `(N,)`; and which
            completions of the record meet what is asked of a completion, shape `(R,)`, bool.
        """
        columns, first = self.columns, self.first_rows
        of_group = np.ones(len(first), dtype=bool)
        of_group &= _within(columns["step"][first], query.first_step, query.last_step)
        for name, wanted in (("verdict", query.verdicts), ("fate", query.fates)):
            if wanted:
                codes = [code for code, value in enumerate((*_NAMES[name], OTHER)) if value in wanted]
                of_group &= np.isin(columns[name][first], codes)
        meets = of_group[self.group_of_row]
        if query.lowest is not None or query.highest is not None:
            column = query.reward if query.reward in self.reward_names else "reward"
            meets &= _within(columns[column], query.lowest, query.highest)
        meets &= _within(columns["length"], query.shortest, query.longest)
        if query.is_truncated is not None:
            meets &= columns["is_truncated"] == query.is_truncated
        if query.text:
            for number in np.unique(self.shard_of_row[meets]):
                rows = slice(self.shard_ends[number], self.shard_ends[number + 1])
                meets[rows] &= self._matches_text(query.text[:_MAX_NEEDLE])[1](int(number))
        numbers = np.unique(self.group_of_row[meets])
        if query.order == ORDERS[1]:
            numbers = numbers[::-1]
        elif query.order == ORDERS[2]:
            longest = np.maximum.reduceat(columns["length"], first)[numbers] if len(first) else numbers
            numbers = numbers[np.argsort(-longest, kind="stable")]
        return numbers, meets

    def _search(self, needle: str) -> tuple[str, Any]:
        """Returns the function that finds a text in the rows of a file; it remembers the files that it has searched."""
        needle = needle.encode("utf-8", "replace").decode()

        @functools.cache
        def rows_with_text(number: int) -> np.ndarray:
            shard_rows = self.shard_ends[number + 1] - self.shard_ends[number]
            found = np.zeros(shard_rows, dtype=bool)
            try:
                table = _read_columns(self.paths[number], _TEXTS)
            except _READ_ERRORS:
                return found
            if table.num_rows == shard_rows:
                for column in table.columns:
                    found |= _rows_with(column, needle)
            return found

        return needle, rows_with_text

    def groups(self, numbers: Sequence[int], has_completions: bool = True) -> list[Group]:
        """
        Returns groups with their texts.

        Args:
            numbers (`Sequence[int]`):
                Numbers that `find` returned. Any other is passed over.
            has_completions (`bool`, *optional*, defaults to `True`):
                Whether to read the texts of the completions, too, and not only prompt and solution.
        """
        return [self._group(int(number), has_completions) for number in numbers if 0 <= number < len(self)]

    def _group(self, number: int, has_completions: bool) -> Group:
        first, size = int(self.first_rows[number]), int(self.sizes[number])
        shard = int(self.shard_of_row[first])
        offset = first - int(self.shard_ends[shard])
        try:
            texts = self._texts(shard, has_completions).slice(offset, size).to_pylist()
        except _READ_ERRORS:
            texts = []
        if len(texts) != size:
            texts = [{}] * size  # the file has gone or changed since
        completions = []
        for row, text in enumerate(texts, start=first):
            numbers = {name: self.columns[name][row].item() for name in (*_NUMBERS, *self.reward_names)}
            completions.append(numbers | {"completion": _text(text, "completion"), "extra": _text(text, "extra")})
        verdict, fate = ((*names, OTHER)[self.columns[name][first]] for name, names in _NAMES.items())
        prompt, solution = (_text(texts[0], name) for name in ("prompt", "solution"))
        return Group(number, completions[0]["step"], verdict, fate, prompt, solution, completions)

    def _read_texts(self, shard: int, has_completions: bool) -> pa.Table:
        return _read_columns(self.paths[shard], (*_TEXTS, "extra") if has_completions else _TEXTS[:2])


def _text(texts: dict[str, Any], name: str) -> str:
    value = texts.get(name)
    return value if isinstance(value, str) else ""


def _read_shard(path: Path) -> _Shard:
    with pq.ParquetFile(path) as file:
        _check_size(file)
        schema = file.schema_arrow
        rewards = [name for name in schema.names if name.startswith("rewards/")][:_MAX_REWARDS]
        table = file.read([*_NUMBERS, *_NAMES, *rewards])
        if "completion" not in schema.names:
            raise ValueError("has no completions")
    columns = {name: _as_numpy(table[name].cast(kind)) for name, kind in _NUMBERS.items()}
    for name, names in _NAMES.items():
        codes = pc.index_in(table[name].cast(pa.string()), pa.array(names))
        columns[name] = pc.fill_null(codes, len(names)).to_numpy(zero_copy_only=False).astype(np.int8)
    try:
        facts = json.loads((schema.metadata or {}).get(b"trl_dapo", b"{}"))
    except (ValueError, RecursionError):
        facts = {}
    return _Shard(
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


def _read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        _check_size(file)
        return file.read([name for name in names if name in file.schema_arrow.names])


def _rows_with(column: pa.ChunkedArray, needle: str) -> np.ndarray:
    """Returns which texts contain another, shape `(R,)`, bool; what is written once for many rows is searched once."""
    hits = []
    for chunk in column.chunks:
        is_coded = pa.types.is_dictionary(chunk.type)
        found = pc.match_substring(
            (chunk.dictionary if is_coded else chunk).cast(pa.string()), needle, ignore_case=True
        )
        hits.append(pc.fill_null(found.take(chunk.indices) if is_coded else found, False))
    return np.concatenate([np.zeros(0, dtype=bool), *(part.to_numpy(zero_copy_only=False) for part in hits)])


def _check_size(file: pq.ParquetFile) -> None:
    # A few bytes can unpack to any size.
    size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
    if size > _MAX_FILE_BYTES:
        raise ValueError("too large")


def _without_replaced(shards: list[_Shard]) -> list[_Shard]:
    """Leaves out what an earlier start recorded from the step on at which a later one, resumed, began anew."""
    kept: list[_Shard] = []
    earliest = np.inf
    for start in sorted({shard.start for shard in shards}, reverse=True):
        of_start = [shard for shard in shards if shard.start == start and len(shard.columns["step"])]
        kept = [shard for shard in of_start if shard.columns["step"].min() < earliest] + kept
        earliest = min([earliest, *(shard.columns["step"].min() for shard in of_start)])
    return kept


def _within(values: np.ndarray, lowest: float | None, highest: float | None) -> np.ndarray:
    # NaN is in no range.
    inside = np.ones(len(values), dtype=bool)
    if lowest is not None:
        inside &= values >= lowest
    if highest is not None:
        inside &= values <= highest
    return inside


def _int(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _counts(value: Any) -> dict[str, int]:
    counts = value if isinstance(value, dict) else {}
    return {name: _int(counts.get(name)) for name in ("trained", "surplus", *VERDICTS[1:])}
