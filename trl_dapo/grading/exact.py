r"""The cheap path: what can be decided about an answer without computer algebra, in microseconds and in any thread.

Two rational numbers are compared exactly, words as texts, and what has the same characters is the same. The rest is a
[`Question`] for a worker process. Everything here takes time linear in the text, and cannot hang.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from .answers import count_words, final_answer, gold_answer
from .grades import Comparison, Grade, GradedAnswer
from .rationals import is_percentage, parse_rational


# Answers longer than this, in characters, are given up on: no honest answer is, and sympy's cost grows fast.
MAX_ANSWER_CHARACTERS = 1_000
# A gold with more words than this is prose that lacks a `\boxed{}` or `####`, not a text answer.
MAX_GOLD_WORDS = 8
# Decimals agree when they round to the same number at this many places (math-verify's `float_rounding`) ...
DECIMAL_PLACES = 6
# ... and differ by no more than this part of the larger: else everything below 1e-6 would equal 0.
MAX_RELATIVE_ERROR = Fraction(1, 1000)

_TEXT_COMMAND = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([A-Z])\)?")
_BASED = re.compile(r"([0-9A-F]{1,60})_(?:\{([0-9]{1,2})\}|([0-9]))")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '\u2019-]+[^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class Question:
    """
    What only computer algebra can tell.

    Args:
        gold (`str`):
            The gold answer, as LaTeX for math-verify.
        answer (`str | None`):
            The answer to compare with; `None` if only whether the gold can be read is open.
        graded (`GradedAnswer`):
            What the completion gets if the answers are equal; if `answer` is `None`, if the gold can be read.
        raw_gold (`str`):
            The gold as given, for the graded answer of an unreadable one.
    """

    gold: str
    answer: str | None
    graded: GradedAnswer
    raw_gold: str

    def settle(self, comparison: Comparison) -> GradedAnswer:
        """Turn the comparison of a worker into a graded answer."""
        gold, extracted = self.graded.gold, self.graded.extracted
        if comparison is Comparison.BAD_GOLD:
            return GradedAnswer(Grade.UNPARSEABLE_GOLD, self.raw_gold, None)
        if comparison is Comparison.DIFFERENT:
            return GradedAnswer(Grade.WRONG, gold, extracted)
        if comparison is Comparison.GAVE_UP:
            return GradedAnswer(Grade.GAVE_UP, gold, extracted)
        return self.graded


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    value: Fraction | None  # None: not certainly a rational number
    words: str | None  # None: not words
    based: tuple[str, int] | None  # digits and base of a number like `1011_2`

    @property
    def is_plain(self) -> bool:
        return self.value is not None or self.words is not None or self.based is not None


def grade_cheaply(gold: str, completion: str) -> GradedAnswer | Question:
    """
    Grade a completion as far as that is possible without computer algebra.

    Args:
        gold (`str`):
            The gold solution.
        completion (`str`):
            The text of the completion.

    Returns:
        `GradedAnswer | Question`: The graded answer, or what is open. Raises nothing, whatever the texts.

    Example:

    >>> grade_cheaply("18", "Answer: 18").grade
    <Grade.CORRECT: 'correct'>
    >>> question = grade_cheaply(r"9\\pi", "Answer: x")
    >>> question.gold, question.answer
    ('9\\\\pi', 'x')
    """
    reference = _read_gold(gold)
    if reference is None:
        return GradedAnswer(Grade.UNPARSEABLE_GOLD, gold, None)
    extracted = final_answer(completion)
    decided = _decide(reference, extracted)
    if decided is not None:
        graded = GradedAnswer(decided, reference.text, extracted)
        # A gold that is no number and no words is certainly readable only once it has been parsed.
        return graded if reference.is_plain else Question(_latex(reference), None, graded, gold)
    assert extracted is not None
    graded = GradedAnswer(Grade.CORRECT, reference.text, extracted)
    return Question(_latex(reference), _latex(_read(extracted)), graded, gold)


def _decide(gold: _Answer, extracted: str | None) -> Grade | None:
    if extracted is None:
        return Grade.NO_ANSWER
    if len(extracted) > MAX_ANSWER_CHARACTERS:
        return Grade.GAVE_UP
    answer = _read(extracted)
    if gold.value is not None and answer.value is not None:
        is_same = _rationals_agree(gold, answer, gold.value, answer.value)
    elif gold.based is not None or answer.based is not None:
        is_same = _based_numbers_agree(gold, answer)
    elif gold.words is not None and answer.words is not None:
        is_same = gold.words == answer.words
    elif "".join(gold.text.split()) == "".join(answer.text.split()):
        is_same = True
    else:
        return None
    return Grade.CORRECT if is_same else Grade.WRONG


def _rationals_agree(gold: _Answer, answer: _Answer, gold_value: Fraction, answer_value: Fraction) -> bool:
    readings = [(gold_value, answer_value)]
    is_gold_percentage, is_answer_percentage = is_percentage(gold.text), is_percentage(answer.text)
    if is_gold_percentage and not is_answer_percentage:
        readings.append((gold_value * 100, answer_value))
    if is_answer_percentage and not is_gold_percentage:
        readings.append((gold_value, answer_value * 100))
    if any(left == right for left, right in readings):
        return True
    if "." not in gold.text and "." not in answer.text:
        return False
    return any(
        round(left, DECIMAL_PLACES) == round(right, DECIMAL_PLACES)
        and abs(left - right) <= MAX_RELATIVE_ERROR * max(abs(left), abs(right))
        for left, right in readings
    )


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> _Answer | None:
    text = gold_answer(gold)
    if text is None or len(text) > MAX_ANSWER_CHARACTERS:
        return None
    answer = _read(text)
    return answer if answer.is_plain or count_words(text) <= MAX_GOLD_WORDS else None


def _read(text: str) -> _Answer:
    return _Answer(text=text, value=parse_rational(text), words=_words(text), based=_based(text))


def _based(text: str) -> tuple[str, int] | None:
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    base = int(match[2] or match[3])
    return (match[1], base) if 2 <= base <= 16 and all(int(digit, 16) < base for digit in match[1]) else None


def _based_numbers_agree(gold: _Answer, answer: _Answer) -> bool:
    if gold.based is not None and answer.based is not None:
        return int(*gold.based) == int(*answer.based)
    # One of them leaves the base out, as the question names it.
    digits = [side.text if side.based is None else side.based[0] for side in (gold, answer)]
    return digits[0] == digits[1]


def _words(text: str) -> str | None:
    r"""Normalise an answer in words (`Monday`, `\text{even}`, `(C)`); `None` if it may be a product of variables."""
    plain = _TEXT_COMMAND.sub(r"\1", text).strip(" \t\"'.")
    if choice := _CHOICE.fullmatch(plain):
        return choice[1]
    if not _WORDS.fullmatch(plain) or count_words(plain) > MAX_GOLD_WORDS:
        return None
    words = plain.casefold().split()
    is_certain = plain != text or any(len(word) > 3 or word in {"yes", "no", "odd"} for word in words)
    return " ".join(words) if is_certain else None


def _latex(answer: _Answer) -> str:
    # math-verify misreads some plain numbers (`1\,234` as 235, `5 dollars` as a product); decimals stay decimals, as
    # they are compared with rounding.
    value = answer.value
    if value is None or ("." in answer.text and "\\overline" not in answer.text) or is_percentage(answer.text):
        return answer.text
    sign = "-" if value < 0 else ""
    return sign + (
        rf"\frac{{{abs(value.numerator)}}}{{{value.denominator}}}" if value.denominator > 1 else str(abs(value))
    )
