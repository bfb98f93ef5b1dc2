r"""Answer equivalence: is the final answer of a completion the gold one? The only module that imports math-verify.

An answer is compared in up to three steps, cheapest first: exactly, if both sides are rational numbers; as texts, if
they are words or the same characters; else by math-verify, which sees the extracted answer alone, wrapped in
`\boxed{}`, so that it can neither merge neighbouring boxes into a set nor fall back to any number in the text.

Known limit: math-verify's timeouts are alarms (SIGALRM), which exist in the main thread only, do not interrupt
big-integer arithmetic, and cancel an alarm that the program itself has set. In other threads there is no time limit.
"""

import enum
import logging
import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .answers import count_words, final_answer, gold_answer
from .rationals import is_percentage, parse_rational


# Answers longer than this, in characters, are given up on: no honest answer is, and sympy's cost grows fast.
MAX_ANSWER_CHARACTERS = 1_000
# A gold with more words than this is prose that lacks a `\boxed{}` or `####`, not a text answer.
MAX_GOLD_WORDS = 8
# Whole seconds, as alarms count; parsing and comparing have this much each.
TIMEOUT_SECONDS = 5
# Decimals agree when they round to the same number at this many places (math-verify's `float_rounding`) ...
DECIMAL_PLACES = 6
# ... and differ by no more than this part of the larger: else everything below 1e-6 would equal 0.
MAX_RELATIVE_ERROR = Fraction(1, 1000)

_TEXT_COMMAND = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([A-Z])\)?")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '\u2019-]+[^\W\d_]+)*")


class Verdict(enum.Enum):
    """What grading found out about a completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """The completion gives no final answer."""
    UNPARSEABLE_GOLD = "unparseable_gold"
    """The gold cannot be read: the data's fault, so it says nothing about the completion."""
    GAVE_UP = "gave_up"
    """The answer is too long, took too long, or made math-verify fail."""


@dataclass(frozen=True, slots=True)
class Grading:
    """
    The outcome of grading one completion.

    Args:
        verdict (`Verdict`):
            The outcome.
        gold (`str`):
            The gold answer that was compared with, or the gold as given if it cannot be read.
        extracted (`str | None`):
            The final answer of the completion; `None` if it has none, or was not looked for as the gold is unreadable.
    """

    verdict: Verdict
    gold: str
    extracted: str | None


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    value: Fraction | None  # None: not certainly a rational number
    words: str | None  # None: not words


def is_equivalent(gold: str, completion: str) -> Grading:
    r"""
    Grade the final answer of a completion against a gold solution. Raises nothing, whatever the texts.

    Two rational numbers are equal if they are the same, if one is a percentage and the other, without the sign, is its
    number or its hundredth, or if one is written as a decimal and both round to the same six places.

    Args:
        gold (`str`):
            A number, a LaTeX expression, a text, or a solution that ends in `\boxed{...}` or `#### n`.
        completion (`str`):
            The text of the completion.

    Returns:
        `Grading`: The verdict, with the two answers that were compared.

    Example:

    >>> is_equivalent("18", r"It is \boxed{18}.").verdict
    <Verdict.CORRECT: 'correct'>
    >>> is_equivalent(r"9\pi", "I first thought $9\pi$, but the answer is 9.")
    Grading(verdict=<Verdict.WRONG: 'wrong'>, gold='9\\pi', extracted='9')
    """
    reference = _read_gold(gold)
    if reference is None:
        return Grading(Verdict.UNPARSEABLE_GOLD, gold, None)
    extracted = final_answer(completion)
    if extracted is None:
        return Grading(Verdict.NO_ANSWER, reference.text, None)
    if len(extracted) > MAX_ANSWER_CHARACTERS:
        return Grading(Verdict.GAVE_UP, reference.text, extracted)
    return Grading(_compare(reference, _read(extracted)), reference.text, extracted)


def _compare(gold: _Answer, answer: _Answer) -> Verdict:
    if gold.value is not None and answer.value is not None:
        is_same = _rationals_agree(gold, answer, gold.value, answer.value)
    elif gold.words is not None and answer.words is not None:
        is_same = gold.words == answer.words
    elif "".join(gold.text.split()) == "".join(answer.text.split()):
        is_same = True
    else:
        try:
            is_same = _symbolically_equal(gold, answer)
        except ImportError:
            raise
        except Exception:
            return Verdict.GAVE_UP
    return Verdict.CORRECT if is_same else Verdict.WRONG


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
    if answer.value is None and answer.words is None:
        try:
            is_parsed = count_words(text) <= MAX_GOLD_WORDS and bool(_parse_gold(text))
        except ImportError:
            raise
        except Exception:
            is_parsed = False
        if not is_parsed:
            return None
    return answer


def _read(text: str) -> _Answer:
    return _Answer(text=text, value=parse_rational(text), words=_words(text))


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


def _symbolically_equal(gold: _Answer, answer: _Answer) -> bool:
    parsed_gold, parsed_answer = _parse_gold(_latex(gold)), _parse(_latex(answer))
    if not parsed_gold or not parsed_answer:
        return False
    return bool(_call("verify", parsed_gold, parsed_answer, timeout_seconds=_timeout_seconds()))


def _latex(answer: _Answer) -> str:
    # math-verify misreads some plain numbers (`1\,234` as 235, `5 dollars` as a product); decimals stay decimals, as
    # they are compared with rounding.
    value = answer.value
    if value is None or "." in answer.text or is_percentage(answer.text):
        return answer.text
    sign = "-" if value < 0 else ""
    return sign + (
        rf"\frac{{{abs(value.numerator)}}}{{{value.denominator}}}" if value.denominator > 1 else str(abs(value))
    )


def _parse(text: str) -> list[Any]:
    depth = 0
    for token in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += (token == "{") - (token == "}")
        if depth < 0:
            return []
    if depth:
        return []
    parsed: list[Any] = _call(
        "parse",
        f"\\boxed{{{text}}}",
        extraction_config=_extraction_config(),
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=_timeout_seconds(),
    )
    return parsed


# The expressions are immutable, and `verify` does not change the list.
_parse_gold = lru_cache(maxsize=4096)(_parse)


def _timeout_seconds() -> int | None:
    return TIMEOUT_SECONDS if threading.current_thread() is threading.main_thread() else None


class _DisabledTimeoutFilter(logging.Filter):
    """Drops math-verify's warning that timeouts are disabled from our own calls, and from nobody else's."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (getattr(_our_call, "is_active", False) and str(record.msg).startswith("Timeout is disabled"))


_our_call = threading.local()


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise ImportError(
            "`accuracy_reward` needs math-verify for answers that are not plain numbers or words. Install it with "
            "`pip install 'math-verify[antlr4_13_2]'`."
        ) from error
    for module in ("parser", "grader"):
        logging.getLogger(f"math_verify.{module}").addFilter(_DisabledTimeoutFilter())
    return math_verify


@lru_cache(maxsize=1)
def _extraction_config() -> tuple[Any, ...]:
    # The box first and nothing else: without an anchor math-verify takes any fraction that it finds in the text.
    return (_math_verify().LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False),)


def _call(function_name: str, *args: Any, **kwargs: Any) -> Any:
    """Call math-verify quietly, its timeout (a `BaseException`) turned into the usual `TimeoutError`."""
    math_verify = _math_verify()
    _our_call.is_active = True
    try:
        return getattr(math_verify, function_name)(*args, raise_on_error=True, **kwargs)
    except math_verify.errors.TimeoutException as error:
        raise TimeoutError(f"math-verify's {function_name} took more than {TIMEOUT_SECONDS} s") from error
    finally:
        _our_call.is_active = False
