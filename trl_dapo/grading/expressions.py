"""Expressions of computer algebra, made of the nodes of an answer."""

from collections.abc import Callable
from typing import Any

import sympy

from .nodes import Apply, Bracket, Listing, Matrix, Name, Node, Number, Quantity, Relation, replaced


class NotAnExpressionError(Exception):
    """The node has no counterpart in computer algebra."""


_CONSTANTS = {"\\pi": sympy.pi, "e": sympy.E, "i": sympy.I, "\\infty": sympy.oo, "°": sympy.pi / 180}
_ONE_ARGUMENT: dict[str, Callable[[Any], Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "arccot": sympy.acot, "arcsec": sympy.asec,
    "arccsc": sympy.acsc, "asin": sympy.asin, "acos": sympy.acos, "atan": sympy.atan, "sinh": sympy.sinh,
    "cosh": sympy.cosh, "tanh": sympy.tanh, "coth": sympy.coth, "sech": sympy.sech, "csch": sympy.csch,
    "arsinh": sympy.asinh, "arcosh": sympy.acosh, "artanh": sympy.atanh, "arcsinh": sympy.asinh,
    "arccosh": sympy.acosh, "arctanh": sympy.atanh, "ln": sympy.log, "exp": sympy.exp, "abs": sympy.Abs,
    "floor": sympy.floor, "ceil": sympy.ceiling, "!": sympy.factorial, "!!": sympy.factorial2, "sgn": sympy.sign,
    "Re": sympy.re, "Im": sympy.im, "arg": sympy.arg, "neg": lambda value: -value, "%": lambda value: value / 100,
    "lg": lambda value: sympy.log(value, 10),
}  # fmt: skip
_MANY_ARGUMENTS: dict[str, Callable[..., Any]] = {
    "+": sympy.Add, "*": lambda *factors: _product(*factors), "max": sympy.Max, "min": sympy.Min, "gcd": lambda *args: sympy.gcd_list(args),
    "lcm": lambda *args: sympy.lcm_list(args),
}  # fmt: skip
_TWO_ARGUMENTS: dict[str, Callable[[Any, Any], Any]] = {
    "/": lambda top, bottom: _quotient(top, bottom), "^": lambda base, exponent: _power(base, exponent), "binom": sympy.binomial,
    "mod": sympy.Mod, "log": sympy.log, "sqrt": lambda value, degree: sympy.root(value, degree),
}  # fmt: skip
# Powers of integers with more bits stay as they are: their logarithm is enough to tell most of them apart.
MAX_POWER_BITS = 100_000
_SETS = {
    "\\mathbb{R}": sympy.S.Reals, "\\mathbb{Z}": sympy.S.Integers, "\\mathbb{N}": sympy.S.Naturals,
    "\\mathbb{Q}": sympy.S.Rationals, "\\mathbb{C}": sympy.S.Complexes,
}  # fmt: skip


def expression(node: Node, log_base: Any = 10) -> Any:
    r"""
    Make an expression of a node.

    Args:
        node (`Node`):
            A number, a name, or an operation on such.
        log_base (`sympy.Expr`, *optional*, defaults to 10):
            Base of a `\log` without one.

    Returns:
        `sympy.Expr`: The expression, in variables that are real.

    Raises:
        `NotAnExpressionError`: If the node is anything else.

    Example:

    >>> expression(Apply("sqrt", (Apply("^", (Name("x"), Name("i"))),)))
    sqrt(x**I)
    """
    if isinstance(node, Number):
        value = sympy.Rational(node.value.numerator, node.value.denominator)
        return sympy.Float(value, 50) if node.is_decimal and value else value
    if isinstance(node, Name):
        return _CONSTANTS[node.text] if node.text in _CONSTANTS else sympy.Symbol(node.text, real=True)
    if isinstance(node, Matrix) and node.kind == "vmatrix":
        return sympy.Matrix([[expression(entry, log_base) for entry in row] for row in node.rows]).det()
    if isinstance(node, Bracket | Listing) and len(node.items) == 1:
        return expression(node.items[0], log_base)
    if not isinstance(node, Apply):
        raise NotAnExpressionError(type(node).__name__)
    if node.head in ("sum", "prod", "int", "lim"):
        return _with_bound_variable(node, log_base)
    if node.head == "call":
        # Two values of a function are the same only if it is the same function of the same.
        values = ",".join(sympy.srepr(sympy.expand(expression(arg, log_base))) for arg in node.args[1:])
        return sympy.Symbol(f"{node.args[0]}({values})", real=True)
    args = [expression(arg, log_base) for arg in node.args]
    if node.head == "log" and len(args) == 1:
        return sympy.log(args[0], log_base)
    if node.head == "sqrt" and len(args) == 1:
        return sympy.sqrt(args[0])
    if node.head in _MANY_ARGUMENTS:
        return _MANY_ARGUMENTS[node.head](*args)
    if node.head in _TWO_ARGUMENTS and len(args) == 2:
        return _TWO_ARGUMENTS[node.head](*args)
    if node.head in _ONE_ARGUMENT and len(args) == 1:
        return _ONE_ARGUMENT[node.head](*args)
    raise NotAnExpressionError(node.head)


def _power(base: Any, exponent: Any) -> Any:
    return sympy.Pow(base, exponent, evaluate=not _is_large(base, exponent))


def _is_large(base: Any, exponent: Any) -> bool:
    bits = max(base.p.bit_length(), base.q.bit_length()) if base.is_Rational else 0
    return bool(exponent.is_Integer and abs(exponent) * bits > MAX_POWER_BITS)


def _product(*factors: Any) -> Any:
    has_large = any(factor.is_Pow and _is_large(factor.base, factor.exp) for factor in factors)
    return sympy.Mul(*factors, evaluate=not has_large)


def _quotient(top: Any, bottom: Any) -> Any:
    if bottom.is_Pow and _is_large(bottom.base, bottom.exp):
        return _product(top, _power(bottom.base, -bottom.exp))
    return _product(top, 1 / bottom)


def _with_bound_variable(node: Apply, log_base: Any) -> Any:
    body, variable, start, *rest = node.args
    if not isinstance(variable, Name):
        raise NotAnExpressionError(node.head)
    if node.head == "lim":
        name = sympy.Symbol(variable.text, real=True)
        return sympy.limit(expression(body, log_base), name, expression(start, log_base))
    name = sympy.Symbol(variable.text, integer=True) if node.head != "int" else sympy.Symbol(variable.text, real=True)
    bound = Name(f"bound {variable.text}")
    limits = (name, expression(start, log_base), expression(rest[0], log_base))
    made = {"sum": sympy.Sum, "prod": sympy.Product, "int": sympy.Integral}[node.head]
    # Under another name, as `i` and `e` would be constants.
    inside = expression(replaced(body, {variable: bound}), log_base)
    return made(inside.subs(sympy.Symbol(bound.text, real=True), name), limits)


def real_set(node: Node, variable: str) -> Any:
    r"""
    Make a set of real numbers of a node.

    Args:
        node (`Node`):
            An interval, a set, a union, or inequalities in one variable.
        variable (`str`):
            The variable; empty if there is none.

    Returns:
        `sympy.Set`: The set.

    Raises:
        `NotAnExpressionError`: If the node is anything else.

    Example:

    >>> from fractions import Fraction
    >>> real_set(Relation(("<",), (Name("x"), Number(Fraction(2)))), "x")
    Interval.open(-oo, 2)
    """
    if isinstance(node, Name) and node.text in _SETS:
        return _SETS[node.text]
    if isinstance(node, Bracket) and node.opening == "{":
        return sympy.FiniteSet(*(expression(item) for item in node.items))
    if isinstance(node, Bracket) and len(node.items) == 2:
        start, end = (expression(item) for item in node.items)
        return sympy.Interval(start, end, node.opening == "(", node.closing == ")")
    if isinstance(node, Apply) and node.head in ("cup", "cap", "setminus"):
        sets = [real_set(arg, variable) for arg in node.args]
        if node.head == "setminus":
            return sets[0] - sets[1]
        return (sympy.Union if node.head == "cup" else sympy.Intersection)(*sets)
    if isinstance(node, Relation):
        return sympy.Intersection(*map(lambda o, left, right: _solutions(o, left, right, variable),
                                       node.operators, node.sides, node.sides[1:]))  # fmt: skip
    if isinstance(node, Listing):
        sets = [real_set(item, variable) for item in node.items]
        if node.joiner != "or":
            both = sympy.Intersection(*sets)
            # People write `x < 2, x > 3` and even `and` for what is either.
            if both is not sympy.S.EmptySet:
                return both
        return sympy.Union(*sets)
    if isinstance(node, Quantity):
        return real_set(node.value, variable)
    return sympy.FiniteSet(expression(node))


def _solutions(operator: str, left: Node, right: Node, variable: str) -> Any:
    if operator == "\\in" and isinstance(left, Name) and left.text == variable:
        return real_set(right, variable)
    relations = {"<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge, "\\ne": sympy.Ne, "=": sympy.Eq}
    if operator not in relations:
        raise NotAnExpressionError(operator)
    sides = [expression(side) for side in (left, right)]
    # An end that is written as a decimal is no reason for other sets.
    name = sympy.Symbol(variable, real=True)
    if sides[0] == name and not sides[1].has(name):
        if sides[1] in (sympy.oo, -sympy.oo):
            return sympy.S.Reals
        ends = {"<": (-sympy.oo, sides[1], True), "\\le": (-sympy.oo, sides[1], False), ">": (sides[1], sympy.oo, True),
                "\\ge": (sides[1], sympy.oo, False)}  # fmt: skip
        if operator in ends:
            start, end, is_open = ends[operator]
            return sympy.Interval(start, end, is_open, is_open)
    if sides[1] == name and not sides[0].has(name):
        flipped = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}.get(operator, operator)
        return _solutions(flipped, right, left, variable)
    relation = relations[operator](*sides)
    if relation in (sympy.true, sympy.false):
        return sympy.S.Reals if relation == sympy.true else sympy.S.EmptySet
    return relation.as_set()
