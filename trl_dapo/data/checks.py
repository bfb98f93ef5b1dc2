"""Finds the rows of a dataset that cannot train or be graded, before a run spends hours beside them."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from trl_dapo.grading.answers import gold_answer
from trl_dapo.grading.equivalence import Grade, grade


logger = logging.getLogger(__name__)

# Why a row is bad, in the order of the report.
WRONG_TYPE = "wrong type"
EMPTY_PROMPT = "empty prompt"
UNREADABLE_GOLD = "unreadable gold"
CONFLICTING_GOLD = "same prompt, other gold"
DUPLICATE_PROMPT = "duplicate prompt"
_REASONS = (WRONG_TYPE, EMPTY_PROMPT, UNREADABLE_GOLD, CONFLICTING_GOLD, DUPLICATE_PROMPT)
# These make generation fail or train on nothing; the trainer copes with the others, at a cost.
_UNUSABLE = (WRONG_TYPE, EMPTY_PROMPT)


@dataclass(frozen=True, slots=True)
class BadRow:
    """
    A row that something is wrong with.

    Args:
        row (`int`):
            Its number in the dataset, from 0.
        reason (`str`):
            One of the constants of this module.
        detail (`str`):
            What was found.
    """

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProblemReport:
    """
    What `check_problems` found.

    Args:
        num_rows (`int`):
            Rows that were looked at.
        bad_rows (`list[BadRow]`):
            What is wrong, by row number. A row is listed once, for the first reason that holds.
    """

    num_rows: int
    bad_rows: list[BadRow]

    @property
    def counts(self) -> dict[str, int]:
        """Bad rows by reason; reasons without any are left out."""
        counts = Counter(bad.reason for bad in self.bad_rows)
        return {reason: counts[reason] for reason in _REASONS if counts[reason]}

    def describe(self, max_rows: int = 5) -> str:
        """Returns a text with the count, and the first `max_rows` rows, of every reason."""
        if not self.bad_rows:
            return f"All {self.num_rows} problems are usable."
        lines = [f"{len(self.bad_rows)} of {self.num_rows} problems should be looked at:"]
        for reason, count in self.counts.items():
            lines.append(f"  {count} x {reason}")
            shown = [bad for bad in self.bad_rows if bad.reason == reason][:max_rows]
            lines += [f"    row {bad.row}: {bad.detail}" for bad in shown]
            lines += [f"    ... and {count - len(shown)} more"] * (count > len(shown))
        return "\n".join(lines)

    def refuse_unusable(self, name: str) -> None:
        """
        Logs the report if there is anything to report, and refuses a dataset that cannot be used.

        Args:
            name (`str`):
                What the dataset is called, for the message.

        Raises:
            `ValueError`: when a prompt or solution has a wrong type or a prompt is empty, or when no gold is readable.
        """
        num_unusable = sum(self.counts.get(reason, 0) for reason in _UNUSABLE)
        if num_unusable:
            raise ValueError(
                f"{name} has {num_unusable} unusable rows. {self.describe()}\nFix them, or drop them: "
                "bad = {bad.row for bad in check_problems(dataset).bad_rows}; "
                "dataset.select([row for row in range(len(dataset)) if row not in bad])."
            )
        if self.counts.get(UNREADABLE_GOLD, 0) == self.num_rows:
            raise ValueError(
                f"{name} has no readable gold. {self.describe()}\nThe `solution` column should hold a number, a LaTeX "
                "expression, a short text, or a solution that ends in `\\boxed{...}` or `#### n`."
            )
        if self.bad_rows:
            logger.warning(f"{name}: {self.describe()}")


def check_problems(dataset: Dataset, first_row: int = 0) -> ProblemReport:
    """
    Looks at every row of a dataset of problems.

    Reported are a `prompt` that is neither a text nor a conversation, or a `solution` that is neither a text nor a
    number (*wrong type*); a prompt without text (*empty prompt*); a gold that grading cannot read (*unreadable gold*: such
    prompts get no reward and are skipped in training); a prompt that has occurred before, with an equivalent gold
    (*duplicate prompt*) or with another one (*same prompt, other gold*).

    Args:
        dataset (`Dataset`):
            Columns `prompt` and `solution`, as `as_problems` returns them or made by hand.
        first_row (`int`, *optional*, defaults to 0):
            Number of the first row, where `dataset` is the rest of a larger one.

    Returns:
        `ProblemReport`: What is wrong, by row number.

    Raises:
        `ValueError`: when a column is missing or there are no rows.

    Example:

    >>> rows = [{"prompt": "1 + 1?", "solution": "2"}, {"prompt": " ", "solution": "3"}]
    >>> check_problems(Dataset.from_list(rows)).bad_rows
    [BadRow(row=1, reason='empty prompt', detail='the prompt has no text')]
    """
    missing = {"prompt", "solution"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"The dataset has the columns {sorted(dataset.column_names)}, but needs {sorted(missing)}. "
            "Turn rows of other shapes into problems with `as_problems`."
        )
    if len(dataset) == 0:
        raise ValueError("The dataset has no rows. Check the file, the split and any filter.")
    bad: dict[int, BadRow] = {}
    golds: dict[int, str] = {}
    repeats: list[tuple[int, int]] = []
    first_of: dict[str, int] = {}
    for number, problem in enumerate(dataset.select_columns(["prompt", "solution"]), start=first_row):
        prompt, solution = problem["prompt"], problem["solution"]
        fault = _type_fault(prompt, solution)
        if fault is not None:
            bad[number] = BadRow(number, WRONG_TYPE, fault)
        elif not _has_text(prompt):
            bad[number] = BadRow(number, EMPTY_PROMPT, "the prompt has no text")
        else:
            golds[number] = "" if solution is None else str(solution)
            first = first_of.setdefault(json.dumps(prompt, sort_keys=True, default=str), number)
            if first != number:
                repeats.append((number, first))
    unreadable = _unreadable(set(golds.values()))
    for number, gold in golds.items():
        if gold in unreadable:
            bad[number] = BadRow(number, UNREADABLE_GOLD, f"the gold is {_shortened(gold)}")
    repeats = [pair for pair in repeats if pair[0] not in bad]
    for (number, first), is_same in zip(repeats, _are_equivalent(golds, repeats), strict=True):
        reason = DUPLICATE_PROMPT if is_same else CONFLICTING_GOLD
        detail = f"the prompt of row {first}"
        if not is_same:
            detail += f", whose gold is {_shortened(golds[first])}; here it is {_shortened(golds[number])}"
        bad[number] = BadRow(number, reason, detail)
    return ProblemReport(len(dataset), [bad[number] for number in sorted(bad)])


def _type_fault(prompt: Any, solution: Any) -> str | None:
    if not isinstance(prompt, str | list | None):
        return f"the prompt is of type {type(prompt).__name__}, but must be a text or a conversation"
    if isinstance(prompt, list) and not all(
        isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in prompt
    ):
        return "the prompt is a list, but not of turns with 'role' and 'content'"
    if not isinstance(solution, str | int | float | None):
        return f"the solution is of type {type(solution).__name__}, but must be a text or a number"
    return None


def _has_text(prompt: Any) -> bool:
    return any(text.strip() for text in _texts(prompt))


def _texts(prompt: Any) -> Iterator[str]:
    """Yields the texts of a plain prompt, or of the last turn of a conversation: a system turn asks nothing."""
    if isinstance(prompt, str):
        yield prompt
    elif prompt:
        content = prompt[-1]["content"]
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text


def _unreadable(golds: set[str]) -> set[str]:
    ordered = sorted(golds)
    graded = grade(ordered, [""] * len(ordered))
    return {gold for gold, result in zip(ordered, graded, strict=True) if result.grade is Grade.UNPARSEABLE_GOLD}


def _are_equivalent(golds: dict[int, str], pairs: list[tuple[int, int]]) -> list[bool]:
    """Tells for each pair of rows whether the gold of one answers the other."""
    texts = {(golds[first], golds[number]) for number, first in pairs if golds[first] != golds[number]}
    ordered = sorted(texts)
    graded = grade([first for first, _ in ordered], [f"\\boxed{{{gold_answer(other)}}}" for _, other in ordered])
    is_same = {pair: result.grade is Grade.CORRECT for pair, result in zip(ordered, graded, strict=True)}
    return [is_same.get((golds[first], golds[number]), True) for number, first in pairs]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
