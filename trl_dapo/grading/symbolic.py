r"""Computer algebra: the only module that imports math-verify, and it runs in worker processes only.

math-verify sees the extracted answer alone, wrapped in `\boxed{}`, so that it can neither merge neighbouring boxes into
a set nor fall back to any number in the text. Its own timeouts are off: the operating system's limits hold in a worker.
"""

import logging
import random
import re
from typing import Any

import math_verify
import sympy
import sympy.core.random

from . import two_stage_parser
from .agreement import agree
from .grades import Comparison


# The box first and nothing else: without an anchor math-verify takes any fraction that it finds in the text.
_EXTRACTION = (math_verify.LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False),)

# What the parser does not know.
_SPELLINGS = (
    (re.compile(r"\\varnothing\b"), r"\\emptyset"),
    (re.compile(r"(?<=[0-9}])\s*x\s*(?=10\s*\^)"), r"\\times "),
    (re.compile(r"\u221a\s*([0-9]+|[a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"\u221a\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile("\u00b2"), "^2"),
    (re.compile("\u00b3"), "^3"),
    (re.compile("\u00bd"), r"\\frac{1}{2}"),
    (re.compile("\u00bc"), r"\\frac{1}{4}"),
    (re.compile("\u00be"), r"\\frac{3}{4}"),
    (re.compile("\u2212"), "-"),
)

# Formulas of common shapes. What the parser learns from them, every grading has.
_WARM_UP = (
    (r"\frac{1}{2}+\sqrt{2}x", r"x\sqrt{2}+0.5"),
    (r"\{1,2\}", r"\left\{-1, \frac{2}{3}\right\}"),
    (r"(-\infty,3]\cup[4,5)", r"\left(1,\pi\right]"),
    ("x=3", r"y = -2x^2+\frac{x}{3}-1"),
    ("x^2<9", r"1 \le x < 3"),
    ("(1,-2)", r"\left(\sqrt{3},0,1\right)"),
    ("(x+1)(x-2)^2", r"\frac{x^2-1}{2x+y}"),
    (r"9\pi", r"\frac{9\pi}{4}"),
    (r"\sin(2x)+\cos^2 x", r"\ln{x}-\log_2 8"),
    ("2^{n+1}", r"2 \cdot 3^n"),
    ("3+4i", r"-1.5e^{x}"),
    (r"n!", r"\binom{n}{2}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"12\%"),
)

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
            parsed = tuple(_parse(latex))
            is_number = not any(part.has(sympy.nan, sympy.zoo) for part in parsed)
            _known_golds[latex] = parsed if is_number else ()
        except Exception:
            _known_golds[latex] = ()
    return _known_golds[latex]


def is_known(latex: str) -> bool:
    """Whether a gold answer has been parsed before, so that reading it again takes no time."""
    return latex in _known_golds


def compare(gold: str, answer: str | None) -> Comparison:
    r"""
    Compare an answer with a gold one. The same pair gives the same comparison, whatever was compared before.

    Args:
        gold (`str`):
            The gold answer, as LaTeX.
        answer (`str | None`):
            The answer, as LaTeX; `None` to learn only whether the gold can be read.

    Returns:
        `Comparison`: Raises nothing, but may take any amount of time and memory: limits are the caller's.

    Example:

    >>> compare(r"\sqrt{50}", r"5\sqrt{2}")
    <Comparison.EQUAL: 'equal'>
    >>> compare(r"\frac{1}{", None)
    <Comparison.BAD_GOLD: 'bad_gold'>
    """
    parsed_gold = read_gold(gold)
    if not parsed_gold:
        return Comparison.BAD_GOLD
    if answer is None:
        return Comparison.READABLE
    _reseed()
    try:
        parsed_answer = _parse(answer)
        if not parsed_answer:
            return Comparison.DIFFERENT
        is_same = _is_same(parsed_gold[0], parsed_answer[0])
    except Exception:
        return Comparison.GAVE_UP
    return Comparison.EQUAL if is_same else Comparison.DIFFERENT


def warm_up() -> None:
    """Prepare this process for grading: no log output, the faster parser, and its tables filled."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    two_stage_parser.install()
    for gold, answer in _WARM_UP:
        compare(gold, answer)


def _is_same(gold: Any, answer: Any) -> bool:
    is_same = agree(gold, answer)
    if is_same is None:
        is_same = math_verify.verify(
            gold, answer, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True
        )
        if is_same and isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq) and gold != answer:
            # Two equations without a solution have the same solutions to math-verify.
            return (
                bool(sympy.solve(gold, gold.free_symbols))
                or not sympy.simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs)).free_symbols
            )
    return bool(is_same)


def _parse(text: str) -> list[Any]:
    depth = 0
    for token in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += (token == "{") - (token == "}")
        if depth < 0:
            return []
    if depth:
        return []
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    parsed: list[Any] = math_verify.parse(
        f"\\boxed{{{text}}}",
        extraction_config=_EXTRACTION,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
        raise_on_error=True,
    )
    return parsed


def _reseed() -> None:
    # sympy tests equality at random points, and a grade must not depend on which.
    random.seed(0)
    sympy.core.random.seed(0)
