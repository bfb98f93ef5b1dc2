"""`trl-dapo migrate`: turns a configuration of another framework into a recipe, and lists what it cannot translate."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from .option_tables import FRAMEWORKS, CannotTranslateError, Framework, Option


_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass
class Migration:
    """
    What a configuration becomes.

    Attributes:
        recipe (`dict[str, Any]`):
            Options of `trl-dapo train`.
        num_processes (`int` or `None`):
            GPUs that the batch sizes are for. `None`: the framework counts batches by process, as TRL does.
        translated (`list[str]`), assumed (`list[str]`), untranslated (`list[str]`), different (`list[str]`):
            Lines for the reader: what was translated, what was taken from their defaults, what was not translated and why, and
            what means something else here.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    num_processes: int | None = None
    translated: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    untranslated: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def run(arguments: Sequence[str]) -> None:
    """
    Writes a recipe, and prints what could not be translated.

    Args:
        arguments (`Sequence[str]`):
            The options, such as `["--from", "verl", "CONFIG.yaml"]`.

    Raises:
        `FileNotFoundError`: when there is no such file.
        `ValueError`: when the file is no mapping of options, or its batch sizes do not divide.
    """
    parser = argparse.ArgumentParser(prog="trl-dapo migrate", description=__doc__)
    parser.add_argument("config", help="YAML file of the other framework: its options, nested or with dots.")
    parser.add_argument(
        "--from", dest="framework", required=True, choices=list(FRAMEWORKS), help="The other framework."
    )
    parser.add_argument("--output", help="The recipe to write. Unset: it is printed.")
    parser.add_argument("--num_processes", type=int, help="GPUs to train on. Unset: as many as the file names.")
    args = parser.parse_args(list(arguments))
    path = Path(args.config)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file. Give the YAML file of the configuration.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no options, but must be a YAML mapping of names to values.")
    result = migrate(config, args.framework, args.num_processes)
    comments = recipe_comments(result, args.framework)
    text = comments + yaml.safe_dump(result.recipe, sort_keys=False, allow_unicode=True)
    if args.output is None:
        print(text, end="")
        return
    Path(args.output).write_text(text, encoding="utf-8")
    print(
        f"{args.output}: {len(result.recipe)} options, {len(result.untranslated)} not translated.\n{comments}", end=""
    )


def migrate(config: dict[str, Any], framework: str, num_processes: int | None = None) -> Migration:
    """
    Translates a configuration.

    Args:
        config (`dict[str, Any]`):
            Options, nested or with dots in their names.
        framework (`str`):
            One of `FRAMEWORKS`.
        num_processes (`int`, *optional*):
            GPUs to train on. `None`: as many as the configuration names.

    Raises:
        `ValueError`: when its batch sizes do not divide by each other and by the number of processes.

    >>> migrate({"epsilon_high": 0.28, "vllm_magic": 1}, "ms-swift").untranslated
    ['vllm_magic: 1 (not in the table of ms-swift)']
    """
    table = FRAMEWORKS[framework]
    given = _resolved(_flat(config))
    result = Migration(dict(table.always))
    numbers: dict[str, Any] = {}
    steps: list[tuple[Option, Any]] = []
    known = set()
    for option in table.options:
        name = next((name for name in given if name not in known and _is_named(name, option.theirs)), option.theirs)
        known.add(name)
        is_given = given.get(name) is not None
        if not is_given and option.default is None:
            continue
        value = given[name] if is_given else option.default
        if not is_given and option.theirs == "epsilon_high" and value == "epsilon":
            value = result.recipe.get("epsilon", 0.2)
        try:
            if option.role == "steps":
                if _whole(value) < 1:
                    raise CannotTranslateError(f"no number of steps: write {option.ours} or its strategy")
                steps.append((option, _whole(value)))
            elif option.role:
                number = _whole(option.convert(value) if option.convert else value)
                numbers[option.role] = number * (numbers.get("parts", 1) if option.role == "parts" else 1)
            else:
                _refuse_expression(value)
                result.recipe |= option.convert(value) if option.convert else {option.ours: _as_number(value)}
        except CannotTranslateError as reason:
            where = "" if is_given else ", its default"
            result.untranslated.append(f"{name}: {value}{where} ({reason})")
            continue
        (result.translated if is_given else result.assumed).append(f"{name}: {value} -> {option.ours}")
        if is_given and option.note:
            result.different.append(f"{name}: {option.note}")
    for name, value in given.items():
        if name not in known:
            result.untranslated.append(f"{name}: {value} ({_reason(name, table, framework)})")
        elif value is None:
            result.translated.append(f"{name}: null, so its default")
    updates = _put_batch(result, numbers, num_processes)
    for option, value in steps:
        result.recipe[option.ours] = value * updates
    _complete(result.recipe)
    return result


def batch_fields(
    num_prompts: int, num_generations: int, samples_per_update: int, num_processes: int, micro_batch: int
) -> dict[str, int]:
    """
    Returns TRL's batch fields for a batch that is counted in prompts.

    The paper's: 512 prompts x 16 completions, updates of 32 prompts, on 64 GPUs with 4 completions at once. Each GPU has 8 of
    the 512 completions of an update, in 2 micro-batches, and there are 16 updates.

    >>> batch_fields(512, 16, 32 * 16, num_processes=64, micro_batch=4)
    {'num_generations': 16, 'per_device_train_batch_size': 4, 'gradient_accumulation_steps': 2, 'steps_per_generation': 32}

    Args:
        num_prompts (`int`), num_generations (`int`):
            Prompts of a batch, and completions of each.
        samples_per_update (`int`):
            Completions of an optimizer step, over all processes.
        num_processes (`int`):
            GPUs that train.
        micro_batch (`int`):
            Most completions of a process at once. The largest divisor up to it is taken.

    Raises:
        `ValueError`: when the numbers do not divide.
    """
    num_completions = num_prompts * num_generations
    if num_completions % samples_per_update:
        raise ValueError(
            f"{num_prompts} prompts x {num_generations} completions are {num_completions}, but must be a multiple of the "
            f"{samples_per_update} completions of an optimizer step. Change one of them."
        )
    if samples_per_update % num_processes:
        raise ValueError(
            f"An optimizer step has {samples_per_update} completions, but must be a multiple of the number of processes "
            f"({num_processes}). Give another number with --num_processes."
        )
    share = samples_per_update // num_processes
    per_device = next(size for size in range(min(max(micro_batch, 1), share), 0, -1) if share % size == 0)
    accumulation = share // per_device
    return {
        "num_generations": num_generations,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * (num_completions // samples_per_update),
    }


def recipe_comments(result: Migration, framework: str) -> str:
    """Returns the head of a recipe: how it is started, what was not translated, what means something else."""
    lines = [f"Moved from {framework} by trl-dapo migrate."]
    if result.num_processes is not None:
        count = result.num_processes
        lines.append(
            f"The batch sizes are for {count} processes: trl-dapo train --num_processes {count} --config FILE."
        )
    for title, entries in (
        ("Not translated", result.untranslated),
        ("Means something else here", result.different),
        ("Not in the file, so their default", result.assumed),
    ):
        if entries:
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)]
    return "".join(f"# {line}\n" for entry in lines for line in entry.splitlines())


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        # `+name=value` adds an option in Hydra; a flag of a command line has dashes.
        path = f"{prefix}{str(name).lstrip('+-')}"
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def _resolved(flat: dict[str, Any]) -> dict[str, Any]:
    resolved = {}
    for name, value in flat.items():
        for _ in range(len(flat)):
            match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if match is None or match[1] not in flat:
                break
            value = flat[match[1]]
        resolved[name] = value
    return resolved


def _is_named(name: str, pattern: str) -> bool:
    levels, wanted = name.split("."), pattern.split(".")
    return len(levels) == len(wanted) and all(part in (level, "*") for level, part in zip(levels, wanted, strict=True))


def _reason(name: str, table: Framework, framework: str) -> str:
    if name in table.left_out:
        return table.left_out[name]
    found = [reason for pattern, reason in table.left_out.items() if "*" in pattern and fnmatchcase(name, pattern)]
    return found[0] if found else f"not in the table of {framework}"


def _refuse_expression(value: Any) -> None:
    if isinstance(value, str) and "${" in value:
        raise CannotTranslateError("an expression: write its value")


def _as_number(value: Any) -> Any:
    # YAML 1.1 reads 1e-6 as a text.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise CannotTranslateError("not a whole number: write its value") from None


def _put_batch(result: Migration, numbers: dict[str, int], num_processes: int | None) -> int:
    """Puts the sizes of a batch into the recipe, and returns the optimizer steps on it."""
    if "prompts" not in numbers:
        return 1
    generations = numbers["generations"]
    gpus = numbers["gpus"] * numbers.get("nodes", 1)
    if "accumulation" in numbers:
        samples = numbers["micro"] * numbers["accumulation"] * gpus // numbers.get("parts", 1)
    else:
        samples = numbers["update_samples"] if "update_samples" in numbers else numbers["update_prompts"] * generations
    result.num_processes = num_processes or gpus
    fields = batch_fields(numbers["prompts"], generations, samples, result.num_processes, numbers.get("micro", 1))
    result.recipe |= fields
    updates = fields["steps_per_generation"] // fields["gradient_accumulation_steps"]
    return updates * int(result.recipe.get("num_iterations", 1))


def _complete(recipe: dict[str, Any]) -> None:
    """Adds what a field needs beside it."""
    if "eval_steps" in recipe:
        recipe["eval_strategy"] = "steps"
    generations = recipe.get("num_generations", 8)
    if recipe.get("per_device_eval_batch_size", 8) % generations:
        recipe["per_device_eval_batch_size"] = generations
