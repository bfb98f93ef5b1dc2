r"""Whether two sympy objects are the same number, expression or set of real numbers, by high-precision arithmetic.

Exact expressions must agree to many digits, and decimals within the rounding of their writer. Expressions with variables
are compared at fixed points, where two different ones of elementary functions do not agree to 20 digits by accident. That
finds identities that `simplify` does not, and is faster. All comparisons are relative: no number is too small to differ.
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
# ... and in any case if they agree to more digits than people write.
SAME_DECIMAL = sympy.Float("1e-12")
# Points at which both expressions must have a value.
MIN_POINTS = 2
# Names that stand for whole numbers, and how many of these are tried.
_WHOLE_NAMES = frozenset("nkmjlrN")
NUM_WHOLE_POINTS = 7

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
    hyperbolic.InverseHyperbolicFunction,
    sympy.factorial,
    sympy.factorial2,
    sympy.binomial,
    sympy.gamma,
    sympy.floor,
    sympy.ceiling,
    sympy.Mod,
    sympy.Max,
    sympy.Min,
    sympy.sign,
    sympy.re,
    sympy.im,
)
_UNEVALUATED = (sympy.Sum, sympy.Product, sympy.Integral)
# Values for variables, in order of their names: generic, of both signs, the positive first.
_POINTS = [
    [sympy.Rational(numerator, 1009) * sign for numerator, sign in row]
    for row in (
        [(877, 1), (1531, 1), (2503, 1), (653, 1), (1999, 1), (313, 1), (1123, 1), (2287, 1), (1373, 1), (727, 1)],
        [(1699, 1), (491, 1), (1153, 1), (2741, 1), (727, 1), (1873, 1), (2621, 1), (557, 1), (1951, 1), (1289, 1)],
        [(1301, -1), (941, 1), (1777, -1), (569, 1), (2131, -1), (1447, 1), (839, 1), (1621, -1), (379, 1), (2659, 1)],
        [
            (463, -1),
            (2267, -1),
            (829, 1),
            (1229, -1),
            (1613, 1),
            (977, -1),
            (1381, -1),
            (2011, 1),
            (691, -1),
            (1559, 1),
        ],
    )
]
# Functions that are constant over whole intervals are compared where they take many values.
_STEPS = (sympy.floor, sympy.ceiling, sympy.Mod)
_FAR_POINTS = [[value * factor for value in row] for factor in (41, 359) for row in _POINTS]


def agree(gold: Any, answer: Any) -> bool | None:
    """
    Compare two expressions, or two sets of real numbers.

    Args:
        gold (`sympy.Expr` or `sympy.Set`):
            A number, an expression, an interval, a finite set, or a union of them.
        answer (`sympy.Expr` or `sympy.Set`):
            Another.

    Returns:
        `bool | None`: Whether they are the same; `None` if it takes more than arithmetic to tell.

    Example:

    >>> x = sympy.Symbol("x", real=True)
    >>> agree((x + 1) ** 2, x**2 + 2 * x + 1), agree(sympy.sqrt(x**2), x), agree(sympy.Float("1e-9"), sympy.Integer(0))
    (True, False, False)
    """
    if isinstance(gold, sympy.Set) and isinstance(answer, sympy.Set):
        return _sets_agree(gold, answer)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _expressions_agree(gold, answer)
    return None


def are_proportional(gold: sympy.Expr, answer: sympy.Expr, only_positive: bool) -> bool | None:
    """
    Tell whether one expression is a constant multiple of the other, so that both are zero for the same values.

    Args:
        gold, answer (`sympy.Expr`):
            The expressions.
        only_positive (`bool`):
            Whether the factor must be positive, so that the expressions have the same sign too.

    Returns:
        `bool | None`: Whether they are; `None` if it takes more than arithmetic to tell.

    Example:

    >>> x = sympy.Symbol("x", real=True)
    >>> are_proportional(2 * x - 4, 2 - x, only_positive=False), are_proportional(2 * x - 4, 2 - x, only_positive=True)
    (True, False)
    """
    if not (_is_elementary(gold) and _is_elementary(answer)):
        return None
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if len(names) > len(_POINTS[0]) or not names:
        return None
    ratios = []
    for values in _POINTS:
        point = dict(zip(names, values, strict=False))
        left, right = (side.subs(point).evalf(POINT_DIGITS) for side in (gold, answer))
        if _is_finite(left) and _is_finite(right):
            if abs(left) < POINT_ZERO or abs(right) < POINT_ZERO:
                return False
            ratios.append(left / right)
    error = SAME_DECIMAL if gold.has(sympy.Float) or answer.has(sympy.Float) else POINT_ERROR
    if len(ratios) < MIN_POINTS:
        return None
    are_same = all(bool(abs(ratio - ratios[0]) <= error * abs(ratios[0])) for ratio in ratios)
    return are_same and (not only_positive or bool(sympy.re(ratios[0]) > 0))


def _sets_agree(gold: Any, answer: Any) -> bool | None:
    if gold == answer:
        return True
    if isinstance(gold, sympy.Union) and isinstance(answer, sympy.Union):
        return _match(list(gold.args), list(answer.args))
    if isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
        return _match(list(gold.args), list(answer.args))
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        has_same_ends = gold.left_open == answer.left_open and gold.right_open == answer.right_open
        return has_same_ends and _all_agree((gold.start, gold.end), (answer.start, answer.end))
    if isinstance(gold, sympy.Complement) and isinstance(answer, sympy.Complement):
        return _all_agree(gold.args, answer.args)
    return False


def _all_agree(golds: Sequence[Any], answers: Sequence[Any]) -> bool | None:
    results = [agree(gold, answer) for gold, answer in zip(golds, answers, strict=True)]
    if False in results:
        return False
    return None if None in results else True


def _match(golds: list[Any], answers: list[Any]) -> bool | None:
    if len(golds) != len(answers):
        return False
    for gold in golds:
        results = [agree(gold, answer) for answer in answers]
        if True not in results:
            return None if None in results else False
        del answers[results.index(True)]
    return True


def _expressions_agree(gold: sympy.Expr, answer: sympy.Expr) -> bool | None:
    if answer.has(sympy.zoo, sympy.nan):
        return False  # 1/0 is no answer to anything
    if gold == answer:
        return True
    if gold.has(*_UNEVALUATED) or answer.has(*_UNEVALUATED):
        gold, answer = gold.doit(), answer.doit()
    has_infinity = [expression.has(sympy.oo, -sympy.oo) for expression in (gold, answer)]
    if any(has_infinity):
        return bool(gold == answer)
    if not (_is_elementary(gold) and _is_elementary(answer)):
        return bool(sympy.simplify(gold - answer) == 0)
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not names:
        return _numbers_agree(gold, answer)
    if len(names) > len(_POINTS[0]):
        return bool(sympy.expand(gold - answer) == 0)
    points = _POINTS + _FAR_POINTS if gold.has(*_STEPS) or answer.has(*_STEPS) else _POINTS
    is_same = _agree_at_points(gold, answer, names, points)
    if is_same is None:
        # Too few of the points are real, or there are poles.
        is_same = _agree_at_points(gold, answer, names, _FAR_POINTS)
    if not is_same and all(name.name in _WHOLE_NAMES for name in names) and _alternates(gold - answer):
        # Of both parities, in all combinations.
        points = [
            [sympy.Integer(start * (place + 1) + place) for place in range(len(names))]
            for start in range(1, NUM_WHOLE_POINTS)
        ]
        return _agree_at_points(gold, answer, names, points)
    return is_same


def _is_elementary(expression: sympy.Expr) -> bool:
    return all(isinstance(node, _ELEMENTARY) for node in sympy.preorder_traversal(expression))


def _alternates(expression: sympy.Expr) -> bool:
    r"""Whether it has parts like `(-1)^n` or `\cos n\pi`, which mean something for whole numbers only."""
    return any(
        (isinstance(node, sympy.Pow) and node.base.is_negative and node.exp.free_symbols)
        or (isinstance(node, trigonometric.TrigonometricFunction) and node.has(sympy.pi) and node.free_symbols)
        for node in sympy.preorder_traversal(expression)
    )


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


def _agree_at_points(
    gold: sympy.Expr, answer: sympy.Expr, names: list[Any], points: Sequence[Sequence[Any]]
) -> bool | None:
    error = SAME_DECIMAL if gold.has(sympy.Float) or answer.has(sympy.Float) else POINT_ERROR
    # Where the gold is real it has to be matched; only one that is real nowhere is compared as a complex function.
    real_matches: list[bool] = []
    complex_matches: list[bool] = []
    for values in points:
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
    return all(matches) if len(matches) >= MIN_POINTS else None


def _is_finite(value: Any) -> bool:
    return bool(value.is_number) and value.is_finite is True and not value.free_symbols
