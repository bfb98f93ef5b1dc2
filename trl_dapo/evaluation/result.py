"""The metrics of an evaluation, and the files that hold them."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_dapo.atomic_write import atomic_write
from trl_dapo.data.source import DataSource
from trl_dapo.grading.equivalence import Grade

from .answer_classes import problem_metrics
from .completion_log import CompletionRecord
from .k_metrics import Estimate, estimate


RESULTS_FILE = "results.json"


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """
    The result of an evaluation.

    Args:
        metrics (`dict[str, Estimate]`):
            `avg@k`, `maj@k` and `pass@k`; the last two also for the powers of 2 below k. `frac_truncated`: share of
            truncated completions. `frac_no_answer`: share of completions without an answer. `frac_gave_up`: share of
            completions whose grading reached its limit; they count as wrong. `mean_length`, in tokens. Each metric is a
            mean over problems, with its 95 % interval.
        k (`int`):
            Completions per problem.
        num_problems (`int`):
            Evaluated problems.
        num_unreadable_golds (`int`):
            How many of them have a gold answer that cannot be read. They count only in `mean_length` and `frac_truncated`.
        settings (`dict[str, Any]`):
            Everything that the completions depend on: sampling settings, engine, precision, digests of weights and problems.
        versions (`dict[str, str]`):
            Versions of Python and of the packages that the metrics depend on.
        num_sampled (`int`):
            Completions that this call sampled. The others were in the folder before. Not written to the file.
        dataset (`DataSource`):
            Where the problems come from, if it is known.
        output_dir (`Path`):
            The folder with `results.json`, `completions.parquet`, `problems.parquet` and `completions.jsonl`.
    """

    metrics: dict[str, Estimate]
    k: int
    num_problems: int
    num_unreadable_golds: int
    settings: dict[str, Any]
    versions: dict[str, str]
    num_sampled: int
    output_dir: Path
    dataset: DataSource = dataclasses.field(default_factory=DataSource)

    def __getitem__(self, name: str) -> float:
        """Returns the value of a metric: `result["avg@32"]`."""
        return self.metrics[name].value

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `results.json`. It is the same whether or not the evaluation was interrupted."""
        return {
            "figures": {name: dataclasses.asdict(value) for name, value in self.metrics.items()},
            "k": self.k,
            "num_problems": self.num_problems,
            "num_unreadable_golds": self.num_unreadable_golds,
            "settings": self.settings,
            "versions": self.versions,
            "dataset": dataclasses.asdict(self.dataset),
        }

    def table(self) -> str:
        """Returns the main metrics as lines of text."""
        lines = [f"{self.num_problems} problems, {self.k} completions each", f"{'':16}{'value':>9}   95 % interval"]
        names = [f"{metric}@{self.k}" for metric in ("avg", "maj", "pass")]
        for name in [*names, "frac_truncated", "frac_no_answer", "frac_gave_up", "mean_length"]:
            metric = self.metrics[name]
            scale, unit = (1, "  ") if name == "mean_length" else (100, " %")
            ends = (
                "-"
                if metric.low is None or metric.high is None
                else f"{metric.low * scale:.1f} to {metric.high * scale:.1f}{unit}"
            )
            lines.append(f"{name:16}{metric.value * scale:7.1f}{unit}   {ends}".rstrip())
        if self.num_unreadable_golds:
            lines.append(
                f"{self.num_unreadable_golds} problems have a gold answer that cannot be read. They count only in "
                "mean_length and frac_truncated."
            )
        return "\n".join(lines)


def summarize(
    records: Sequence[Sequence[CompletionRecord]],
    settings: dict[str, Any],
    num_sampled: int,
    output_dir: Path,
    dataset: DataSource | None = None,
) -> EvaluationResult:
    """
    Computes the metrics of completions.

    Args:
        records (`Sequence[Sequence[CompletionRecord]]`):
            The k completions of each problem.
        settings (`dict[str, Any]`):
            Everything that the completions depend on. `k` and `seed` are read here.
        num_sampled (`int`):
            Completions that were not in the folder before.
        output_dir (`Path`):
            The folder.
        dataset (`DataSource`, *optional*):
            Where the problems come from, if it is known.

    Returns:
        `EvaluationResult`: The result.
    """
    # All completions of a problem have the same gold answer: if it cannot be read, none of them can be graded.
    graded = [group for group in records if group[0]["grade"] != Grade.UNPARSEABLE_GOLD.value]
    values = problem_metrics(
        [[record["answer"] for record in group] for group in graded],
        [[record["grade"] == Grade.CORRECT.value for record in group] for group in graded],
    )
    per_problem = {name: [problem[name] for problem in values] for name in values[0]}
    k = settings["k"]

    def shares(grade: Grade) -> list[float]:
        return [sum(record["grade"] == grade.value for record in group) / k for group in graded]

    per_problem["frac_truncated"] = [sum(record["is_truncated"] for record in group) / k for group in records]
    per_problem["frac_no_answer"] = shares(Grade.NO_ANSWER)
    per_problem["frac_gave_up"] = shares(Grade.GAVE_UP)
    per_problem["mean_length"] = [sum(record["num_tokens"] for record in group) / k for group in records]
    packages = ("trl-dapo", "torch", "transformers", "math-verify")
    return EvaluationResult(
        metrics={name: estimate(column, seed=settings["seed"]) for name, column in per_problem.items()},
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
    result: EvaluationResult, problems: Sequence[Mapping[str, Any]], records: Sequence[Sequence[CompletionRecord]]
) -> None:
    """
    Writes `completions.parquet`, `problems.parquet` and, when these are complete, `results.json`.

    Args:
        result (`EvaluationResult`):
            The result.
        problems (`Sequence[Mapping[str, Any]]`):
            Rows with `prompt` and `solution`.
        records (`Sequence[Sequence[CompletionRecord]]`):
            The k completions of each problem.
    """
    completions = Dataset.from_list([record for group in records for record in group])
    atomic_write(result.output_dir / "completions.parquet", completions.to_parquet)
    k = result.k
    rows = [
        dict(problem)
        | {
            "solution": str(problem["solution"]),
            "num_correct": sum(record["grade"] == Grade.CORRECT.value for record in group),
            "num_truncated": sum(record["is_truncated"] for record in group),
            "mean_length": sum(record["num_tokens"] for record in group) / k,
        }
        for problem, group in zip(problems, records, strict=True)
    ]
    atomic_write(result.output_dir / "problems.parquet", Dataset.from_list(rows).to_parquet)
    atomic_write(result.output_dir / RESULTS_FILE, json.dumps(result.to_dict(), indent=2) + "\n")
