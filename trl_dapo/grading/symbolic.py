r"""Computer algebra: what decides about expressions, in worker processes only.

Its limits are those that the operating system puts on a worker, and nothing here knows of them.
"""

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import sympy
import sympy.core.random

from .agreement import agree, are_proportional
from .expressions import NotAnExpressionError, expression, real_set
from .grades import Comparison
from .matching import same
from .nodes import Apply, Name, Node, Number, Phrase, Quantity, Words, parts_of, walk
from .reading import read


# Answers of common shapes: what sympy learns from them, every comparison has.
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
    (r"y=2x+1", r"2x-y+2=0"),
)

# Golds and whether they can be read, oldest first.
_known_golds: dict[str, bool] = {}
MAX_KNOWN_GOLDS = 4_096
# Decimals that round or cut a number have at most so many places.
MAX_PLACES = 30


def read_gold(text: str) -> bool:
    """
    Read a gold answer and evaluate its expressions, once.

    Args:
        text (`str`):
            The gold answer.

    Returns:
        `bool`: Whether it can be read: no part of it is a division by zero or makes computer algebra fail.
    """
    if text not in _known_golds:
        if len(_known_golds) >= MAX_KNOWN_GOLDS:
            del _known_golds[next(iter(_known_golds))]
        node = read(text)
        try:
            _known_golds[text] = node is not None and _has_values(node)
        except Exception:
            _known_golds[text] = False
    return _known_golds[text]


def _has_values(node: Node) -> bool:
    if isinstance(node, Words | Name | Phrase):
        return True
    if isinstance(node, Number | Apply):
        try:
            value = expression(node)
        except NotAnExpressionError:
            return all(map(_has_values, parts_of(node)))
        return not value.has(sympy.nan, sympy.zoo)
    return all(map(_has_values, parts_of(node)))


def is_known(text: str) -> bool:
    """Whether a gold answer has been read before, so that reading it again takes no time."""
    return text in _known_golds


def compare(gold: str, answer: str | None) -> Comparison:
    r"""
    Compare an answer with a gold one. The same pair gives the same comparison, whatever was compared before.

    Args:
        gold (`str`):
            The gold answer.
        answer (`str | None`):
            The answer; `None` to learn only whether the gold can be read.

    Returns:
        `Comparison`: Raises nothing, but may take any amount of time and memory: limits are the caller's.

    Example:

    >>> compare(r"\sqrt{50}", r"5\sqrt{2}")
    <Comparison.EQUAL: 'equal'>
    >>> compare(r"\frac{1}{0}", None)
    <Comparison.BAD_GOLD: 'bad_gold'>
    """
    if not read_gold(gold):
        return Comparison.BAD_GOLD
    if answer is None:
        return Comparison.READABLE
    _reseed()
    try:
        gold_node, answer_node = read(gold), read(answer)
        assert gold_node is not None
        is_same = answer_node is not None and same(gold_node, answer_node, ComputerAlgebra())
    except Exception:
        return Comparison.GAVE_UP
    return Comparison.EQUAL if is_same else Comparison.DIFFERENT


def warm_up() -> None:
    """Prepare this process for comparisons."""
    for gold, answer in _WARM_UP:
        compare(gold, answer)


class ComputerAlgebra:
    """The judge that knows sympy. What it cannot decide is not the same."""

    def equal(self, gold: Node, answer: Node) -> bool:
        """Whether two expressions have the same value, for all values of their variables."""
        if gold == answer:
            return True
        is_same = self._decided(agree, gold, answer)
        if not is_same and _has_bare_logarithm(gold, answer):
            # `\log` may mean the natural one.
            is_same = self._decided(agree, gold, answer, sympy.E)
        return is_same

    def close(self, exact: Node, approximation: Node) -> bool:
        """Whether a decimal is a number, rounded or cut."""
        exact, approximation = (side.value if isinstance(side, Quantity) else side for side in (exact, approximation))
        try:
            value, rough = expression(exact), expression(approximation)
        except NotAnExpressionError:
            return False
        if not (value.is_number and rough.is_number and value.is_real and rough.is_real):
            return False
        step = _last_place(approximation)
        difference = abs(sympy.N(value - rough, 40))
        if step is None:
            return bool(difference <= abs(sympy.N(value, 40)) / 200)
        is_rounded = bool(difference <= step / 2 + step / 10**6)
        return is_rounded or bool(abs(sympy.N(rough, 40)) <= abs(sympy.N(value, 40)) and difference < step)

    def proportional(self, gold: Node, answer: Node, only_positive: bool) -> bool:
        """Whether one expression is the other times a constant that is not zero, and positive if it must be."""

        def are_so(left: Any, right: Any) -> bool | None:
            return are_proportional(left, right, only_positive)

        return self._decided(are_so, gold, answer)

    def same_set(self, gold: Node, answer: Node, variable: str | None) -> bool:
        """Whether two sets of real numbers, or inequalities in one variable, are the same set."""
        if gold == answer:
            return True
        try:
            sets = [real_set(side, variable or "") for side in (gold, answer)]
        except (NotAnExpressionError, NotImplementedError, TypeError, ValueError):
            return False
        return bool(agree(*sets))

    def _decided(
        self, compare_expressions: Callable[[Any, Any], bool | None], gold: Node, answer: Node, log_base: Any = 10
    ) -> bool:
        try:
            sides = [expression(side, log_base) for side in (gold, answer)]
        except NotAnExpressionError:
            return False
        return bool(compare_expressions(*sides))


def _last_place(approximation: Node) -> Any:
    """Return what one is worth in the last digit of a number that is not 0; `None` for what is not written as one number."""
    number = (
        approximation.args[0] if isinstance(approximation, Apply) and approximation.head == "neg" else approximation
    )
    if not isinstance(number, Number) or not number.value:
        return None
    if number.places is not None:
        return sympy.Rational(10) ** -number.places
    for places in range(-MAX_PLACES, MAX_PLACES):
        if (number.value * Fraction(10) ** places).denominator == 1:
            return sympy.Rational(10) ** -places
    return None


def _has_bare_logarithm(*sides: Node) -> bool:
    return any(
        isinstance(part, Apply) and part.head == "log" and len(part.args) == 1 for side in sides for part in walk(side)
    )


def _reseed() -> None:
    # sympy tests equality at random points, and a grade must not depend on which.
    random.seed(0)
    sympy.core.random.seed(0)
