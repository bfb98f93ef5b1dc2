"""What answers are read as, piece by piece: properties of the small functions, and values known by construction."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dapo.grading.arithmetic import rational_value
from trl_dapo.grading.delimiters import strip_delimiters, without_math_dollars
from trl_dapo.grading.nodes import Apply, Bracket, Choice, Clock, Listing, Name, Node, Number, Phrase, Quantity, Words
from trl_dapo.grading.number_words import number_of_words
from trl_dapo.grading.reading import MAX_CHARACTERS, is_mathematical, read
from trl_dapo.grading.spelling import respell
from trl_dapo.grading.tokens import tokenize
from trl_dapo.grading.units import read_unit


PLAIN = st.text(alphabet="0123456789+-=<>()[]., xyab", max_size=20)


def number(value: Fraction | int) -> Number:
    return Number(Fraction(value))


# Spelling.


@given(PLAIN)
def test_full_width_characters_are_read_like_ascii(text: str):
    wide = "".join(chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character for character in text)
    assert respell(wide) == respell(text.replace("\u3000", " "))


@given(st.integers(0, 10**9), st.sampled_from([",", "{,}", ",\\!", "\\,", "\\ ", "~", " ", "\u202f"]))
def test_separators_of_thousands_are_dropped(value: int, separator: str):
    assert respell(f"{value:,}".replace(",", separator)) == str(value)


@given(st.integers(-999, 999))
def test_superscripts_and_subscripts_of_unicode_are_those_of_latex(value: int):
    digits = str(value)
    superscript = digits.translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    subscript = digits.translate(str.maketrans("0123456789-", "₀₁₂₃₄₅₆₇₈₉₋"))
    assert respell(f"x{superscript}") == f"x^{{{value}}}"
    assert respell(f"x{subscript}") == f"x_{{{value}}}"


@pytest.mark.parametrize("font", ["mathbf", "boldsymbol", "mathit", "text", "textbf", "mathrm", "underline", "boxed"])
@given(value=st.fractions(-99, 99, max_denominator=50))
def test_a_font_changes_no_number(font: str, value: Fraction):
    written = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    node = read(rf"\{font}{{{written}}}")
    assert node is not None
    assert rational_value(node) == value


@given(st.text(max_size=30))
def test_spelling_raises_nothing_and_stays_short(text: str):
    assert len(respell(text)) <= 20 * len(text)


# Delimiters.


@given(
    st.sampled_from(["x", "12", r"\frac{1}{2}", "(1, 2)"]),
    st.lists(st.sampled_from(range(5)), max_size=3, unique=True),
)
def test_delimiters_come_off_in_any_order(answer: str, wrappings: list[int]):
    text = answer
    for wrapping in wrappings:
        text = [f"${text}$", rf"\({text}\)", f"**{text}**", f" {text}. ", rf"\[ {text} \]"][wrapping]
    assert strip_delimiters(text).strip() == answer


@given(st.lists(st.integers(1, 999), min_size=1, max_size=4))
def test_dollars_of_formulas_go_and_those_of_amounts_stay(values: list[int]):
    assert "$" not in without_math_dollars(" and ".join(f"${value}$" for value in values))
    amounts = without_math_dollars(" and ".join(f"${value}" for value in values))
    assert amounts.count("\\$") == len(values)


@pytest.mark.parametrize("mark", ["✅", "∎", r"$\blacksquare$", r"\qed", r"\square", "🎉🎉"])
def test_end_marks_are_dropped(mark: str):
    assert strip_delimiters(f"$73$ {mark}") == "73"


# Numbers in words.


def in_words(value: int) -> str:
    ones = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    small = [*ones.split(), "eighteen", "nineteen"]
    tens = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if value < 20:
        return small[value]
    if value < 100:
        return tens[value // 10] + (f"-{small[value % 10]}" if value % 10 else "")
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if value >= size:
            rest = value % size
            return f"{in_words(value // size)} {name}" + (f" {in_words(rest)}" if rest else "")
    raise AssertionError


@given(st.integers(0, 10**9 - 1))
def test_numbers_in_words_are_read(value: int):
    assert number_of_words(in_words(value)) == value


@pytest.mark.parametrize("text", ["", "Monday", "one two", "twenty thirty", "hundred", "five apples", "thirteen four"])
def test_other_words_are_no_numbers(text: str):
    assert number_of_words(text) is None


# Units.


@given(st.sampled_from(["km", "m", "cm", "mm"]), st.integers(1, 3), st.integers(1, 3))
def test_powers_of_units_multiply_their_sizes(name: str, power: int, per: int):
    size = {"km": Fraction(1000), "m": Fraction(1), "cm": Fraction(1, 100), "mm": Fraction(1, 1000)}[name]
    unit = read_unit([name, "^", str(power), "/", "h", "^", str(per)])
    assert unit is not None
    assert unit.factor == size**power / Fraction(3600) ** per
    assert unit.powers == {("m", power), ("s", -per)}


# Expressions: random ones, written down and evaluated apart.


def expression(rng: random.Random, depth: int) -> tuple[str, Fraction]:
    """Return an expression in LaTeX and its value."""
    if depth == 0 or rng.random() < 0.2:
        value = rng.randint(1, 12)
        return str(value), Fraction(value)
    (left, a), (right, b) = expression(rng, depth - 1), expression(rng, depth - 1)
    kind = rng.choice(["sum", "difference", "product", "fraction", "slash", "power", "juxtaposed", "mixed"])
    if kind == "sum":
        return f"({left} + {right})", a + b
    if kind == "difference":
        return rf"\left({left} - {right}\right)", a - b
    if kind == "product":
        return rf"{left} \cdot ({right})", a * b
    if kind == "slash" and b:
        return f"({left})/({right})", a / b
    if kind == "power":
        exponent = rng.randint(2, 3)
        return f"({left})^{{{exponent}}}", a**exponent
    if kind == "juxtaposed":
        return f"({left})({right})", a * b
    if kind == "mixed":
        whole, top = rng.randint(1, 9), rng.randint(1, 4)
        return rf"({whole}\frac{{{top}}}{{{top + 3}}})", whole + Fraction(top, top + 3)
    return (rf"\frac{{{left}}}{{{right}}}", a / b) if b else (left, a)


def test_random_expressions_have_the_values_that_python_computes():
    rng = random.Random(0)
    for _ in range(400):
        text, value = expression(rng, 3)
        node = read(text)
        assert node is not None, text
        assert rational_value(node) == value, text


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("2ab", Apply("*", (number(2), Name("a"), Name("b")))),
        ("aB", Apply("*", (Name("a"), Name("B")))),
        (r"\frac12", Apply("/", (number(1), number(2)))),
        (r"\sin 2x", Apply("sin", (Apply("*", (number(2), Name("x"))),))),
        ("sinx", Apply("sin", (Name("x"),))),
        (r"\log_28", Apply("log", (number(8), number(2)))),
        ("E_{1}", Name("E_1")),
        ("f(2)", Apply("call", (Name("f"), number(2)))),
        (r"0.1\overline{6}", number(Fraction(1, 6))),
        ("3.5", Number(Fraction(7, 2), places=1)),
        ("1e3", number(1000)),
        ("(1, 2)", Bracket("(", ")", (number(1), number(2)))),
        ("]1, 2[", Bracket("(", ")", (number(1), number(2)))),
        ("{1, 2}", Bracket("{", "}", (number(1), number(2)))),
        ("1, 2 or 3", Listing((number(1), number(2), number(3)), "or")),
        ("5 million", Apply("*", (number(5), number(10**6)))),
        ("12:30 p.m.", Clock(750, is_half=False)),
        ("4:30", Clock(270, is_half=True)),
        (r"\textbf{(A)}\ 26", Choice("A", number(26))),
        ("(A)(B)", Apply("*", (Name("A"), Name("B")))),
        ("twenty-one", number(21)),
        (r"\text{Monday}", Words("monday")),
        (r"\text{Row } 2", Phrase((Words("row"), number(2)))),
        (r"\text{no solution}", Bracket("{", "}", ())),
    ],
)
def test_an_answer_is_read_as_what_it_is(text: str, node: Node):
    assert read(text) == node


def test_a_unit_belongs_to_the_whole_expression():
    node = read(r"3 + 2\sqrt{3} \text{ cm}^2")
    assert isinstance(node, Quantity)
    assert node.unit.powers == {("m", 2)}
    assert isinstance(node.value, Apply)


@pytest.mark.parametrize("text", ["", "+", "((", "}", "{", "\x00", "\ud800", r"\frac{1}{", "x" * (MAX_CHARACTERS + 1)])
def test_what_is_no_answer_is_not_read(text: str):
    assert read(text) is None or not is_mathematical(read(text))


@pytest.mark.parametrize(
    "text", ["consistent with 5", "5 more than x", "who knows what", r"\write18{x}", "--", "so 5 is it"]
)
def test_prose_is_no_mathematics(text: str):
    assert not is_mathematical(read(text))


@pytest.mark.parametrize(
    ("opening", "inside", "closing"),
    [
        ("(", "1", ")"),
        (r"\frac{1}{1+", "1", "}"),
        (r"\sqrt{", "2", "}"),
        (r"\sin(", "x", ")"),
        ("x^{", "x", "}"),
        ("-(", "1", ")"),
    ],
)
def test_depth_is_bounded_whatever_the_stack_of_the_caller(opening: str, inside: str, closing: str):
    def deeply(depth: int) -> bool:
        return deeply(depth - 1) if depth else is_mathematical(read(opening * 60 + inside + closing * 60))

    assert not deeply(300)


@pytest.mark.parametrize(
    "text", ["1" + "%" * 900, "1" + "!" * 900, "1" + "/1" * 400, "-" * 900 + "1", "1" + "°" * 900, "x" + "^x" * 400]
)
def test_long_chains_are_read_or_refused_at_once(text: str):
    read.cache_clear()
    read(text)  # and no RecursionError


PARTS = [*"0123456789xyabABC+-*/^_(){}[]|\\,.;:!%$°<>= \n", "\\frac", "\\text{", "\\sqrt", " or ", "\\{", "cm"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
def test_no_text_raises(text: str):
    node = read(text)
    assert node is None or isinstance(node, Node)  # type: ignore[arg-type]


@given(st.text(max_size=40))
def test_tokens_keep_every_character_but_blanks(text: str):
    plain = "".join(character for character in text if character not in "\\$%&#|")
    tokens = tokenize(plain)
    assert len("".join(token.text for token in tokens)) > 0 or not plain.strip()
