"""Numbers and expressions compared by arithmetic, and the parser's two attempts."""

import random
from fractions import Fraction

import corpus
import pytest
import sympy
from latex2sympy2_extended import latex2sympy2
from latex2sympy2_extended.antlr_parser import PSParser
from sympy.abc import i, n, x, y

from trl_dapo.grading import symbolic, two_stage_parser
from trl_dapo.grading.agreement import agree
from trl_dapo.grading.exact import Question, grade_cheaply


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
        (1 / (1 + i), (1 - i) / 2),
        (sympy.Tuple(sympy.Float("0.5"), sympy.sqrt(8)), sympy.Tuple(sympy.Rational(1, 2), 2 * sympy.sqrt(2))),
        (sympy.FiniteSet(1, sympy.sqrt(8)), sympy.FiniteSet(2 * sympy.sqrt(2), 1)),
        (sympy.Eq(y, 2 * x + 1), sympy.Eq(2 * x - y + 1, 0)),
        (sympy.And(x > 2, x < 5), sympy.And(x < 5, x > 2)),
        (sympy.Interval(0, sympy.sqrt(8)), sympy.Interval(0, 2 * sympy.sqrt(2))),
        (sympy.Matrix([[1, x - x]]), sympy.Matrix([[1, 0]])),
        (sympy.oo, sympy.oo),
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
        (sympy.Tuple(1, 2), sympy.Tuple(2, 1)),
        (sympy.Tuple(1, 2), sympy.Tuple(1, 2, 3)),
        (sympy.FiniteSet(1, 2), sympy.FiniteSet(1, 3)),
        (sympy.Eq(y, 2 * x + 1), sympy.Eq(y, 2 * x - 1)),
        (sympy.Eq(x + y, 1), sympy.Eq(x + 2 * y, 1)),
        (x > 3, x >= 3),
        (sympy.Interval(0, 1), sympy.Interval.Ropen(0, 1)),
        (sympy.Matrix([[1, 2]]), sympy.Matrix([[1], [2]])),
    ],
)
def test_what_is_not_the_same_does_not_agree(gold: sympy.Basic, answer: sympy.Basic):
    assert agree(gold, answer) is False
    assert agree(answer, gold) in (False, None)  # None: a gold that is no number is not for it to judge


@pytest.mark.parametrize(
    ("gold", "answer"),
    [(sympy.Symbol("ab"), x * y), (sympy.Tuple(1, 2), sympy.FiniteSet(1, 2)), (sympy.factorial(n), n)],
)
def test_what_takes_more_than_arithmetic_is_left_open(gold: sympy.Basic, answer: sympy.Basic):
    assert agree(gold, answer) is None


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


def test_the_two_attempts_of_the_parser_give_what_the_full_mode_gives(monkeypatch: pytest.MonkeyPatch):
    questions = [grade_cheaply(row["gold"], row["completion"]) for row in corpus.load_corpus()]
    texts = {text for q in questions if isinstance(q, Question) for text in (q.gold, q.answer) if text}
    texts |= {
        r"\frac{1}{",
        "1+",
        "((x)",
        r"\sqrt",
        "x^",
        r"\frac12\frac34",
        r"a \le b \le c",
        r"f(x)=\sin x \cos 2x^2",
    }

    def parsed(text: str) -> object:
        try:
            return sympy.srepr(latex2sympy2.latex2sympy(text))
        except Exception as error:
            return type(error)

    texts = sorted(text for text in texts if len(text) < 300 and "10000000" not in text and "9^{9" not in text)
    assert len(texts) > 200
    monkeypatch.setattr(latex2sympy2, "PSParser", PSParser)
    full = [parsed(text) for text in texts]
    monkeypatch.setattr(latex2sympy2, "PSParser", two_stage_parser.TwoStageParser)
    assert [parsed(text) for text in texts] == full


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
