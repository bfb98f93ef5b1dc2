"""
An index of the groups in a run's record.

Numbers are kept in memory, about 100 bytes a completion. Texts stay in the files and are read when they are shown or searched.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from query import ORDERS, Query
from shard_reader import (
    MAX_REWARDS,
    NAMES,
    NUMBERS,
    READ_ERRORS,
    TEXTS,
    TURN_NUMBERS,
    VERDICTS,
    Shard,
    read_shard,
    read_texts,
    rows_with,
)


OTHER = "other"
MAX_NEEDLE = 200
# Of one group; the groups of real runs are far smaller.
MAX_COMPLETIONS = 256
CORRECT = 1 - 1e-6  # a reward from here on is full marks
# Groups by their share of correct completions; each name is that of its colour.
PASS_RATES = ("all_wrong", "below_half", "half_or_more", "all_correct")


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
    num_left_out: int = 0


@dataclass
class Batch:
    """
    Counts of the groups sampled for one generation batch, by fate; groups that are not in the record count too. Or counts of the
    recorded groups of one pass over the data, by `PASS_RATES`; then `step` is the number of the pass, from 1.
    """

    step: int
    counts: dict[str, int]


class RolloutIndex:
    """
    The record of a run.

    Args:
        paths (`Sequence[Path]`):
            The files of the record, in the order in which they were written.

    Attributes:
        problems (`list[str]`):
            Files that could not be read, and why.
        reward_names (`list[str]`):
            Columns that a query can use.
        filter_reward (`str`):
            The column that decides whether a group is informative.
    """

    def __init__(self, paths: Sequence[Path]):
        self.problems: list[str] = []
        shards = []
        for path in paths:
            try:
                shards.append(read_shard(path))
            except READ_ERRORS as error:
                self.problems.append(f"{path.name}: {type(error).__name__}")
        self._join(_without_replaced(shards))
        # Each index has its own caches, so that they are freed with it.
        self.find = functools.lru_cache(maxsize=32)(self._find)
        self._matches_text = functools.lru_cache(maxsize=8)(self._search)
        self._texts = functools.lru_cache(maxsize=32)(self._read_texts)

    def __len__(self) -> int:
        return len(self.first_rows)

    @property
    def num_completions(self) -> int:
        """Number of completions in the record."""
        return len(self.columns["step"])

    def _join(self, shards: list[Shard]) -> None:
        self.paths = [shard.path for shard in shards]
        lengths = [len(shard.columns["step"]) for shard in shards]
        self.shard_of_row = np.repeat(np.arange(len(shards)), lengths)
        self.shard_ends = np.cumsum([0, *lengths])
        empty = {
            **dict.fromkeys((*NUMBERS, *TURN_NUMBERS), np.zeros(0)),
            **dict.fromkeys(NAMES, np.zeros(0, dtype=np.int8)),
        }
        self.columns = {
            name: np.concatenate([shard.columns[name] for shard in shards]) if shards else empty[name]
            for name in empty
        }
        names = sorted({name for shard in shards for name in shard.rewards})[:MAX_REWARDS]
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
        # A group begins where the stream position or the file changes.
        position, shard = self.columns["position"], self.shard_of_row
        changes = (position[1:] != position[:-1]) | (shard[1:] != shard[:-1])
        starts = np.flatnonzero(np.concatenate([[len(position) > 0], changes])) if len(position) else np.zeros(0, int)
        self.first_rows = starts
        self.sizes = np.diff(np.concatenate([starts, [len(position)]])) if len(starts) else starts
        self.group_of_row = np.repeat(np.arange(len(starts)), self.sizes)
        self.batches = [
            Batch(_int(shard.facts.get("step")) + 1, _counts(shard.facts.get("groups"))) for shard in shards
        ]

    @functools.cached_property
    def num_correct(self) -> np.ndarray:
        """Number of correct completions of each group, shape `(N,)`."""
        is_correct = self.columns[self.filter_reward] >= CORRECT
        return np.bincount(self.group_of_row[is_correct], minlength=len(self))

    def passes(self, num_prompts: int) -> list[Batch]:
        """
        Returns how many of the recorded groups were all wrong, correct below half, from half on, and all correct, for each pass.

        Args:
            num_prompts (`int`):
                Number of prompts in the training data.
        """
        if not 0 < num_prompts < 2**31 or not len(self):
            return []
        number_of = self.columns["position"][self.first_rows] // num_prompts
        share = self.num_correct / self.sizes
        kind = np.where(share == 0, 0, np.where(share == 1, 3, np.where(share < 0.5, 1, 2)))
        counts = [(number, np.bincount(kind[number_of == number], minlength=4)) for number in np.unique(number_of)]
        return [
            Batch(int(number) + 1, dict(zip(PASS_RATES, of_pass.tolist(), strict=True))) for number, of_pass in counts
        ]

    def with_prompt(self, prompt: str) -> list[int]:
        """Returns the numbers of the groups of a prompt, in the order of the record."""
        return self._numbers_by_prompt.get(hash(prompt), [])

    @functools.cached_property
    def _numbers_by_prompt(self) -> dict[int, list[int]]:
        numbers: dict[int, list[int]] = {}
        for shard, (begin, end) in enumerate(itertools.pairwise(self.shard_ends)):
            of_shard = np.flatnonzero((self.first_rows >= begin) & (self.first_rows < end))
            try:
                prompts = read_texts(self.paths[shard], TEXTS[:1])["prompt"].take(self.first_rows[of_shard] - begin)
            except READ_ERRORS:
                continue  # the file was removed or changed
            for number, prompt in zip(of_shard.tolist(), prompts.to_pylist(), strict=True):
                numbers.setdefault(hash(prompt), []).append(number)
        return numbers

    def _find(self, query: Query) -> tuple[np.ndarray, np.ndarray]:
        """
        Returns the groups that match a query.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: the numbers of the groups in the order of the query, shape `(N,)`; and which
            completions of the record meet the conditions on a completion, shape `(R,)`, bool.
        """
        columns, first = self.columns, self.first_rows
        of_group = np.ones(len(first), dtype=bool)
        of_group &= _within(columns["step"][first], query.first_step, query.last_step)
        for name, wanted in (("verdict", query.verdicts), ("fate", query.fates)):
            if wanted:
                codes = [code for code, value in enumerate((*NAMES[name], OTHER)) if value in wanted]
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
                meets[rows] &= self._matches_text(query.text[:MAX_NEEDLE])(int(number))
        numbers = np.unique(self.group_of_row[meets])
        if query.order == ORDERS[1]:
            numbers = numbers[::-1]
        elif query.order == ORDERS[2]:
            longest = np.maximum.reduceat(columns["length"], first)[numbers] if len(first) else numbers
            numbers = numbers[np.argsort(-longest, kind="stable")]
        return numbers, meets

    def _search(self, needle: str) -> Callable[[int], np.ndarray]:
        """Returns a function that finds a text in the rows of a file, and caches the result for each file."""
        needle = needle.encode("utf-8", "replace").decode()

        @functools.cache
        def rows_with_text(number: int) -> np.ndarray:
            shard_rows = self.shard_ends[number + 1] - self.shard_ends[number]
            found = np.zeros(shard_rows, dtype=bool)
            try:
                table = read_texts(self.paths[number], TEXTS[:3])
                if table.num_rows == shard_rows:
                    for column in table.columns:
                        found |= rows_with(column, needle)
            except READ_ERRORS:
                pass  # the file was removed or changed, or its texts are not texts
            return found

        return rows_with_text

    def groups(self, numbers: Sequence[int], has_completions: bool = True) -> list[Group]:
        """
        Returns groups with their texts.

        Args:
            numbers (`Sequence[int]`):
                Numbers that `find` returned. Others are ignored.
            has_completions (`bool`, *optional*, defaults to `True`):
                Whether to read the texts of the completions too, not only prompt and solution.
        """
        return [self._group(int(number), has_completions) for number in numbers if 0 <= number < len(self)]

    def _group(self, number: int, has_completions: bool) -> Group:
        first, size = int(self.first_rows[number]), min(int(self.sizes[number]), MAX_COMPLETIONS)
        shard = int(self.shard_of_row[first])
        offset = first - int(self.shard_ends[shard])
        try:
            texts = self._texts(shard, has_completions).slice(offset, size).to_pylist()
        except READ_ERRORS:
            texts = []
        if len(texts) != size:
            texts = [{}] * size  # the file was removed or changed
        completions = []
        for row, text in enumerate(texts, start=first):
            numbers = {name: self.columns[name][row].item() for name in (*NUMBERS, *TURN_NUMBERS, *self.reward_names)}
            completions.append(numbers | {name: _text(text, name) for name in TEXTS[2:]})
        verdict, fate = ((*names, OTHER)[self.columns[name][first]] for name, names in NAMES.items())
        prompt, solution = (_text(texts[0], name) for name in ("prompt", "solution"))
        num_left_out = int(self.sizes[number]) - size
        return Group(number, completions[0]["step"], verdict, fate, prompt, solution, completions, num_left_out)

    def _read_texts(self, shard: int, has_completions: bool) -> pa.Table:
        return read_texts(self.paths[shard], TEXTS if has_completions else TEXTS[:2])


def _text(texts: dict[str, Any], name: str) -> str:
    value = texts.get(name)
    return value if isinstance(value, str) else ""


def _without_replaced(shards: list[Shard]) -> list[Shard]:
    """Removes records of an earlier start from the step on at which a later start resumed."""
    kept: list[Shard] = []
    earliest = np.inf
    for start in sorted({shard.start for shard in shards}, reverse=True):
        of_start = [shard for shard in shards if shard.start == start and len(shard.columns["step"])]
        kept = [shard for shard in of_start if shard.columns["step"].min() < earliest] + kept
        earliest = min([earliest, *(shard.columns["step"].min() for shard in of_start)])
    return kept


def _within(values: np.ndarray, lowest: float | None, highest: float | None) -> np.ndarray:
    # NaN is outside every range.
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
