"""The results in a model card: metrics on held-out data logged in training, and evaluations by `trl-dapo eval`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from trl_dapo.data.held_out import HeldOut
from trl_dapo.data.source import DataSource
from trl_dapo.evaluation.result import RESULTS_FILE

from .card_text import as_code, as_markdown, as_table, single_line
from .facts import RunFacts


_LOGGED_FIGURE = re.compile(r"^eval_(?:(?P<dataset>.+)_)?(?P<figure>(?:avg|maj|pass)@(?P<k>\d+))$", re.DOTALL)
# Metrics of training in the card, with their labels. The card shows the first and the last logged value of each.
_TRAINING_FIGURES = {
    "dapo/sampled_accuracy": "accuracy over all sampled completions",
    "dapo/trained_accuracy": "accuracy over the trained batch, which the filter pulls towards one half",
    "dapo/acceptance_rate": "informative groups / sampled groups",
    "dapo/rollout_efficiency": "trained tokens / generated tokens",
    "dapo/entropy": "entropy in nats per token",
    "completions/mean_length": "mean length in tokens",
    "dapo/overlong/frac": "share of overlong completions",
    "dapo/data_passes": "passes over the data",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """
    An evaluation by `trl-dapo eval`, as its `results.json` holds it.

    Args:
        source (`DataSource`):
            Where the problems came from.
        figures (`dict[str, dict[str, float | None]]`):
            `value`, `low` and `high` of each metric; the last two are the ends of its 95 % interval.
        num_problems (`int`), num_unreadable_golds (`int`):
            Number of problems, and of those whose gold answer cannot be read.
        settings (`dict[str, Any]`):
            k, temperature, top-p and others, and the digest of the weights.
    """

    source: DataSource
    figures: dict[str, dict[str, float | None]]
    num_problems: int
    num_unreadable_golds: int
    settings: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "Evaluation":
        """
        Reads an evaluation.

        Args:
            path (`str` or `Path`):
                Folder of the evaluation, or its `results.json`.

        Raises:
            `FileNotFoundError`: there is no evaluation.
            `ValueError`: the file was not written by `trl-dapo eval`.
        """
        file = result_file(path)
        if not file.is_file():
            raise FileNotFoundError(f"There is no {file}. Give the --output_dir of `trl-dapo eval`.")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            named = ("figures", "num_problems", "num_unreadable_golds", "settings")
            return cls(DataSource.from_dict(content.get("dataset") or {}), *(content[name] for name in named))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{file} was not written by `trl-dapo eval`: {error!r}. Give the --output_dir of `trl-dapo eval`."
            ) from error


def result_file(path: str | Path) -> Path:
    """Returns the `results.json` of an evaluation, given its folder or this file."""
    return Path(path) / RESULTS_FILE if Path(path).is_dir() else Path(path)


def logged_table(facts: RunFacts) -> str:
    """Returns a table of the metrics on held-out data that training logged at its first and its last evaluation."""
    entries = _evaluations_logged(facts.log_history)
    names = list(dict.fromkeys(name for entry in entries for name in entry if _LOGGED_FIGURE.match(name)))
    rows, steps = [], sorted({entry["step"] for entry in entries})
    shown = steps[:1] + steps[-1:] if len(steps) > 1 else steps
    for name in names:
        values = [_value_at(entries, name, step) for step in shown]
        found = _LOGGED_FIGURE.match(name)
        assert found is not None
        data = as_markdown(_held_out(facts, found["dataset"]).name)
        problems = facts.num_eval_rows.get(found["dataset"] or "")
        rows.append([as_code(found["figure"]), data, str(problems or ""), *map(_percent, values)])
    header = ["metric", "data", "problems", *(f"step {step}" for step in shown)]
    return as_table(header, rows)


def held_out_lines(facts: RunFacts) -> list[str]:
    """Returns how the held-out problems were kept apart, and where they were not."""
    lines = [] if facts.held_out is None else [HeldOut(**facts.held_out).describe()]
    for name, count in facts.num_shared_prompts.items():
        data = as_markdown(_held_out(facts, name or None).name)
        lines.append(f"{data}: {count} prompts are in the training data too, so its metrics are no held-out accuracy.")
    return lines


def training_table(facts: RunFacts) -> str:
    """Returns a table of some metrics of training, with their first and their last logged value."""
    points = {
        name: [(entry["step"], entry[name]) for entry in facts.log_history if entry.get(name) is not None]
        for name in _TRAINING_FIGURES
    }
    steps = sorted({step for logged in points.values() for step, _ in logged})
    if not steps:
        return ""
    shown = steps[:1] + steps[-1:] if len(steps) > 1 else steps
    rows = [
        [
            as_code(name),
            _TRAINING_FIGURES[name],
            *(f"{dict(logged)[step]:.4g}" if step in dict(logged) else "" for step in shown),
        ]
        for name, logged in points.items()
        if logged
    ]
    return as_table(["metric", "meaning", *(f"step {step}" for step in shown)], rows)


def evaluation_section(evaluation: Evaluation) -> str:
    """Returns an evaluation as a line that says how it was done, and a table of its metrics."""
    settings, source = evaluation.settings, evaluation.source
    parts = [as_markdown(source.name or "problems from a file")]
    parts += [
        f"{label} {as_markdown(value)}" for label, value in (("", source.config), ("split", source.split)) if value
    ]
    text = (
        f"**{', '.join(part.strip() for part in parts)}**: {evaluation.num_problems} problems, {settings['k']} completions "
        f"each, temperature {settings['temperature']:g}, top-p {settings['top_p']:g}, at most "
        f"{settings['max_completion_length']} tokens, seed {settings['seed']}, {as_markdown(settings['engine'])} in "
        f"{as_markdown(str(settings['dtype']).removeprefix('torch.'))}."
    )
    if evaluation.num_unreadable_golds:
        text += f" Problems with an unreadable gold, which count only in lengths: {evaluation.num_unreadable_golds}."
    rows = []
    for name, figure in evaluation.figures.items():
        show = _number if name == "mean_length" else _percent
        interval = "" if figure["low"] is None else f"{show(figure['low'])} to {show(figure['high'])}"
        rows.append([as_code(name), show(figure["value"]), interval])
    return f"{text}\n\n{as_table(['metric', 'value', '95 % interval over problems'], rows)}"


def model_index(facts: RunFacts, evaluations: Sequence[Evaluation]) -> list[EvalResult]:
    """
    Returns the results of these weights for the metadata of the card: shares in [0, 1].

    Metrics of training are included only if they were logged at the step of the weights, on data without prompts that
    train.
    """
    results = []
    for name, value in _logged_now(facts).items():
        found = _LOGGED_FIGURE.match(name)
        if found is None or facts.num_shared_prompts.get(found["dataset"] or ""):
            continue
        args: dict[str, Any] = {
            "num_problems": facts.num_eval_rows.get(found["dataset"] or ""),
            "logged_in": "training",
        }
        if facts.held_out is not None and facts.held_out["is_cut_from_training"]:
            args["held_out"] = "rows cut off the training data"
        args |= {key: facts.sampling[key] for key in ("temperature", "top_p", "max_completion_length")}
        args |= {"k": int(found["k"])}
        results.append(_eval_result(_held_out(facts, found["dataset"]), found["figure"], value, args))
    for evaluation in evaluations:
        settings = evaluation.settings
        shared = {name: settings[name] for name in ("k", "temperature", "top_p", "max_completion_length", "seed")}
        for name, figure in evaluation.figures.items():
            if "@" in name and figure["value"] is not None:
                interval = None if figure["low"] is None else [figure["low"], figure["high"]]
                args = shared | {"num_problems": evaluation.num_problems, "interval_95": interval}
                results.append(_eval_result(evaluation.source, name, figure["value"], args))
    return results


def _held_out(facts: RunFacts, name: str | None) -> DataSource:
    """Returns the source of the held-out problems with this name in the trainer; `None` is a single, unnamed dataset."""
    if name is None and facts.eval_data.name is not None:
        return facts.eval_data
    return DataSource(name or "held-out problems")


def _eval_result(source: DataSource, figure: str, value: float, args: dict[str, Any]) -> EvalResult:
    # The Hub identifies datasets by their id. A dataset without an id gets its own type, so that no two are mixed up.
    name = single_line(source.name or "problems from a file")
    kind = name if source.is_on_hub else re.sub(r"[^a-z0-9]+", "-", f"local {name}".lower()).strip("-")
    return EvalResult(
        task_type="text-generation",
        dataset_type=kind,
        dataset_name=name,
        dataset_config=source.config and single_line(source.config),
        dataset_split=source.split and single_line(source.split),
        dataset_revision=source.revision,
        metric_type="accuracy" if figure.startswith("avg@") else figure,
        metric_name=figure,
        metric_value=value,
        metric_args={key: part for key, part in args.items() if part is not None},
    )


def _evaluations_logged(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for entry in history if any(_LOGGED_FIGURE.match(name) for name in entry)]


def _logged_now(facts: RunFacts) -> dict[str, float]:
    """Returns the last value of each metric that was logged at the step of the weights."""
    now: dict[str, float] = {}
    for entry in _evaluations_logged(facts.log_history):
        if entry["step"] == facts.step:
            now |= {name: value for name, value in entry.items() if value is not None}
    return now


def _value_at(entries: Sequence[Mapping[str, Any]], name: str, step: int) -> float | None:
    values = [entry[name] for entry in entries if entry["step"] == step and entry.get(name) is not None]
    return values[-1] if values else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
