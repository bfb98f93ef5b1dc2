r"""Whether two sympy objects are the same number, expression or collection of them, by high-precision arithmetic.

Exact expressions must agree to many digits, and decimals within the rounding of their writer. Expressions with
variables are compared at fixed points, where two different ones of elementary functions do not agree to 20 digits by
accident. That is stricter than math-verify, which takes everything below its precision for zero, finds identities that
`simplify` does not, and is faster. What it does not know it leaves open.
"""

from collections.abc import Sequence
from typing import Any

import sympy
from sympy.functions.elementary import hyperbolic, trigonometric


# Digits to which exact numbers are evaluated, and the part of the larger by which they may differ.
EXACT_DIGITS, EXACT_ERROR = 50, sympy.Float("1e-40")
# The same at the points at which expressions with variables are compared; what is below the last counts as zero.
POINT_DIGITS, POINT_ERROR, POINT_ZERO = 30, sympy.Float("1e-20"), sympy.Float("1e-24")
# As in the exact path: decimals agree to six places if that is no more than a thousandth of them ...
DECIMAL_PLACES, MAX_RELATIVE_ERROR = 6, sympy.Rational(1, 1000)
# ... and in any case if they agree to more digits than anybody writes: sympy's decimals have 15.
SAME_DECIMAL = sympy.Float("1e-12")

_ELEMENTARY = (
    sympy.Add,
    sympy.Mul,
    sympy.Pow,
    sympy.Symbol,
    sympy.Number,
    sympy.NumberSymbol,
    type(sympy.I),
    sympy.Abs,
    sympy.exp,
    sympy.log,
    trigonometric.TrigonometricFunction,
    trigonometric.InverseTrigonometricFunction,
    hyperbolic.HyperbolicFunction,
)
# Values for variables, in order of their names: generic, of both signs, the positive first.
_POINTS = [
    [sympy.Rational(numerator, 1009) * sign for numerator, sign in row]
    for row in (
        [(877, 1), (1531, 1), (2503, 1), (653, 1), (1999, 1), (313, 1)],
        [(1699, 1), (491, 1), (1153, 1), (2741, 1), (727, 1), (1873, 1)],
        [(1301, -1), (941, 1), (1777, -1), (569, 1), (2131, -1), (1447, 1)],
        [(463, -1), (2267, -1), (829, 1), (1229, -1), (1613, 1), (977, -1)],
    )
]


def agree(gold: Any, answer: Any) -> bool | None:
    """
    Compare two parsed answers.

    Args:
        gold (`sympy.Basic`):
            A number, an expression, a tuple, a finite set, an interval or a matrix.
        answer (`sympy.Basic`):
            Another.

    Returns:
        `bool | None`: Whether they are the same; `None` if it takes more than arithmetic to tell.

    Example:

    >>> x = sympy.Symbol("x", real=True)
    >>> agree((x + 1) ** 2, x**2 + 2 * x + 1), agree(sympy.sqrt(x**2), x), agree(sympy.Float("1e-9"), sympy.Integer(0))
    (True, False, False)
    """
    if isinstance(gold, sympy.Tuple) and isinstance(answer, sympy.Tuple):
        return len(gold) == len(answer) and _all_agree(gold.args, answer.args)
    if isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
        return _sets_agree(list(gold.args), list(answer.args))
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        has_same_ends = gold.left_open == answer.left_open and gold.right_open == answer.right_open
        return has_same_ends and _all_agree((gold.start, gold.end), (answer.start, answer.end))
    if isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        return gold.shape == answer.shape and _all_agree(gold.flat(), answer.flat())
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        return _equations_agree(gold, answer)
    if _is_inequality(gold) and _is_inequality(answer):
        return _inequalities_agree(gold, answer)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _expressions_agree(gold, answer)
    return None


def _all_agree(golds: Sequence[Any], answers: Sequence[Any]) -> bool | None:
    results = [agree(gold, answer) for gold, answer in zip(golds, answers, strict=True)]
    if False in results:
        return False
    return None if None in results else True


def _sets_agree(golds: list[Any], answers: list[Any]) -> bool | None:
    for gold in golds:
        results = [agree(gold, answer) for answer in answers]
        if True not in results:
            return None if None in results else False
        del answers[results.index(True)]
    return not answers


def _equations_agree(gold: Any, answer: Any) -> bool | None:
    if not all(isinstance(side, sympy.Expr) for side in (*gold.args, *answer.args)):
        return None
    if (
        gold.lhs == answer.lhs
        and gold.lhs.is_Symbol
        and gold.lhs not in gold.rhs.free_symbols | answer.rhs.free_symbols
    ):
        return agree(gold.rhs, answer.rhs)
    differences = [side.lhs - side.rhs for side in (gold, answer)]
    if _expressions_agree(*differences) or _expressions_agree(differences[0], -differences[1]):
        return True
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if names and all(difference.is_polynomial(*names) for difference in differences):
        left, right = (sympy.Poly(difference, *names) for difference in differences)
        if left.total_degree() == right.total_degree() == 1:
            # Two straight lines (or planes, or numbers) are the same if and only if their coefficients are in proportion.
            factor = right.LC() / left.LC() if left.LM() == right.LM() else 0
            return bool((left * factor - right).is_zero)
    return None


def _is_inequality(relation: Any) -> bool:
    if isinstance(relation, sympy.And):
        return all(map(_is_inequality, relation.args))
    return isinstance(relation, sympy.core.relational._Inequality)


def _inequalities_agree(gold: Any, answer: Any) -> bool | None:
    if len(gold.free_symbols) != 1 or gold.free_symbols != answer.free_symbols:
        return None
    try:
        return agree(gold.as_set(), answer.as_set())
    except NotImplementedError:
        return None


def _expressions_agree(gold: sympy.Expr, answer: sympy.Expr) -> bool | None:
    # The parser takes the imaginary unit for a variable.
    gold, answer = (
        side.subs({name: sympy.I for name in side.free_symbols if name.name == "i"}) for side in (gold, answer)
    )
    if all(isinstance(side, sympy.Symbol) or _is_product_of_symbols(side) for side in (gold, answer)):
        return None  # `abc` may be one name or a product of three
    if answer.has(sympy.zoo, sympy.nan):
        return False  # 1/0 is no answer to anything
    has_infinity = [expression.has(sympy.oo, -sympy.oo) for expression in (gold, answer)]
    if any(has_infinity):
        return bool(gold == answer) if all(has_infinity) else None
    if gold == answer:
        return True
    if not all(isinstance(node, _ELEMENTARY) for side in (gold, answer) for node in sympy.preorder_traversal(side)):
        return None
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not names:
        return _numbers_agree(gold, answer)
    if len(names) > len(_POINTS[0]):
        return None
    return _agree_at_points(gold, answer, names)


def _is_product_of_symbols(expression: sympy.Expr) -> bool:
    return bool(expression.is_Mul) and all(isinstance(factor, sympy.Symbol) for factor in expression.args)


def _numbers_agree(gold: sympy.Expr, answer: sympy.Expr) -> bool | None:
    if gold.is_Rational and answer.is_Rational:
        return bool(gold == answer)
    # Most wrong answers differ at once, and what follows takes longer.
    rough_gold, rough_answer = gold.evalf(), answer.evalf()
    if _is_finite(rough_gold) and _is_finite(rough_answer):
        size, difference = max(abs(rough_gold), abs(rough_answer)), abs(rough_gold - rough_answer)
        if difference > 2 * MAX_RELATIVE_ERROR * size:
            return False
    is_decimal = gold.has(sympy.Float) or answer.has(sympy.Float)
    if not is_decimal:
        exact_gold, exact_answer = gold.doit(), answer.doit()
        if exact_gold.is_Rational and exact_answer.is_Rational:
            return bool(exact_gold == exact_answer)
        if {exact_gold.is_rational, exact_answer.is_rational} == {True, False}:
            return False  # however many digits they share
    left, right = gold.evalf(EXACT_DIGITS), answer.evalf(EXACT_DIGITS)
    if not _is_finite(left):
        return None
    if not _is_finite(right):
        return False
    size, difference = max(abs(left), abs(right)), abs(left - right)
    if not is_decimal:
        return bool(difference <= EXACT_ERROR * size)
    if difference <= SAME_DECIMAL * size:
        return True
    has_same_places = all(
        round(part(left), DECIMAL_PLACES) == round(part(right), DECIMAL_PLACES) for part in (sympy.re, sympy.im)
    )
    return bool(has_same_places and difference <= MAX_RELATIVE_ERROR * size)


def _agree_at_points(gold: sympy.Expr, answer: sympy.Expr, names: list[Any]) -> bool | None:
    error = SAME_DECIMAL if gold.has(sympy.Float) or answer.has(sympy.Float) else POINT_ERROR
    # Where the gold is real it has to be matched; only one that is real nowhere is compared as a complex function.
    real_matches: list[bool] = []
    complex_matches: list[bool] = []
    for values in _POINTS:
        point = dict(zip(names, values, strict=False))
        left, right = (side.subs(point).evalf(POINT_DIGITS) for side in (gold, answer))
        if not _is_finite(left):
            continue
        matches = complex_matches if left.has(sympy.I) else real_matches
        matches.append(
            _is_finite(right) and bool(abs(left - right) <= max(error * max(abs(left), abs(right)), POINT_ZERO))
        )
        if real_matches and not real_matches[-1]:
            return False
    matches = real_matches or complex_matches
    return all(matches) if len(matches) >= 2 else None


def _is_finite(value: Any) -> bool:
    return bool(value.is_number) and value.is_finite is True and not value.free_symbols
