"""`trl-dapo grade`: which golds of a dataset can be read, and how its completions are graded."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_dapo.data.problems import load_rows
from trl_dapo.grading.answers import declared_answer, gold_answer
from trl_dapo.grading.equivalence import Grade, GradedAnswer, grade
from trl_dapo.grading.golds import GoldFault, gold_faults, gold_kind
from trl_dapo.rewards.accuracy import completion_texts, gold_texts

from .option_parser import parse_options
from .other_graders import GRADERS, ask_others, disagree


_GOLD_COLUMNS = ("solution", "gold", "answer", "reward_model")
_COMPLETION_COLUMNS = ("completion", "completions", "response", "output")
# Characters of a gold or an answer in the table.
_MAX_SHOWN = 48


@dataclass
class GradeArguments:
    """Options of `trl-dapo grade`."""

    dataset_name: str = field(metadata={"help": "A .jsonl, .json or .parquet file, a folder, or a Hub id."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a folder or Hub dataset."})
    gold_column: str | None = field(
        default=None,
        metadata={"help": "Column of the golds. Unset: the first of solution, gold, answer, reward_model."},
    )
    completion_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the completions. Unset: the first of completion, completions, response, output; without one, "
            "each gold is graded against itself."
        },
    )
    num_rows: int | None = field(default=None, metadata={"help": "Grade only the first so many rows."})
    compare: bool = field(default=True, metadata={"help": "Ask math-verify and TRL too, about 30 rows a second."})
    max_shown: int = field(default=20, metadata={"help": "Rows that a table shows at most."})
    output_file: str | None = field(
        default=None, metadata={"help": "Writes every row with its grade there, as JSON lines."}
    )


def run(arguments: Sequence[str]) -> None:
    """
    Grades the rows of a dataset and prints what there is to see.

    Args:
        arguments (`Sequence[str]`):
            The options, such as `["--dataset_name", "FILE"]`.

    Raises:
        `ValueError`: when a column is missing, there are no rows, or `--num_rows` is out of range.
    """
    (args,) = parse_options("grade", (GradeArguments,), arguments)
    rows = load_rows(args.dataset_name, args.dataset_split, args.dataset_config)
    if len(rows) == 0:
        raise ValueError("The dataset has no rows. Check the file, the split and any filter.")
    if args.num_rows is not None:
        if not 1 <= args.num_rows <= len(rows):
            raise ValueError(f"--num_rows is {args.num_rows}, but must be between 1 and {len(rows)}.")
        rows = rows.select(range(args.num_rows))
    golds = gold_texts(_golds(rows, args.gold_column))
    column = _column(rows, args.completion_column, _COMPLETION_COLUMNS, "--completion_column")
    completions = completion_texts(rows[column]) if column else [_against_itself(gold) for gold in golds]
    faults = gold_faults(golds)
    print(describe_golds(golds, faults, args.max_shown))
    graded = grade(golds, completions)
    what = f"The completions in {column!r}" if column else "The golds against themselves"
    print(f"\n{what}: {_counts(result.grade.value for result in graded)}.")
    if not column:
        print(_table(["row", "gold", "grade"], _unequal(golds, graded), args.max_shown), end="")
    said = _ask_all(golds, completions) if args.compare else None
    if said is not None:
        rows_of = [
            number
            for number, (result, opinions) in enumerate(zip(graded, said, strict=True))
            if disagree(result.grade, opinions)
        ]
        print(f"\nmath-verify or TRL says something else in {len(rows_of)} of {len(golds)} rows.")
        cells = [
            [number, golds[number], graded[number].extracted, graded[number].grade.value, *said[number]]
            for number in rows_of
        ]
        print(_table(["row", "gold", "answer", "grade", *GRADERS], cells, args.max_shown), end="")
    if args.output_file is not None:
        _write(Path(args.output_file), golds, graded, said)
        print(f"\nWritten to {args.output_file}")


def describe_golds(golds: Sequence[str], faults: dict[str, GoldFault], max_shown: int) -> str:
    """
    Returns how many golds can be read and of what kinds they are, and names those that cannot be read.

    >>> print(describe_golds(["18", "7", "proof"], {"proof": GoldFault.PLACEHOLDER}, max_shown=5))
    Golds: 2 of 3 can be read (2 number).
      1 x placeholder
        row 2: 'proof'
    """
    kinds = _counts(gold_kind(gold) for gold in golds if gold not in faults)
    num_readable = sum(gold not in faults for gold in golds)
    lines = [f"Golds: {num_readable} of {len(golds)} can be read" + (f" ({kinds})." if kinds else ".")]
    for fault in GoldFault:
        rows = [number for number, gold in enumerate(golds) if faults.get(gold) is fault]
        if rows:
            lines.append(f"  {len(rows)} x {fault.value}")
            lines += [f"    row {number}: {_shortened(golds[number])!r}" for number in rows[:max_shown]]
            lines += [f"    ... and {len(rows) - max_shown} more"] * (len(rows) > max_shown)
    return "\n".join(lines)


def _golds(rows: Dataset, name: str | None) -> list[Any]:
    column = _column(rows, name, _GOLD_COLUMNS, "--gold_column")
    if column is None:
        raise ValueError(
            f"The dataset has the columns {sorted(rows.column_names)}, but none of {', '.join(_GOLD_COLUMNS)}. Name the column "
            "of the golds with --gold_column."
        )
    golds = rows[column]
    if column == "reward_model":
        return [(gold or {}).get("ground_truth") for gold in golds]
    return list(golds)


def _column(rows: Dataset, name: str | None, candidates: Sequence[str], option: str) -> str | None:
    if name is None:
        return next((column for column in candidates if column in rows.column_names), None)
    if name not in rows.column_names:
        raise ValueError(f"{option} is {name!r}, but must be one of the columns {sorted(rows.column_names)}.")
    return name


def _against_itself(gold: str) -> str:
    # A whole solution declares its answer; a bare one is put into a box.
    return gold if declared_answer(gold) is not None and gold_answer(gold) != gold.strip() else f"\\boxed{{{gold}}}"


def _unequal(golds: Sequence[str], graded: Sequence[GradedAnswer]) -> list[list[Any]]:
    return [
        [number, golds[number], result.grade.value]
        for number, result in enumerate(graded)
        if result.grade not in (Grade.CORRECT, Grade.UNPARSEABLE_GOLD)
    ]


def _ask_all(golds: Sequence[str], completions: Sequence[str]) -> list[tuple[Any, Any]]:
    said = []
    for number, pair in enumerate(zip(golds, completions, strict=True), start=1):
        said.append(ask_others(*pair))
        if number % 500 == 0:
            print(f"asked math-verify and TRL about {number} of {len(golds)} rows", file=sys.stderr, flush=True)
    return said


def _counts(names: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]], max_shown: int) -> str:
    if not rows:
        return ""
    cells = [list(names), *([_shortened(str(cell)) for cell in row] for row in rows[:max_shown])]
    widths = [max(len(row[place]) for row in cells) for place in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines += [f"... and {len(rows) - max_shown} more"] * (len(rows) > max_shown)
    return "\n".join(lines) + "\n"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN else "..." + line[3 - _MAX_SHOWN :]


def _write(
    path: Path, golds: Sequence[str], graded: Sequence[GradedAnswer], said: Sequence[tuple[Any, Any]] | None
) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, (gold, result) in enumerate(zip(golds, graded, strict=True)):
            row = {"row": number, "gold": gold, "answer": result.extracted, "grade": result.grade.value}
            if said is not None:
                row |= dict(zip(GRADERS, said[number], strict=True))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
