"""The model card: a template, filled from what the run recorded. It contains only what was recorded."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData, constants

from trl_dapo.atomic_write import atomic_write
from trl_dapo.data.source import is_hub_id
from trl_dapo.report.curves import plot_curves

from .card_results import Evaluation, evaluation_section, held_out_lines, logged_table, model_index, training_table
from .card_text import as_code, as_markdown, as_table, single_line
from .facts import RunFacts


CARD_FILE: str = constants.REPOCARD_NAME
CURVES_FILE = "curves.png"
DAPO_TITLE = "DAPO: An Open-Source LLM Reinforcement Learning System at Scale"
DAPO_CITATION = """\
@article{yu2025dapo,
    title        = {{DAPO: An Open-Source LLM Reinforcement Learning System at Scale}},
    author       = {Qiying Yu and Zheng Zhang and Ruofei Zhu and Yufeng Yuan and Xiaochen Zuo and others},
    year         = 2025,
    eprint       = {arXiv:2503.14476},
}"""


_SEAL = re.compile(r"<!-- trl-dapo (?P<digest>[0-9a-f]{64}) -->\n\Z")


def render_card(
    facts: RunFacts,
    repo_id: str | None = None,
    evaluations: Sequence[Evaluation] = (),
    has_curves: bool = False,
    license: str | None = None,
) -> ModelCard:
    """
    Returns the card of a run.

    Args:
        facts (`RunFacts`):
            What the run recorded.
        repo_id (`str`, *optional*):
            Repository of the model. `None`: none yet, so the card shows no code to load it.
        evaluations (`Sequence[Evaluation]`, *optional*):
            Evaluations of these weights by `trl-dapo eval`.
        has_curves (`bool`, *optional*, defaults to `False`):
            Whether `curves.png` is beside the card.
        license (`str`, *optional*):
            Licence, in the Hub's words (`apache-2.0`). `None`: the one that the run recorded, if any.
    """
    license = license or facts.license
    data = ModelCardData(
        base_model=facts.base_model if facts.base_model_is_on_hub else None,
        base_model_relation=_relation(facts),
        datasets=facts.train_data.name if facts.train_data.is_on_hub else None,
        library_name="peft" if facts.adapter else "transformers",
        license=None if license is None else single_line(license),
        model_name=single_line(facts.model_name),
        pipeline_tag="text-generation",
        tags=[single_line(tag) for tag in facts.tags],
        eval_results=model_index(facts, evaluations) or None,
    )
    content = _template().render(
        card_data=data.to_yaml(),
        facts=facts,
        model_name=as_markdown(facts.model_name),
        repo_id=repo_id if repo_id is not None and is_hub_id(repo_id) else None,
        base_model=_linked(facts.base_model, facts.base_model_is_on_hub, ""),
        train_data=_data(facts),
        method=[as_markdown(line) for line in facts.method],
        departures=[as_markdown(line) for line in facts.departures],
        settings=as_table(
            ["setting", "this run", "default"],
            ([as_code(name), as_code(value), as_code(default)] for name, (value, default) in facts.settings.items()),
        ),
        hardware={name: as_markdown(value) for name, value in facts.hardware.items()},
        run_time=_run_time(facts),
        adapter=_adapter(facts),
        versions=", ".join(f"{name} {as_markdown(number)}" for name, number in facts.versions.items()),
        trackers=[f"[{as_markdown(name)}]({url})" for name, url in facts.trackers.items() if _is_address(url)],
        logged=logged_table(facts),
        stop_reason=None if facts.stop_reason is None else as_markdown(facts.stop_reason),
        held_out=[as_markdown(line) for line in held_out_lines(facts)],
        training=training_table(facts),
        evaluations=[evaluation_section(evaluation) for evaluation in evaluations],
        curves=CURVES_FILE if has_curves else None,
        license_text=None if license is None else as_markdown(license),
        grades_answers_only="accuracy_reward" in facts.rewards,
        rewards=", ".join(f"{as_markdown(name)} (weight {weight:g})" for name, weight in facts.rewards.items()),
        recipe=_recipe(facts),
        inputs=_inputs(facts),
        dapo_citation=DAPO_CITATION,
        package_version=version("trl-dapo"),
    )
    return ModelCard(content)


@cache
def _template() -> jinja2.Template:
    text = files("trl_dapo.publishing").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    # Not `ModelCard.from_template`: its Jinja leaves an empty line for every condition.
    template: jinja2.Template = jinja2.Template(text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return template


def write_card(card: ModelCard, folder: str | Path) -> Path:
    """Writes a card into a folder, all or nothing, with a seal by which `is_unedited` knows it; returns its path."""
    path, text = Path(folder) / CARD_FILE, str(card)
    atomic_write(path, f"{text}<!-- trl-dapo {_digest(text)} -->\n")
    return path


def draw_curves(facts: RunFacts, folder: str | Path) -> bool:
    """
    Draws `curves.png` beside the card.

    Args:
        facts (`RunFacts`):
            What the run recorded.
        folder (`str` or `Path`):
            The folder of the card.

    Returns:
        `bool`: Whether it was drawn. `False`: the run logged nothing, or matplotlib is not installed (a warning is logged).
    """
    history = [entry for entry in facts.log_history if "step" in entry]
    return bool(history) and plot_curves({"DAPO": history}, Path(folder) / CURVES_FILE, num_columns=2) is not None


def is_unedited(folder: str | Path) -> bool:
    """Returns whether the card in a folder was written by `write_card` and not changed since."""
    text = (Path(folder) / CARD_FILE).read_text(encoding="utf-8")
    found = _SEAL.search(text)
    return found is not None and found["digest"] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _relation(facts: RunFacts) -> str | None:
    if not facts.base_model_is_on_hub:
        return None
    return "adapter" if facts.adapter else "finetune"


def _linked(name: str | None, is_on_hub: bool, folder: str) -> str | None:
    """Returns a name, with a link if the Hub has it."""
    if name is None:
        return None
    text = as_markdown(name)
    return f"[{text}](https://huggingface.co/{folder}{name})" if is_on_hub else f"{text} (not on the Hub)"


def _data(facts: RunFacts) -> str:
    source = facts.train_data
    rows = "a stream of prompts" if facts.num_train_rows is None else f"{facts.num_train_rows:,} prompts"
    if source.name is None:
        return rows
    parts = [f"{rows} of {_linked(source.name, source.is_on_hub, 'datasets/')}"]
    parts += [f"{label} {as_markdown(value)}" for label, value in (("configuration", source.config),) if value]
    parts += [f"split {as_markdown(source.split)}"] if source.split else []
    parts += [f"commit {as_markdown(source.revision)}"] if source.revision else []
    return ", ".join(parts)


def _adapter(facts: RunFacts) -> str | None:
    if not facts.adapter:
        return None
    return ", ".join(f"{as_markdown(name)} {as_markdown(value)}" for name, value in facts.adapter.items())


def _recipe(facts: RunFacts) -> list[str]:
    """Returns the lines of the recipe file. A value is JSON on one line, so that no text ends the file or its block."""
    # PyYAML reads 1e-06, as JSON has it, as a text.
    return [
        f"{name}: {yaml.safe_dump(value).splitlines()[0] if isinstance(value, float) else json.dumps(value)}"
        for name, value in (facts.recipe or {}).items()
    ]


def _inputs(facts: RunFacts) -> str | None:
    """Returns the files and modules of the user that the recipe names."""
    recipe = facts.recipe or {}
    sources = {"dataset_name": facts.train_data.is_on_hub, "eval_dataset_name": facts.eval_data.is_on_hub}
    sources["model_name_or_path"] = facts.base_model_is_on_hub
    names = [recipe[name] for name, is_on_hub in sources.items() if recipe.get(name) and not is_on_hub]
    rewards = recipe.get("reward_names")
    names += [name for name in rewards if "." in str(name)] if isinstance(rewards, list) else []
    return ", ".join(as_code(name) for name in dict.fromkeys(names)) or None


def _run_time(facts: RunFacts) -> str | None:
    """Returns how long training took, or `None` if it has not ended."""
    seconds: Any = [entry["train_runtime"] for entry in facts.log_history if entry.get("train_runtime")]
    if not seconds:
        return None
    return f"{seconds[-1] / 3600:.1f} hours" if seconds[-1] >= 7200 else f"{seconds[-1] / 60:.1f} minutes"


def _is_address(url: str) -> bool:
    return url.startswith("https://") and url.isprintable() and not set(url) & set(" ()<>\"'\\")
