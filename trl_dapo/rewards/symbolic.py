r"""Computer algebra: the only module that imports math-verify, and it runs in worker processes only.

math-verify sees the extracted answer alone, wrapped in `\boxed{}`, so that it can neither merge neighbouring boxes into
a set nor fall back to any number in the text. Its own timeouts are off: the operating system's limits hold in a worker.
"""

import logging
import random
import re
from functools import lru_cache
from typing import Any

from .verdicts import Outcome


# Golds and what they were parsed to, oldest first.
_known_golds: dict[str, tuple[Any, ...]] = {}
MAX_KNOWN_GOLDS = 4_096


def read_gold(latex: str) -> tuple[Any, ...]:
    """
    Parse a gold answer, once.

    Args:
        latex (`str`):
            The gold answer.

    Returns:
        `tuple`: The sympy objects that it may stand for; empty if it cannot be read.
    """
    if latex not in _known_golds:
        if len(_known_golds) >= MAX_KNOWN_GOLDS:
            del _known_golds[next(iter(_known_golds))]
        try:
            _known_golds[latex] = tuple(_parse(latex))
        except Exception:
            _known_golds[latex] = ()
    return _known_golds[latex]


def is_known(latex: str) -> bool:
    """Whether a gold answer has been parsed before, so that reading it again takes no time."""
    return latex in _known_golds


def compare(gold: str, answer: str | None) -> Outcome:
    r"""
    Compare an answer with a gold one. The same pair gives the same outcome, whatever was compared before.

    Args:
        gold (`str`):
            The gold answer, as LaTeX.
        answer (`str | None`):
            The answer, as LaTeX; `None` to learn only whether the gold can be read.

    Returns:
        `Outcome`: Raises nothing, but may take any amount of time and memory: limits are the caller's.

    Example:

    >>> compare(r"\sqrt{50}", r"5\sqrt{2}")
    <Outcome.EQUAL: 'equal'>
    >>> compare(r"\frac{1}{", None)
    <Outcome.BAD_GOLD: 'bad_gold'>
    """
    parsed_gold = read_gold(gold)
    if not parsed_gold:
        return Outcome.BAD_GOLD
    if answer is None:
        return Outcome.READABLE
    _reseed()
    try:
        parsed_answer = _parse(answer)
        if not parsed_answer:
            return Outcome.DIFFERENT
        is_same = _math_verify().verify(list(parsed_gold), parsed_answer, timeout_seconds=None, raise_on_error=True)
    except Exception:
        return Outcome.GAVE_UP
    return Outcome.EQUAL if is_same else Outcome.DIFFERENT


def warm_up() -> None:
    """
    Import math-verify and fill its parser's tables, so that the first gradings take no longer than later ones.

    Raises:
        `ImportError`: If math-verify is not installed.
    """
    _math_verify()
    for gold, answer in ((r"\frac{1}{2}+\sqrt{2}x", r"x\sqrt{2}+0.5"), (r"\{1,2\}", r"(1,\pi]"), ("x=3", "x^2<9")):
        compare(gold, answer)


def _parse(text: str) -> list[Any]:
    depth = 0
    for token in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += (token == "{") - (token == "}")
        if depth < 0:
            return []
    if depth:
        return []
    parsed: list[Any] = _math_verify().parse(
        f"\\boxed{{{text}}}",
        extraction_config=_extraction_config(),
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
        raise_on_error=True,
    )
    return parsed


def _reseed() -> None:
    # sympy tests equality at random points, and a verdict must not depend on which.
    import sympy.core.random

    random.seed(0)
    sympy.core.random.seed(0)


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return math_verify


@lru_cache(maxsize=1)
def _extraction_config() -> tuple[Any, ...]:
    # The box first and nothing else: without an anchor math-verify takes any fraction that it finds in the text.
    return (_math_verify().LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False),)
