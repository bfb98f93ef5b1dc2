# /// script
# requires-python = ">=3.11"
# dependencies = ["trl-dapo[curves]"]
# ///
"""
Trains a model to play a game of several turns, on a CPU, in minutes: it finds a number from 1 to 7 by at most 3 guesses.

    python examples/dapo_environment.py

The warmed-up model finds it in two of five games: half of its guesses forget what it was told. Halving the interval always finds it.
"""

import sys
from pathlib import Path

from trl import ModelConfig, TrlParser

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.command_line.training_run import TrainingScriptArguments, complete_run
from trl_dapo.recipes.tool_tasks import guess_turns, make_numbers, prepare_tool_model


DEFAULT_RECIPE = Path(__file__).parent / "tools" / "game.yaml"


class GuessingGame:
    """One game. TRL gives each completion its own, and its public methods are the tools of the model."""

    def reset(self, number: int, **row):
        """Begins a game with the columns of a row. A text that it returns would be added to the prompt."""
        self._number = number
        self.is_found = False

    def guess(self, number: int) -> str:
        """
        Makes a guess.

        Args:
            number: The guess.

        Returns:
            "higher" or "lower", which is where to look, or "right".
        """
        self.is_found |= number == self._number
        return "right" if number == self._number else "higher" if number < self._number else "lower"


def found(environments, **kwargs):
    """1 for a game in which the number was found."""
    return [float(game.is_found) for game in environments]


def main(script_args, args, model_args):
    """Trains a model to play, evaluates it before and after, and saves it."""
    model = str(Path(args.output_dir) / "tiny-model")
    with args.main_process_first(desc="warming up the tiny model"):
        if args.process_index == 0:
            prepare_tool_model(model, args.seed, guess_turns)
    trainer = DAPOTrainer(
        model=model,
        args=args,
        reward_funcs=found,
        train_dataset=make_numbers(4000, args.seed),
        eval_dataset=make_numbers(script_args.num_eval_problems, args.seed + 1),
        environment_factory=GuessingGame,
    )
    complete_run(trainer)


if __name__ == "__main__":
    if "--config" not in sys.argv:
        sys.argv += ["--config", str(DEFAULT_RECIPE)]
    main(*TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig)).parse_args_and_config())
