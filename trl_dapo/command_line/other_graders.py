"""What math-verify and TRL say about an answer, beside our own grade."""

import logging
from typing import Any

from trl_dapo.grading.answers import gold_answer
from trl_dapo.grading.equivalence import Grade


# The columns of a comparison, and what each calls a correct answer.
GRADERS = ("math-verify", "TRL")
# What agreeing with a grade means. math-verify cannot say that a gold is unreadable, TRL then says None.
_AGREES: dict[Grade, tuple[bool, float | None]] = {Grade.CORRECT: (True, 1.0), Grade.UNPARSEABLE_GOLD: (False, None)}


def ask_others(gold: str, completion: str) -> tuple[Any, Any]:
    r"""
    Ask math-verify, with its defaults and the answer of the gold in a box, and TRL's `accuracy_reward`, with the gold as it is.

    Args:
        gold (`str`):
            The gold solution.
        completion (`str`):
            The text of the completion.

    Returns:
        `tuple[bool | None, float | None]`: What they say; `None` of math-verify if it fails.
    """
    from math_verify import parse, verify
    from trl.rewards import accuracy_reward

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    boxed = rf"\boxed{{{gold_answer(gold) or gold}}}"
    try:
        is_same: bool | None = bool(verify(parse(boxed), parse(completion)))
    except Exception:
        is_same = None
    try:
        reward = accuracy_reward([[{"role": "assistant", "content": completion}]], [gold])[0]
    except Exception:
        reward = None
    return is_same, reward


def disagree(grade: Grade, said: tuple[Any, Any]) -> bool:
    """
    Tell whether math-verify or TRL says something else than a grade.

    Example:

    >>> disagree(Grade.WRONG, (False, 0.0)), disagree(Grade.CORRECT, (True, None))
    (False, True)
    """
    return said != _AGREES.get(grade, (False, 0.0))
