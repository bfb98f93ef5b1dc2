"""
Checks the options of a command before torch and TRL are imported, which takes seconds.

Names, types and defaults of the options are read from the source of the dataclasses that define them.
"""

import difflib
import importlib.util
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trl_dapo.config.field_types import check_choices
from trl_dapo.config.local_paths import require_existing
from trl_dapo.rewards import get_reward

from .launcher import num_processes
from .option_sources import SOURCES, Option, read_options


# Beside the fields: TRL's parser reads them.
_OF_THE_PARSER = ("config", "help")
# TRL's script options that have no effect here.
_WITHOUT_EFFECT = {
    "dataset_streaming": "the training data are held in memory: they are checked, and held-out problems are cut off. Pass a "
    "streaming dataset to DAPOTrainer in Python",
    "ignore_bias_buffers": "no model of today has such buffers",
}
_FALSE = ("false", "0", "no", "n", "f")
_TRUE = ("true", "1", "yes", "y", "t")
# Options that name a local path or a repository of the Hub.
_LOCAL_OR_HUB = ("model_name_or_path", "dataset_name", "eval_dataset_name")


def _truth(value: Any) -> bool:
    if str(value).lower() not in (*_FALSE, *_TRUE):
        raise ValueError(value)
    return str(value).lower() in _TRUE


# How the values of a type are read, and what to call them.
_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (_truth, "true or false"),
}


def check_options(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """
    Checks names of options and keys of a `--config` file, and what of their values can be checked without loading anything.

    Args:
        command (`str`):
            The command.
        arguments (`Sequence[str]`):
            Its options.

    Returns:
        `dict[str, Any]`: Values of the options that are set, as texts or as the file has them.

    Raises:
        `ValueError`, `FileNotFoundError`: one line that says what is wrong and what to write instead.
    """
    values = read_values(command, arguments)
    if command in SOURCES and read_options(command):
        check_values(command, values, arguments)
    return values


def read_values(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """
    Returns the options that are set, after a check of their names and of numbers.

    Args:
        command (`str`), arguments (`Sequence[str]`):
            As in [`check_options`].

    Raises:
        `ValueError`, `FileNotFoundError`: as in [`check_options`].
    """
    # Other commands have no dataclass, and a parser that is quick.
    fields = read_options(command) if command in SOURCES else {}
    if not fields:
        return {}  # the sources are not there: the parser will say what it does not know
    config = _config_of(arguments)
    given = _options_of(arguments)
    known = [*fields, *(f"no_{name}" for name in fields), *_OF_THE_PARSER]
    # The parser takes the beginning of a name too.
    unknown = [name for name in given if not any(other.startswith(name) for other in known)]
    _refuse_unknown(
        [(name, f"the --config file has an unknown key {name!r}") for name in config if name not in fields], fields
    )
    _refuse_unknown([(name, f"there is no option --{name}") for name in unknown], fields)
    values = config | {_full_name(name, fields): value for name, value in given.items()}
    _check_numbers(values, fields)
    return values


def check_values(command: str, values: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """
    Checks values of options, as far as that can be done without loading anything.

    Args:
        command (`str`):
            The command whose options they are.
        values (`Mapping[str, Any]`):
            What [`read_values`] returned.
        arguments (`Sequence[str]`):
            The options.

    Raises:
        `ValueError`, `FileNotFoundError`: as in [`check_options`].
    """
    fields = read_options(command)
    missing = [f"--{name}" for name, option in fields.items() if option.is_required and values.get(name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set, but needed.")
    refuse_without_effect(values)
    _check_paths(values, command)
    if command == "train":
        check_choices(values)
        _check_engine(values)
        for reward in _reward_names(arguments, _config_of(arguments)):
            get_reward(reward)
        _check_groups({name: option.default for name, option in fields.items()} | dict(values))
        for name, what in (("model_name_or_path", "a local folder"), ("dataset_name", "a file, a folder")):
            if values.get(name) is None and not is_set(values.get("tiny_task")):
                raise ValueError(f"--{name} is not set. Give {what} or a Hub id.")


def refuse_without_effect(values: Mapping[str, Any]) -> None:
    """
    Refuses options of TRL's scripts that would be accepted and ignored.

    Raises:
        `ValueError`: naming the option.
    """
    for name, reason in _WITHOUT_EFFECT.items():
        if is_set(values.get(name)):
            raise ValueError(f"{name} is set, but has no effect: {reason}. Leave it out.")


def is_set(value: Any) -> bool:
    """Whether a value of a YAML file or of a command line switches an option on."""
    return bool(value) and str(value).lower() not in _FALSE


def _config_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the content of the `--config` file, without the environment variables that it sets."""
    joined = next((argument for argument in arguments if argument.startswith("--config=")), None)
    if joined is not None:
        raise ValueError(f"{joined} is not read: write --config {joined.removeprefix('--config=')}.")
    if "--config" not in arguments:
        return {}
    following = arguments[arguments.index("--config") + 1 :]
    if not following:
        raise ValueError("--config is not followed by a file. Give a YAML file, such as --config recipe.yaml.")
    path = Path(following[0])
    if not path.is_file():
        raise FileNotFoundError(f"--config is {str(path)!r}, but there is no such file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"--config {path}{place} is not YAML: {' '.join(problem.split())}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must be a YAML mapping, one `option: value` a line.")
    return {str(name): value for name, value in content.items() if name != "env"}


def _options_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the options of a command line by their names, with the first of the values that follow."""
    given: dict[str, Any] = {}
    for number, argument in enumerate(arguments):
        if argument.startswith("--") and len(argument) > 2:
            name, separator, value = argument[2:].partition("=")
            following = arguments[number + 1 : number + 2]
            if not separator:
                value = following[0] if following and not following[0].startswith("--") else "true"
            given[name.replace("-", "_")] = value
    return given


def _full_name(name: str, fields: Collection[str]) -> str:
    """Returns the field that an option means: the parser takes a beginning that fits one field only."""
    fitting = [name] if name in fields else [field for field in fields if field.startswith(name)]
    return fitting[0] if len(fitting) == 1 else name


def _refuse_unknown(faults: Sequence[tuple[str, str]], known: Collection[str]) -> None:
    """Refuses names that are not known. Each comes with what is said of it."""
    parts = []
    for name, fault in faults:
        near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
        parts.append(f"{fault} (did you mean {near[0]}?)" if near else f"{fault} (--help lists the options)")
    if parts:
        text = "; ".join(parts)
        raise ValueError(f"{text[0].upper()}{text[1:]}.")


def _check_numbers(values: Mapping[str, Any], fields: Mapping[str, Option]) -> None:
    """Checks that what must be a number or a truth value is one. Texts of a recipe are read as those of a command line."""
    for name, value in values.items():
        if name not in fields or value is None:
            continue
        kind = next((kind for kind in _KINDS if fields[name].types == {kind}), None)
        if kind is None:
            continue
        convert, words = _KINDS[kind]
        try:
            convert(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} is {value!r}, but must be {words}.") from None


def _check_paths(values: Mapping[str, Any], command: str) -> None:
    model, output = values.get("model_name_or_path"), values.get("output_dir")
    for name in _LOCAL_OR_HUB:
        if values.get(name) is not None:
            require_existing(str(values[name]), f"--{name}")
    if command == "push" and not Path(str(output)).expanduser().is_dir():
        raise FileNotFoundError(f"There is no folder {output}. Give the output_dir of a run.")
    if model is not None:
        folder = Path(str(model)).expanduser()
        if folder.is_file():
            raise ValueError(
                f"--model_name_or_path is {str(model)!r}, which is a file. Give the folder that it is in."
            )
        if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise ValueError(
                f"--model_name_or_path is {str(model)!r}, a folder without config.json, so no model is saved in it. Give the "
                "folder that save_pretrained() wrote, or a checkpoint-... folder of a run."
            )
    if output is not None and Path(str(output)).expanduser().is_file():
        raise ValueError(f"--output_dir is {str(output)!r}, which is a file. Give a folder, which need not exist.")


def _reward_names(arguments: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Returns the rewards that are named on the command line, or else in the recipe."""
    if "--reward_names" not in arguments:
        names = config.get("reward_names")
        return [str(name) for name in names] if isinstance(names, list) else []
    following = arguments[list(arguments).index("--reward_names") + 1 :]
    return list(itertools.takewhile(lambda argument: not argument.startswith("--"), following))


def _has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


def _check_engine(values: Mapping[str, Any]) -> None:
    if is_set(values.get("use_vllm")) and not _has_vllm():
        raise ValueError(
            "use_vllm is true, but vLLM is not installed. Install it (pip install 'trl-dapo[vllm]'), or set --use_vllm false: "
            "transformers samples then."
        )


def _check_groups(values: Mapping[str, Any]) -> None:
    """Checks that a generation batch holds whole groups. Values that are no numbers are left to the parser."""
    try:
        rows = int(values["per_device_train_batch_size"]) * num_processes(values)
        steps = int(values["steps_per_generation"] or values["gradient_accumulation_steps"])
        batch = int(values["generation_batch_size"] or rows * steps)
        num_generations = int(values["num_generations"])
    except (KeyError, TypeError, ValueError):
        return
    if num_generations < 2 or batch < 2 or batch % num_generations == 0:
        return
    divisors = [number for number in range(2, batch + 1) if batch % number == 0]
    nearest = min(divisors, key=lambda number: abs(number - num_generations))
    raise ValueError(
        f"num_generations is {num_generations}, but a generation batch has {batch} completions "
        f"(generation_batch_size, or per_device_train_batch_size * processes * steps_per_generation), which must be whole "
        f"groups. Set num_generations={nearest}, or a batch that is a multiple of {num_generations}."
    )
