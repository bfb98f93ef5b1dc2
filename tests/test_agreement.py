"""Numbers, expressions and sets of real numbers, compared by arithmetic."""

import random
from fractions import Fraction

import pytest
import sympy
from sympy.abc import n, x, y

from trl_dapo.grading import symbolic
from trl_dapo.grading.agreement import agree, are_proportional


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (sympy.sqrt(3 + 2 * sympy.sqrt(2)), 1 + sympy.sqrt(2)),
        (sympy.Pow(3, 50, evaluate=False), sympy.Integer(3**50)),
        (sympy.Float("0.333333"), sympy.Rational(1, 3)),
        (sympy.Float("6.02") * 10**23, sympy.Integer(602) * 10**21),
        ((x + 1) ** 2, x**2 + 2 * x + 1),
        (sympy.sin(2 * x), 2 * sympy.sin(x) * sympy.cos(x)),
        (sympy.log(x**2), 2 * sympy.log(sympy.Abs(x))),
        (1 / (1 + sympy.I), (1 - sympy.I) / 2),
        (sympy.FiniteSet(1, sympy.sqrt(8)), sympy.FiniteSet(2 * sympy.sqrt(2), 1)),
        (sympy.Interval(0, sympy.sqrt(8)), sympy.Interval(0, 2 * sympy.sqrt(2))),
        (sympy.oo, sympy.oo),
        (sympy.factorial(n), n * sympy.factorial(n - 1)),
        (sympy.binomial(n, 2), n * (n - 1) / 2),
        ((-1) ** n, sympy.cos(sympy.pi * n)),
        (sympy.Sum(x, (x, 1, n)), n * (n + 1) / 2),
        (
            sympy.Union(sympy.Interval(0, 1), sympy.Interval(3, 4)),
            sympy.Union(sympy.Interval(3, 4), sympy.Interval(0, 1)),
        ),
    ],
)
def test_what_is_the_same_agrees(gold: sympy.Basic, answer: sympy.Basic):
    assert agree(gold, answer) is True
    assert agree(answer, gold) is True


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (sympy.Pow(3, 50, evaluate=False), sympy.Integer(3**50 - 1)),
        (sympy.sqrt(2), sympy.Rational(14142135623730950488016887242096980785696718753769, 10**49)),
        (sympy.pi, sympy.Rational(22, 7)),
        (sympy.Float("1e-9"), sympy.Float("2e-9")),
        (sympy.Float("1e-9"), sympy.Integer(0)),
        (sympy.pi / 10**20, 1 / sympy.Integer(10) ** 20),
        (sympy.pi + sympy.Rational(1, 10**20), sympy.pi),
        (sympy.sqrt(x**2), x),
        (x**2, x**2 + sympy.Rational(1, 10**9)),
        (x + y, x - y),
        (2 * n, 3 * n),
        (sympy.Integer(5), sympy.zoo),
        (sympy.FiniteSet(1, 2), sympy.FiniteSet(1, 3)),
        (sympy.Interval(0, 1), sympy.Interval.Ropen(0, 1)),
        (1 / sympy.factorial(2004), 1 / sympy.factorial(2006)),
        (sympy.Rational(1, 2) ** 1000, sympy.Rational(1, 2) ** 1001),
        (sympy.floor(n / 4), sympy.floor(n / 5)),
        (sympy.factorial(n), n),
        (sympy.Union(sympy.Interval(0, 1), sympy.Interval(3, 4)), sympy.Interval(0, 4)),
    ],
)
def test_what_is_not_the_same_does_not_agree(gold: sympy.Basic, answer: sympy.Basic):
    assert agree(gold, answer) is False
    assert agree(answer, gold) in (False, None)  # None: a gold that is no number is not for it to judge


def test_a_number_and_a_set_are_left_open():
    assert agree(sympy.Integer(1), sympy.FiniteSet(1)) is None


@pytest.mark.parametrize(
    ("gold", "answer", "only_positive", "are_so"),
    [
        (y - 2 * x - 1, 2 * x - y + 1, False, True),
        (y - 2 * x - 1, 2 * x - y + 1, True, False),
        (x**2 / 4 + y**2 - 1, x**2 + 4 * y**2 - 4, True, True),
        (x**2 / 4 + y**2 - 1, x**2 + 4 * y**2 - 1, False, False),
        (x - 5, y - 5, False, False),
        (x - x, x, False, False),
    ],
)
def test_equations_have_the_same_solutions_if_they_are_proportional(
    gold: sympy.Expr, answer: sympy.Expr, only_positive: bool, are_so: bool
):
    assert are_proportional(gold, answer, only_positive) is are_so


def test_rational_functions_agree_exactly_when_they_are_equal():
    # Known by construction: p/q times r/r is p/q, and one with another coefficient is not.
    rng = random.Random(0)
    for _ in range(40):
        p, q, r = (sum(rng.randint(-9, 9) * x**k for k in range(3)) + 1 + x**3 for _ in range(3))
        assert agree(p / q, sympy.expand(p * r) / sympy.expand(q * r)) is True
        assert agree(p / q, sympy.expand(p * r + 1) / sympy.expand(q * r)) is False


def test_rational_numbers_agree_as_fractions_do():
    rng = random.Random(0)
    for _ in range(200):
        a, b, c, d = (rng.randint(1, 30) for _ in range(4))
        unevaluated = [
            sympy.Mul(p, sympy.Pow(q, -1, evaluate=False), evaluate=False)
            for p, q in ((sympy.Integer(a), sympy.Integer(b)), (sympy.Integer(c), sympy.Integer(d)))
        ]
        assert agree(*unevaluated) is (Fraction(a, b) == Fraction(c, d))


def test_a_pair_has_the_same_comparison_whatever_was_compared_before():
    pairs = [
        (r"\frac{\sin x}{x}", r"\frac{\cos x}{x}"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        ("n!", r"n\cdot(n-1)!"),
    ]
    first = [symbolic.compare(*pair) for pair in pairs]
    for _ in range(3):
        pairs_and_comparisons = list(zip(pairs, first, strict=True))
        random.Random(1).shuffle(pairs_and_comparisons)
        assert [symbolic.compare(*pair) for pair, _ in pairs_and_comparisons] == [
            comparison for _, comparison in pairs_and_comparisons
        ]
