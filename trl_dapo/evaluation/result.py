"""The figures of an evaluation, and the files that they are written to."""

import dataclasses
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_dapo.data.source import DataSource
from trl_dapo.grading.equivalence import Grade

from .answer_classes import problem_figures
from .k_metrics import Estimate, estimate


RESULTS_FILE = "results.json"


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """
    What an evaluation found.

    Args:
        figures (`dict[str, Estimate]`):
            `avg@k`, `maj@k` and `pass@k`; the last two also for the powers of 2 below k. `frac_truncated`,
            `frac_no_answer` and `frac_gave_up`: shares of completions that were cut off, that give no answer, and whose
            grading was given up (they count as wrong). `mean_length` in tokens. Each is a mean over problems, with its
            95 % interval.
        k (`int`):
            Completions per problem.
        num_problems (`int`):
            Problems that were evaluated.
        num_unreadable_golds (`int`):
            How many of them have a gold that cannot be read. They count in lengths and truncation, and in nothing that
            grading says.
        settings (`dict[str, Any]`):
            All that the completions depend on: sampling settings, engine, precision, digests of weights and problems.
        versions (`dict[str, str]`):
            Versions of Python and of the packages that had a part in it.
        num_sampled (`int`):
            Completions that this call sampled; the others were in the folder. Not written to the file.
        dataset (`DataSource`):
            Where the problems came from, as far as it was said.
        output_dir (`Path`):
            The folder with `results.json`, `completions.parquet`, `problems.parquet` and `completions.jsonl`.
    """

    figures: dict[str, Estimate]
    k: int
    num_problems: int
    num_unreadable_golds: int
    settings: dict[str, Any]
    versions: dict[str, str]
    num_sampled: int
    output_dir: Path
    dataset: DataSource = dataclasses.field(default_factory=DataSource)

    def __getitem__(self, name: str) -> float:
        """Returns the value of a figure: `result["avg@32"]`."""
        return self.figures[name].value

    def to_dict(self) -> dict[str, Any]:
        """Returns what `results.json` holds. It does not depend on how often the run was interrupted."""
        content = {name: value for name, value in vars(self).items() if name not in ("num_sampled", "output_dir")}
        figures = {name: dataclasses.asdict(value) for name, value in self.figures.items()}
        return content | {"figures": figures, "dataset": dataclasses.asdict(self.dataset)}

    def table(self) -> str:
        """Returns the main figures as lines of text."""
        lines = [f"{self.num_problems} problems, {self.k} completions each", f"{'':16}{'value':>9}   95 % interval"]
        names = [f"{figure}@{self.k}" for figure in ("avg", "maj", "pass")]
        for name in [*names, "frac_truncated", "frac_no_answer", "frac_gave_up", "mean_length"]:
            figure = self.figures[name]
            scale, unit = (1, "  ") if name == "mean_length" else (100, " %")
            ends = (
                "-"
                if figure.low is None or figure.high is None
                else f"{figure.low * scale:.1f} to {figure.high * scale:.1f}{unit}"
            )
            lines.append(f"{name:16}{figure.value * scale:7.1f}{unit}   {ends}".rstrip())
        if self.num_unreadable_golds:
            lines.append(f"{self.num_unreadable_golds} problems have an unreadable gold and count only in lengths.")
        return "\n".join(lines)


def summarize(
    records: list[list[dict[str, Any]]],
    settings: dict[str, Any],
    num_sampled: int,
    output_dir: Path,
    dataset: DataSource | None = None,
) -> EvaluationResult:
    """
    Returns the figures of completions.

    Args:
        records (`list[list[dict[str, Any]]]`):
            For each problem its k completions, as the lines of `completions.jsonl`.
        settings (`dict[str, Any]`):
            All that the completions depend on; of them `k` and `seed` are read.
        num_sampled (`int`):
            Completions that were not in the folder before.
        output_dir (`Path`):
            The folder.
        dataset (`DataSource`, *optional*):
            Where the problems came from, as far as it is known.
    """
    # The gold is the same for all completions of a problem, so one that cannot be read says nothing about any of them.
    graded = [group for group in records if group[0]["grade"] != Grade.UNPARSEABLE_GOLD.value]
    values = problem_figures(
        [[record["answer"] for record in group] for group in graded],
        [[record["grade"] == Grade.CORRECT.value for record in group] for group in graded],
    )
    per_problem = {name: [problem[name] for problem in values] for name in values[0]}
    k = settings["k"]

    def shares(groups: list[list[dict[str, Any]]], column: str, value: Any) -> list[float]:
        return [sum(record[column] == value for record in group) / k for group in groups]

    per_problem["frac_truncated"] = shares(records, "is_truncated", True)
    per_problem["frac_no_answer"] = shares(graded, "grade", Grade.NO_ANSWER.value)
    per_problem["frac_gave_up"] = shares(graded, "grade", Grade.GAVE_UP.value)
    per_problem["mean_length"] = [sum(record["num_tokens"] for record in group) / k for group in records]
    packages = ("trl-dapo", "torch", "transformers", "math-verify")
    return EvaluationResult(
        figures={name: estimate(column, seed=settings["seed"]) for name, column in per_problem.items()},
        k=k,
        num_problems=len(records),
        num_unreadable_golds=len(records) - len(graded),
        settings=settings,
        versions={"python": platform.python_version()} | {name: version(name) for name in packages},
        num_sampled=num_sampled,
        output_dir=output_dir,
        dataset=dataset or DataSource(),
    )


def write_result(
    result: EvaluationResult, problems: Sequence[dict[str, Any]], records: Sequence[Sequence[dict[str, Any]]]
) -> None:
    """Writes `completions.parquet`, `problems.parquet` and last `results.json`."""
    Dataset.from_list([record for group in records for record in group]).to_parquet(
        result.output_dir / "completions.parquet"
    )
    k = result.k
    rows = [
        problem
        | {
            "solution": str(problem["solution"]),
            "num_correct": sum(record["grade"] == Grade.CORRECT.value for record in group),
            "num_truncated": sum(record["is_truncated"] for record in group),
            "mean_length": sum(record["num_tokens"] for record in group) / k,
        }
        for problem, group in zip(problems, records, strict=True)
    ]
    Dataset.from_list(rows).to_parquet(result.output_dir / "problems.parquet")
    unfinished = result.output_dir / f"{RESULTS_FILE}.tmp"
    unfinished.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    unfinished.replace(result.output_dir / RESULTS_FILE)
