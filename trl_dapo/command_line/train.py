"""`trl-dapo train`: a recipe, or its options on the command line."""

from collections.abc import Sequence
from typing import Any

from trl import ModelConfig, TrlParser

from trl_dapo.config.dapo_config import DAPOConfig

from .training_run import TrainingScriptArguments, run_training


def run(arguments: Sequence[str]) -> None:
    """
    Trains a model, and prints where everything is.

    Args:
        arguments (`Sequence[str]`):
            The options, such as `["--config", "recipe.yaml", ...]`.
    """
    types: Any = (TrainingScriptArguments, DAPOConfig, ModelConfig)
    run_training(*TrlParser(types, prog="trl-dapo train").parse_args_and_config(args=arguments))
