"""The words of grading: what an answer gets, and what a worker process found out about two answers."""

import enum
from dataclasses import dataclass


class Grade(enum.Enum):
    """The grade of a completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """The completion gives no final answer."""
    UNPARSEABLE_GOLD = "unparseable_gold"
    """The gold cannot be read. This is a fault of the data, so it says nothing about the completion."""
    GAVE_UP = "gave_up"
    """The answer is too long, reached the limit of CPU time or memory, or made computer algebra fail."""


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """
    The grade of one completion, with the two answers that were compared.

    Args:
        grade (`Grade`):
            The grade.
        gold (`str`):
            The gold answer that was compared with, or the gold as given if it cannot be read.
        extracted (`str | None`):
            The final answer of the completion; `None` if it has none, or was not looked for as the gold is unreadable.
    """

    grade: Grade
    gold: str
    extracted: str | None


class Comparison(enum.Enum):
    """What a worker found out about a gold answer and an answer, or about a gold answer alone."""

    EQUAL = "equal"
    DIFFERENT = "different"
    READABLE = "readable"
    """There was no answer to compare with, and the gold can be read."""
    BAD_GOLD = "bad_gold"
    GAVE_UP = "gave_up"
