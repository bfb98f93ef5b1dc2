"""`trl-dapo train`: trains with a recipe, or with options of the command line."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from trl import ModelConfig

from trl_dapo.config.dapo_config import DAPOConfig

from .launcher import LaunchArguments
from .option_check import check_options
from .option_parser import parse_options
from .training_run import TrainingScriptArguments, run_training


def run(arguments: Sequence[str]) -> None:
    """
    Trains a model, and prints the results and the paths of the files.

    Args:
        arguments (`Sequence[str]`):
            The options, such as `["--config", "recipe.yaml", ...]`.
    """
    types = (TrainingScriptArguments, DAPOConfig, ModelConfig, LaunchArguments)
    parsed = parse_options("train", types, arguments)
    script_args, args, model_args, _ = parsed
    run_training(script_args, args, model_args, given_options(check_options("train", arguments), parsed))


def given_options(names: Iterable[str], parsed: Sequence[Any]) -> dict[str, Any]:
    """
    Returns the options that a user gave, with the values that they have in the run.

    Args:
        names (`Iterable[str]`):
            Their names, in the recipe or on the command line.
        parsed (`Sequence[Any]`):
            The dataclasses that they are in.

    >>> given_options(["num_machines", "no_such_field"], [LaunchArguments(num_machines=2)])
    {'num_machines': 2}
    """
    values = {field.name: getattr(part, field.name) for part in parsed for field in dataclasses.fields(part)}
    # The parser has --no_bf16 for --bf16 false.
    full = (name if name in values else name.removeprefix("no_") for name in names)
    return {name: values[name] for name in full if name in values}
