"""Finds the rows of a dataset that cannot be trained on or graded, before the run starts."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from trl_dapo.grading.answers import gold_answer
from trl_dapo.grading.equivalence import Grade, grade
from trl_dapo.grading.golds import gold_faults


logger = logging.getLogger(__name__)

# Why a row is reported, in the order of the report.
WRONG_TYPE = "wrong type"
EMPTY_PROMPT = "empty prompt"
UNREADABLE_GOLD = "unreadable gold"
CONFLICTING_GOLD = "same prompt, other gold"
DUPLICATE_PROMPT = "duplicate prompt"
_REASONS = (WRONG_TYPE, EMPTY_PROMPT, UNREADABLE_GOLD, CONFLICTING_GOLD, DUPLICATE_PROMPT)
# With these, generation fails or has no question. With the others the trainer works, but less efficiently.
_UNUSABLE = (WRONG_TYPE, EMPTY_PROMPT)


@dataclass(frozen=True, slots=True)
class BadRow:
    """
    A row with a fault.

    Args:
        row (`int`):
            Its number in the dataset, from 0.
        reason (`str`):
            One of the constants of this module.
        detail (`str`):
            The fault, with the values.
    """

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProblemReport:
    """
    The result of `check_problems`.

    Args:
        num_rows (`int`):
            Rows that were checked.
        bad_rows (`list[BadRow]`):
            The rows with a fault, by row number. Each row is listed once, with its first fault.
    """

    num_rows: int
    bad_rows: list[BadRow]

    @property
    def counts(self) -> dict[str, int]:
        """Number of bad rows of each reason that occurs."""
        counts = Counter(bad.reason for bad in self.bad_rows)
        return {reason: counts[reason] for reason in _REASONS if counts[reason]}

    def describe(self, max_rows: int = 5) -> str:
        """Returns a text with the number of bad rows, and the first `max_rows` of them, for each reason."""
        if not self.bad_rows:
            return f"All {self.num_rows} problems are usable."
        lines = [f"{len(self.bad_rows)} of {self.num_rows} problems have a fault:"]
        for reason, count in self.counts.items():
            lines.append(f"  {count} x {reason}")
            shown = [bad for bad in self.bad_rows if bad.reason == reason][:max_rows]
            lines += [f"    row {bad.row}: {bad.detail}" for bad in shown]
            lines += [f"    ... and {count - len(shown)} more"] * (count > len(shown))
        return "\n".join(lines)

    def refuse_unusable(self, name: str) -> None:
        """
        Refuses a dataset that cannot be used. Logs the report as a warning if there are other faults.

        Args:
            name (`str`):
                Name of the dataset, for the message.

        Raises:
            `ValueError`: when a prompt or solution has a wrong type, a prompt is empty, or no gold answer is readable.
        """
        num_unusable = sum(self.counts.get(reason, 0) for reason in _UNUSABLE)
        if num_unusable:
            raise ValueError(
                f"{name} has {num_unusable} unusable rows. {self.describe()}\nCorrect these rows, or drop them: "
                "bad = {bad.row for bad in check_problems(dataset).bad_rows}; "
                "dataset.select([row for row in range(len(dataset)) if row not in bad])."
            )
        if self.counts.get(UNREADABLE_GOLD, 0) == self.num_rows:
            raise ValueError(
                f"{name} has no readable gold answer. {self.describe()}\nThe `solution` column must hold a number, a LaTeX "
                "expression, a short text, or a solution that ends with `\\boxed{...}` or `#### n`."
            )
        if self.bad_rows:
            logger.warning(f"{name}: {self.describe()}")


def check_problems(dataset: Dataset, first_row: int = 0) -> ProblemReport:
    """
    Checks every row of a dataset of problems.

    It reports these faults:
    - *wrong type*: the `prompt` is neither a text nor a conversation, or the `solution` is neither a text nor a number;
    - *empty prompt*: the prompt has no text;
    - *unreadable gold*: grading cannot read the gold answer, so completions get no reward and training skips the prompt;
    - *same prompt, other gold*: an earlier row has the same prompt, but a gold answer that is not equivalent;
    - *duplicate prompt*: an earlier row has the same prompt and an equivalent gold answer.

    Args:
        dataset (`Dataset`):
            Columns `prompt` and `solution`, for example from `as_problems`.
        first_row (`int`, *optional*, defaults to 0):
            Number of the first row, if `dataset` is a part of a larger one.

    Returns:
        `ProblemReport`: The rows with a fault.

    Raises:
        `ValueError`: when a column is missing or the dataset has no rows.

    Example:

    >>> rows = [{"prompt": "1 + 1?", "solution": "2"}, {"prompt": " ", "solution": "3"}]
    >>> check_problems(Dataset.from_list(rows)).bad_rows
    [BadRow(row=1, reason='empty prompt', detail='the prompt has no text')]
    """
    if not {"prompt", "solution"} <= set(dataset.column_names):
        raise ValueError(
            f"The dataset has the columns {sorted(dataset.column_names)}, but must have 'prompt' and 'solution'. Convert rows "
            "of another shape with `as_problems`."
        )
    if len(dataset) == 0:
        raise ValueError("The dataset has no rows. Check the file, the split and the filters.")
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
    faults = gold_faults(golds.values())
    for number, gold in golds.items():
        if gold in faults:
            bad[number] = BadRow(
                number, UNREADABLE_GOLD, f"the gold answer is {_shortened(gold)}: {faults[gold].value}"
            )
    repeats = [pair for pair in repeats if pair[0] not in bad]
    for (number, first), is_same in zip(repeats, _are_equivalent(golds, repeats), strict=True):
        reason = DUPLICATE_PROMPT if is_same else CONFLICTING_GOLD
        detail = f"row {first} has the same prompt"
        if not is_same:
            detail += f" and the gold answer {_shortened(golds[first])}, this row has {_shortened(golds[number])}"
        bad[number] = BadRow(number, reason, detail)
    return ProblemReport(len(dataset), [bad[number] for number in sorted(bad)])


def _type_fault(prompt: object, solution: object) -> str | None:
    if not isinstance(prompt, str | list | None):
        return f"the prompt is of type {type(prompt).__name__}, but must be a text or a conversation"
    if isinstance(prompt, list) and not all(
        isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in prompt
    ):
        return "the prompt is a list, but its elements are not turns with 'role' and 'content'"
    if not isinstance(solution, str | int | float | None):
        return f"the solution is of type {type(solution).__name__}, but must be a text or a number"
    return None


def _has_text(prompt: str | list[dict[str, Any]] | None) -> bool:
    return any(text.strip() for text in _texts(prompt))


def _texts(prompt: str | list[dict[str, Any]] | None) -> Iterator[str]:
    """Yields the text of a plain prompt, or the texts of the last turn of a conversation, which holds the question."""
    if isinstance(prompt, str):
        yield prompt
    elif prompt:
        content = prompt[-1]["content"]
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text


def _are_equivalent(golds: dict[int, str], pairs: list[tuple[int, int]]) -> list[bool]:
    """Returns for each pair of rows whether their gold answers are equivalent."""
    texts = {(golds[first], golds[number]) for number, first in pairs if golds[first] != golds[number]}
    ordered = sorted(texts)
    graded = grade([first for first, _ in ordered], [f"\\boxed{{{gold_answer(other)}}}" for _, other in ordered])
    is_same = {pair: result.grade is Grade.CORRECT for pair, result in zip(ordered, graded, strict=True)}
    return [is_same.get((golds[first], golds[number]), True) for number, first in pairs]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
