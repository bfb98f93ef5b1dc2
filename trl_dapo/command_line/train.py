"""`trl-dapo train`: trains with a recipe, or with options of the command line."""

from collections.abc import Sequence

from trl import ModelConfig

from trl_dapo.config.dapo_config import DAPOConfig

from .launcher import LaunchArguments
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
    run_training(*parse_options("train", types, arguments)[:3])
