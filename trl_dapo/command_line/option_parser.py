"""The parser of a command's options: TRL's, whose errors are one line each."""

from collections.abc import Sequence
from typing import Any, NoReturn

from trl import TrlParser


class _OneLineParser(TrlParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the usage before it, which has some hundred lines.
        self.exit(2, f"{self.prog}: {message}. {self.prog} --help lists the options.\n")


def parse_options(command: str, types: Sequence[type], arguments: Sequence[str]) -> tuple[Any, ...]:
    """
    Returns the options of a command, an instance of each dataclass.

    Args:
        command (`str`):
            The command.
        types (`Sequence[type]`):
            The dataclasses.
        arguments (`Sequence[str]`):
            The options.

    Raises:
        `ValueError`: what a dataclass says of its values, TRL's and transformers' included.
    """
    parser: Any = _OneLineParser(tuple(types), prog=f"trl-dapo {command}")  # type: ignore[arg-type]
    try:
        parsed: tuple[Any, ...] = parser.parse_args_and_config(args=list(arguments))
    except ValueError as error:
        # Raised here, so that the entry point prints it as bad input and not as a fault of the program.
        raise ValueError(str(error)) from error
    return parsed
