"""Answer equivalence: grades, and that the exact path agrees with math-verify."""

import json
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_dapo.grading import equivalence, symbolic
from trl_dapo.grading.equivalence import Grade, GradedAnswer, grade, is_equivalent
from trl_dapo.grading.grades import Comparison


GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"


def grade_of(gold: str, answer: str) -> Grade:
    return is_equivalent(gold, f"Answer: {answer}").grade


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "18.0"),
        ("1234", "1,234"),
        ("0.5", r"\frac{1}{2}"),
        (r"3\frac12", "3.5"),
        ("18", "$18 dollars"),
        (r"9\pi", r"9 \pi"),
        (r"\sqrt{50}", r"5\sqrt{2}"),
        ("x^2+1", "1 + x^2"),
        ("5", "x = 5"),
        ("x=5", "5"),
        ("(1,2)", "(1, 2)"),
        ("[0,1)", r"\left[0, 1\right)"),
        (r"\{1,2\}", "2, 1"),
        (r"\pm 3", "3, -3"),
        (r"1\,234", r"\sqrt{1234^2}"),
        ("Monday", "monday"),
        (r"\text{even}", "even"),
        ("no solution", r"\text{No solution}"),
        ("(C)", "C"),
        (r"\text{(C)}", "C"),
    ],
)
def test_an_equivalent_answer_is_correct(gold: str, answer: str):
    assert grade_of(gold, answer) is Grade.CORRECT


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"9\pi", "9"),
        ("18", "19"),
        ("1/3", "0.333"),
        ("(1,2)", "(2,1)"),
        ("[0,1)", "[0,1]"),
        (r"\pm 3", "3"),
        ("even", "odd"),
        ("stale", "least"),
        ("(C)", "(D)"),
        ("5", "5 or 6"),
    ],
)
def test_another_answer_is_wrong(gold: str, answer: str):
    assert grade_of(gold, answer) is Grade.WRONG


def test_a_gold_in_the_reasoning_with_another_final_answer_is_wrong():
    result = is_equivalent("18", r"At first 18 seems right: 9 * 2 = 18. But \boxed{20}.")
    assert result == GradedAnswer(Grade.WRONG, gold="18", extracted="20")


def test_a_quick_correction_replaces_the_box_before():
    assert is_equivalent("7", r"\boxed{5}, no, \boxed{7}").grade is Grade.CORRECT


def test_a_number_in_the_text_is_no_answer():
    assert is_equivalent("5", "There are 5 of them, I guess") == GradedAnswer(
        Grade.NO_ANSWER, gold="5", extracted=None
    )


@pytest.mark.parametrize("gold", ["50%", "50", "0.5", "1/2"])
def test_a_percentage_equals_its_number_and_its_hundredth(gold: str):
    assert grade_of(gold, r"50\%") is Grade.CORRECT


def test_two_percentages_are_compared_as_they_are():
    assert grade_of("50%", "5000%") is Grade.WRONG


def test_a_percentage_with_decimals_equals_its_number():
    assert grade_of("12.5", "12.5%") is Grade.CORRECT


@pytest.mark.parametrize(("gold", "answer"), [("1/3", "0.333333"), ("2.3456789", "2.3456788")])
def test_decimals_agree_to_six_places(gold: str, answer: str):
    assert grade_of(gold, answer) is Grade.CORRECT


@pytest.mark.parametrize(
    ("gold", "answer"), [("0", "0.0000001"), ("0.0000001", "0.0000002"), ("333333/1000000", "1/3")]
)
def test_tiny_numbers_and_exact_fractions_are_not_rounded_together(gold: str, answer: str):
    assert grade_of(gold, answer) is Grade.WRONG


@pytest.mark.parametrize("gold", ["", " \n", r"\boxed{5", r"\frac{1}{", "+", "\ud800", "x" * 1001])
def test_a_gold_that_cannot_be_read_is_told_apart(gold: str):
    assert is_equivalent(gold, "Answer: 5") == GradedAnswer(Grade.UNPARSEABLE_GOLD, gold=gold, extracted=None)


def test_a_gold_in_prose_without_a_marker_cannot_be_read():
    gold = "Janet sells all the eggs that are left over at the market for 18 dollars."
    assert is_equivalent(gold, "Answer: 18").grade is Grade.UNPARSEABLE_GOLD


def test_an_overlong_answer_is_given_up_on():
    assert grade_of("5", "1+" * 600 + "1") is Grade.GAVE_UP


def test_a_failure_of_computer_algebra_is_given_up_on(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> bool:
        raise RecursionError

    monkeypatch.setattr(symbolic, "same", fail)
    assert symbolic.compare("5", r"\sqrt{26}") is Comparison.GAVE_UP


@pytest.mark.parametrize(
    "answer", ["\x00", "\ud800", "{" * 500, "}" * 500, "\\" * 500, r"\frac{1}{0}", "∞", "💥", r"\frac", "$$$", "5\\"]
)
def test_no_answer_raises(answer: str):
    assert grade_of(r"9\pi", answer) is not Grade.CORRECT


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("0123456789.,/%$\\{}()[]^ -+frackboxedpi=xy\n#:"), max_size=12))
def test_no_text_raises(text: str):
    assert isinstance(is_equivalent(r"9\pi", f"\\boxed{{{text}}}"), GradedAnswer)
    assert isinstance(is_equivalent(text, "Answer: 7"), GradedAnswer)


def test_no_grader_is_started_and_nothing_imported_for_plain_numbers_and_words():
    code = (
        "import sys; from trl_dapo.grading.equivalence import grade; from trl_dapo.grading.pool import shared_pool; "
        "grade(['5', 'Monday', '1/2'], ['Answer: 5', 'Tuesday', r'\\boxed{0.5}']); "
        "assert not shared_pool().pids and not {'sympy', 'torch'} & set(sys.modules); "
        "grade(['5'], [r'Answer: \\sqrt{26}']); "
        "assert shared_pool().pids and not {'sympy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_as_many_golds_as_completions_are_needed():
    with pytest.raises(ValueError, match="shorter"):
        grade(["1", "2"], ["1"])


def gsm8k_golds(split: str) -> list[str]:
    path = GSM8K / f"{split}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("split", "number"), [("test", 1_319), pytest.param("train", 7_473, marks=pytest.mark.slow)])
def test_every_gsm8k_gold_grades_its_own_solution_as_correct_and_the_next_number_as_wrong(
    split: str, number: int, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise AssertionError("a worker was asked")

    monkeypatch.setattr(equivalence, "shared_pool", fail)
    golds = gsm8k_golds(split)
    perturbed = [gold.rpartition("#### ") for gold in golds]
    wrong = [f"{rationale}#### {int(answer.replace(',', '')) + 1}" for rationale, _, answer in perturbed]
    assert Counter(result.grade for result in grade(golds, golds)) == {Grade.CORRECT: number}
    assert Counter(result.grade for result in grade(golds, wrong)) == {Grade.WRONG: number}


def writings(value: Fraction) -> list[str]:
    """List ways to write a rational that math-verify reads as meant."""
    sign, size = "-" if value < 0 else "", abs(value)
    numerator, denominator = size.numerator, size.denominator
    if denominator == 1:
        grouped = f"{numerator:,}"
        # One unit only: with two different ones the quantities differ, whatever the numbers.
        plain = [str(numerator), grouped, grouped.replace(",", "{,}"), f"{numerator}.00", f"{numerator}\\text{{ cm}}"]
        other_sign = f"\u2212{numerator}" if sign else f"+{numerator}"
        return [f"{sign}{text}" for text in plain] + [other_sign]
    whole, rest = divmod(numerator, denominator)
    texts = [f"{numerator}/{denominator}"]
    texts += [f"\\{command}{{{numerator}}}{{{denominator}}}" for command in ("frac", "dfrac", "tfrac")]
    texts += [f"{whole}.{rest * 10**7 // denominator:07d}"]
    texts += [f"{whole}\\frac{{{rest}}}{{{denominator}}}"] if whole else []
    return [f"{sign}{text}" for text in texts]


@settings(max_examples=200, deadline=None)
@given(
    numerator=st.integers(-20_000, 20_000),
    denominator=st.sampled_from([1, 1, 2, 3, 4, 5, 7, 8, 100]),
    distance=st.sampled_from([0, 0, 1, Fraction(1, 1000), Fraction(-1, 7)]),
    data=st.data(),
)
def test_the_exact_path_agrees_with_math_verify(
    numerator: int, denominator: int, distance: Fraction, data: st.DataObject
):
    value = Fraction(numerator, denominator)
    gold = data.draw(st.sampled_from(writings(value)))
    answer = data.draw(st.sampled_from(writings(value + distance)))
    assert_exact_path_agrees_with_math_verify(gold, answer)


@settings(max_examples=60, deadline=None)
@given(
    gold=st.integers(0, 300),  # math-verify takes -1% as -0.01 only
    factor=st.sampled_from([1, 1, 100, 2]),
    signs=st.sampled_from(["%-", "-%", "%%", "--"]),
)
def test_the_exact_path_reads_integer_percentages_like_math_verify(gold: int, factor: int, signs: str):
    gold_sign, answer_sign = ("\\%" if sign == "%" else "" for sign in signs)
    assert_exact_path_agrees_with_math_verify(f"{gold}{gold_sign}", f"{gold * factor}{answer_sign}")


def assert_exact_path_agrees_with_math_verify(gold: str, answer: str) -> None:
    from math_verify import parse, verify

    is_same = verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))
    assert grade_of(gold, answer) is (Grade.CORRECT if is_same else Grade.WRONG)
    # And with what a worker would say.
    assert symbolic.compare(gold, answer) is (Comparison.EQUAL if is_same else Comparison.DIFFERENT)
