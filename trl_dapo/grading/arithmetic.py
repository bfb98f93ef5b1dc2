"""The exact value of an expression of rational numbers, where it takes no computer algebra."""

import math
from fractions import Fraction

from .nodes import Apply, Node, Number


# Larger numbers are left to the workers, which have limits of time and memory.
MAX_BITS = 4_000
MAX_EXPONENT = 400
MAX_FACTORIAL = 100


def rational_value(node: Node) -> Fraction | None:
    """
    Evaluate an expression exactly.

    Args:
        node (`Node`):
            The expression.

    Returns:
        `Fraction | None`: Its value; `None` if it is not rational, not a number, or takes more than plain arithmetic.

    Example:

    >>> rational_value(Apply("/", (Number(Fraction(3)), Apply("+", (Number(Fraction(1)), Number(Fraction(5)))))))
    Fraction(1, 2)
    """
    if isinstance(node, Number):
        return node.value
    if not isinstance(node, Apply):
        return None
    args = [rational_value(arg) for arg in node.args]
    values = [value for value in args if value is not None]
    if len(values) < len(args) or any(value.numerator.bit_length() > MAX_BITS for value in values):
        return None
    value = _apply(node.head, values)
    if value is not None and max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        return None
    return value


def _apply(head: str, values: list[Fraction]) -> Fraction | None:
    first = values[0]
    if head == "+":
        return sum(values, Fraction(0))
    if head == "*":
        return math.prod(values, start=Fraction(1)) if len(values) < 50 else None
    if head == "neg":
        return -first
    if head == "/":
        return first / values[1] if values[1] else None
    if head == "%":
        return first / 100
    if head == "^":
        return _power(first, values[1])
    if head == "!":
        return Fraction(math.factorial(int(first))) if first.denominator == 1 and 0 <= first <= MAX_FACTORIAL else None
    if head == "binom":
        are_small = all(value.denominator == 1 and 0 <= value <= MAX_FACTORIAL for value in values)
        return Fraction(math.comb(int(first), int(values[1]))) if are_small else None
    if head == "abs":
        return abs(first)
    if head == "sqrt" and len(values) == 1 and first >= 0:
        roots = Fraction(math.isqrt(first.numerator), math.isqrt(first.denominator))
        return roots if roots * roots == first else None
    return None


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
        return None
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(exponent) > MAX_BITS or (base == 0 and exponent <= 0):
        return None
    return base ** int(exponent)
