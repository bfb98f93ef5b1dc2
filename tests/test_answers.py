"""Where the final answer stands, and which rational number it is."""

import time
from fractions import Fraction

import pytest

from trl_dapo.grading.answers import declared_answer, final_answer, gold_answer
from trl_dapo.grading.delimiters import strip_delimiters
from trl_dapo.grading.rationals import MAX_DIGITS, parse_rational, rationals_agree


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"so \fbox{42}.", "42"),
        (r"so \boxed 42.", "42"),
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"$\boxed{\left\{1, 2\right\}}$", r"\left\{1, 2\right\}"),
        (r"so \boxed{$9\pi$}", r"9\pi"),
        (r"so \\boxed{42}", "42"),
    ],
)
def test_a_box_holds_the_final_answer(completion: str, answer: str):
    assert final_answer(completion) == answer


def test_the_last_of_two_neighbouring_boxes_counts():
    assert final_answer(r"\boxed{5}, no: \boxed{7}") == "7"


def test_an_unfinished_box_leaves_the_last_balanced_one():
    assert final_answer(r"\boxed{5}. Check: \boxed{\frac{7}{") == "5"


def test_an_unfinished_box_alone_is_no_answer():
    assert final_answer(r"Answer: \boxed{12") is None


def test_an_empty_box_is_no_answer():
    assert final_answer(r"I will put it into \boxed{}.") is None


def test_a_box_around_a_box_holds_its_answer():
    assert final_answer(r"\boxed{\boxed{7}}") == "7"


@pytest.mark.parametrize(
    "completion",
    [
        "Answer: 42",
        "answer: $42$.",
        "**Answer:** 42",
        "**Answer**: 42",
        "Final Answer: **42**",
        "Answer:\n\n42\n",
        "ANSWER : 42",
    ],
)
def test_an_answer_line_holds_the_final_answer(completion: str):
    assert final_answer("6 * 7 is 40, no.\n" + completion) == "42"


def test_the_last_answer_line_counts():
    assert final_answer("Answer: 5\nWait.\nAnswer: 7") == "7"


def test_the_later_of_a_box_and_an_answer_line_counts():
    assert final_answer("\\boxed{5}\nAnswer: 7") == "7"
    assert final_answer("Answer: 7\n\\boxed{5}") == "5"


def test_a_gsm8k_line_holds_the_final_answer():
    assert final_answer("9 * 2 = 18 dollars.\n#### 1,800") == "1,800"


@pytest.mark.parametrize("heading", ["#### Step 2: count", "#### Conclusion"])
def test_a_markdown_heading_is_no_gsm8k_line(heading: str):
    assert final_answer(f"{heading}\nThe answer is 5.") == "5"


def test_a_gsm8k_line_in_words_ends_the_completion():
    assert final_answer("#### Conclusion\nThere is none.\n#### no solution\n") == "no solution"


@pytest.mark.parametrize("formula", ["\\[\n42\n\\]", "$$\n42\n$$"])
def test_an_answer_line_may_go_on_in_a_display_formula(formula: str):
    assert final_answer(f"**Answer:**\n{formula}\nas was asked.") == "42"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Thus the answer is 42. I hope it helps.", "42"),
        ("Thus the final answer is: 3.14.", "3.14"),
        (r"The answer is $\frac12$ because it halves.", r"\frac12"),
        ("The answer is not 5, the answer is 7", "7"),
    ],
)
def test_the_phrase_the_answer_is_names_the_final_answer(completion: str, answer: str):
    assert final_answer(completion) == answer


@pytest.mark.parametrize("completion", ["42", " $x^2 + 1$ ", "Monday", r"\text{even}", "42 apples", r"2\sin x"])
def test_a_completion_that_is_nothing_but_an_expression_is_its_own_answer(completion: str):
    assert final_answer(completion) == strip_delimiters(completion)


@pytest.mark.parametrize(
    "completion", ["", "  \n", "I think it is 5", "So 5", "3 + 4 = 7\nand 7 + 1 = 8", "7" * 201, "..."]
)
def test_a_completion_that_only_mentions_numbers_has_no_answer(completion: str):
    assert final_answer(completion) is None


def test_the_text_after_the_reasoning_comes_first():
    assert final_answer(r"<think>Maybe \boxed{5}?</think> Answer: 7") == "7"


def test_a_guess_in_the_reasoning_is_no_answer():
    assert final_answer("<think>Perhaps the answer is 5.</think> I cannot say what it is.") is None


def test_a_box_in_the_reasoning_is_no_answer():
    assert final_answer(r"<think>So \boxed{5}.</think> That is all there is.") is None


def test_reasoning_without_an_end_has_no_answer():
    assert final_answer(r"<think>So \boxed{5}.") is None


def test_a_declaration_of_which_nothing_can_be_read_is_none():
    assert final_answer("Answer: 5\nThis answer is consistent with the bound.") == "5"


def test_boxes_of_one_sentence_are_known_together():
    declared = declared_answer(r"They are $\boxed{2}$ and $\boxed{3}$.")
    assert declared is not None
    assert (declared.text, declared.joined) == ("3", "2, 3")


def test_boxes_joined_by_or_are_one_answer():
    assert final_answer(r"$x=\boxed{2}$ or $x=\boxed{3}$") == "2 or 3"


@pytest.mark.parametrize(
    "completion",
    [
        "{" * 200_000,
        r"\boxed{" * 50_000,
        "\\" * 200_000,
        "answer" + " " * 200_000,
        "answer: " * 50_000,
        "$" * 200_000,
        r"\(" * 90_000,
        r"\boxed{" * 50_000 + "}" * 50_000,
        "#### so 5 " * 50_000,
        r"answer: \boxed{" * 50_000,
        r"answer: \[" * 50_000,
        r"the answer is $" * 50_000,
    ],
)
def test_long_nonsense_is_searched_in_linear_time(completion: str):
    start = time.process_time()
    final_answer(completion)
    assert time.process_time() - start < 2.0  # quadratic time would take minutes


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("16 - 3 = <<16-3=13>>13\n#### 13", "13"),
        ("18", "18"),
        (r"$\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed{9\pi}", r"9\pi"),
        (r"We get 5, so \boxed{7}.", "7"),
        ("#### no solution", "no solution"),
    ],
)
def test_the_gold_answer_stands_in_a_box_or_a_gsm8k_line_or_is_the_whole_text(gold: str, answer: str):
    assert gold_answer(gold) == answer


@pytest.mark.parametrize("gold", ["", " \n", "$$", "...", r"\boxed{5"])
def test_a_gold_without_an_answer_gives_none(gold: str):
    assert gold_answer(gold) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-7", -7),
        ("+7", 7),
        ("\u22127", -7),
        ("007", 7),
        ("1,234,567", 1234567),
        ("1{,}234", 1234),
        (r"1\,234", 1234),
        (r"1,\!234", 1234),
        ("1 234", 1234),
        ("1\u202f234", 1234),
        ("3.50", Fraction(7, 2)),
        (".5", Fraction(1, 2)),
        ("1,234.5", Fraction(2469, 2)),
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        (r"\tfrac34", Fraction(3, 4)),
        (r"3\frac12", Fraction(7, 2)),
        (r"-3\frac{1}{2}", Fraction(-7, 2)),
        ("3 1/2", Fraction(7, 2)),
        ("$42$.", 42),
        (r"\(42\)", 42),
    ],
)
def test_a_plain_number_is_read_exactly(text: str, value: int | Fraction):
    assert parse_rational(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        r"9\pi",
        "1,2",
        "1,23",
        "12,34",
        "(5)",
        "(1,234)",
        "5 or 6",
        "5!",
        "1e5",
        "$18",
        "18€",
        "50%",
        r"12.5\%",
        "50 percent",
        "42 apples",
        r"5\text{ cm}^2",
        r"90^\circ",
        "2^3",
        "--5",
        "1/0",
        r"\frac{1}{0}",
        r"3\frac{5}{2}",
        "1/2/3",
        "10:30",
        "5 million",
        r"5\text{ million}",
        "3 dozen",
        "2 thirds",
        "6 xy",
        "10 a",
        "6 m",
        "5 M",
        "5 the",
        "5 minutes 30 seconds",
        "x=5",
        r"\pm 3",
        "١٢",
        "five",
        "1.2.3",
    ],
)
def test_what_is_not_certainly_one_number_is_not_read(text: str):
    assert parse_rational(text) is None


def test_numbers_are_read_up_to_the_digit_limit():
    assert parse_rational("1" * MAX_DIGITS) == int("1" * MAX_DIGITS)
    assert parse_rational("1" * (MAX_DIGITS + 1)) is None


def test_two_rational_numbers_agree_exactly_unless_one_is_a_decimal():
    third = Fraction(1, 3)
    assert rationals_agree(third, Fraction(333333, 1000000), is_decimal=True)
    assert not rationals_agree(third, Fraction(333333, 1000000), is_decimal=False)
    assert not rationals_agree(third, Fraction(333, 1000), is_decimal=True)
    assert not rationals_agree(Fraction(0), Fraction(1, 10**9), is_decimal=True)


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        (r"**$\frac{1}{2}$**.", r"\frac{1}{2}"),
        (r"\[ x \]", "x"),
        ("$5 and $6", "$5 and $6"),
        (r"\left\{1\right.", r"\left\{1\right."),
        ("5!", "5!"),
    ],
)
def test_delimiters_around_an_answer_are_stripped(text: str, stripped: str):
    assert strip_delimiters(text) == stripped
