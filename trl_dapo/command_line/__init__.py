"""The entry point `trl-dapo`: its first argument names a module with `run(arguments)`."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from trl_dapo.errors import HubPushError, HubUnreachableError, TrainingStoppedError, VLLMServerError
from trl_dapo.recipes import with_path

from .launcher import TRIAL_MARK, is_to_be_launched, launch
from .option_check import check_options, read_values
from .option_help import command_list, help_text
from .option_sources import SOURCES
from .version import versions


# The modules are imported when they are used: torch and TRL take seconds, and `trl-dapo --help` needs neither.
COMMANDS = {
    "train": "Trains a model with DAPO on a dataset of problems.",
    "check": "Says in minutes whether a recipe fits and works here, and how long it takes.",
    "eval": "Samples k completions of every problem and prints avg@k, maj@k and pass@k.",
    "grade": "Tells which golds of a dataset can be read, and grades its completions.",
    "recipes": "Lists the recipes that come with the package, and copies one.",
    "serve": "Starts a vLLM server that `train` samples from.",
    "migrate": "Turns a configuration of verl, ms-swift, OpenRLHF, NeMo-RL, ROLL or SkyRL into a recipe.",
    "push": "Pushes a trained model with its card, curves and results to the Hub.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Runs a command. With wrong input it prints one line on stderr and exits with status 1 or 2.

    Args:
        arguments (`Sequence[str]`, *optional*):
            The command and its options. `None`: those of the command line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "--help-all"):
        print(command_list(COMMANDS), end="")
        return
    if given[0] == "--version":
        print(versions())
        return
    if given[0] not in COMMANDS:
        near = difflib.get_close_matches(given[0], COMMANDS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        print(f"trl-dapo: there is no command {given[0]!r}{hint}, only {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    asked = [argument.replace("_", "-") for argument in given[1:] if argument.startswith("-")]
    if given[0] in SOURCES and {"-h", "--help", "--help-all"} & set(asked):
        text = help_text(given[0], COMMANDS[given[0]], "--help-all" in asked)
        if text is not None:
            print(text, end="")
            return
    try:
        command = given[0]
        options = with_path(given[1:]) if command in ("train", "check") else given[1:]
        # What is wrong with values, a check says in its table.
        values = read_values(command, options) if command == "check" else check_options(command, options)
        if (command == "train" or TRIAL_MARK in os.environ) and is_to_be_launched(values):
            launch(options, values, command)
            return
        importlib.import_module(f".{given[0]}", __name__).run(options)
    except (
        *(HubPushError, HubUnreachableError, TrainingStoppedError, VLLMServerError),
        *(FileNotFoundError, FileExistsError, BlockingIOError, ValueError),
    ) as error:
        if isinstance(error, ValueError) and not _is_ours(error):
            raise
        sys.exit("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error. Errors of other packages need their traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("trl_dapo.")
