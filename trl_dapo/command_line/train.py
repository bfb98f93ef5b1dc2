"""`trl-dapo train`: trains with a recipe, or with options of the command line."""

from collections.abc import Sequence
from typing import Any

from trl import ModelConfig, TrlParser

from trl_dapo.config.dapo_config import DAPOConfig

from .training_run import TrainingScriptArguments, run_training


def run(arguments: Sequence[str]) -> None:
    """
    Trains a model, and prints the results and the paths of the files.

    Args:
        arguments (`Sequence[str]`):
            The options, such as `["--config", "recipe.yaml", ...]`.
    """
    types: Any = (TrainingScriptArguments, DAPOConfig, ModelConfig)
    run_training(*TrlParser(types, prog="trl-dapo train").parse_args_and_config(args=arguments))
