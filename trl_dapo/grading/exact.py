r"""The cheap path: what can be decided about an answer without computer algebra, at once and in any thread.

Numbers are compared exactly, words as texts, and lists, tuples and choices by their parts. The rest is a [`Question`] for
a worker process. Everything here takes time linear in the text, and cannot hang.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from .answers import declared_answer, gold_answer
from .arithmetic import rational_value
from .canonical import is_listing
from .delimiters import strip_delimiters
from .grades import Comparison, Grade, GradedAnswer
from .matching import same
from .nodes import Apply, Bracket, Choice, Clock, Listing, Name, Node, Number, Phrase, Quantity, Words, parts_of, walk
from .rationals import parse_rational, rationals_agree
from .reading import MAX_CHARACTERS, read


# A gold with more words than this is prose that lacks a `\boxed{}` or `####`, not a text answer.
MAX_GOLD_WORDS = 8


@dataclass(frozen=True, slots=True)
class Question:
    """
    What only computer algebra can tell.

    Args:
        gold (`str`):
            The gold answer.
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


class UndecidedError(Exception):
    """It takes computer algebra to tell."""


class PlainArithmetic:
    """The judge that compares rational numbers and single variables, and leaves the rest open."""

    def equal(self, gold: Node, answer: Node) -> bool:
        """Whether two expressions have the same value."""
        values = rational_value(gold), rational_value(answer)
        if values[0] is not None and values[1] is not None:
            is_decimal = any(
                isinstance(part, Number) and part.is_decimal for side in (gold, answer) for part in walk(side)
            )
            return rationals_agree(values[0], values[1], is_decimal)
        if gold == answer:
            return True
        if any(map(_is_plain_name, (gold, answer))) and all(
            value is not None or _is_plain_name(side) for side, value in zip((gold, answer), values, strict=True)
        ):
            return False
        raise UndecidedError

    def close(self, exact: Node, approximation: Node) -> bool:
        """Left open."""
        raise UndecidedError

    def proportional(self, gold: Node, answer: Node, only_positive: bool) -> bool:
        """Left open."""
        raise UndecidedError

    def same_set(self, gold: Node, answer: Node, variable: str | None) -> bool:
        """Left open, unless both are written in the same way."""
        if gold == answer:
            return True
        raise UndecidedError


_JUDGE = PlainArithmetic()


@dataclass(frozen=True, slots=True)
class _Gold:
    text: str
    value: Fraction | None  # the rational number that it plainly is
    node: Node | None  # not yet read, if it is such a number
    is_certain: bool  # whether it can be read for sure, without computer algebra
    is_list: bool


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
    declared = declared_answer(completion)
    if declared is None:
        return _settled(reference, Grade.NO_ANSWER, None, gold)
    extracted = declared.text
    if declared.joined is not None and reference.is_list and is_listing(read(declared.joined) or Words("")):
        extracted = declared.joined
    if len(extracted) > MAX_CHARACTERS:
        return _settled(reference, Grade.GAVE_UP, extracted, gold)
    is_same = _is_same(reference, extracted)
    if is_same is None:
        return Question(reference.text, extracted, GradedAnswer(Grade.CORRECT, reference.text, extracted), gold)
    return _settled(reference, Grade.CORRECT if is_same else Grade.WRONG, extracted, gold)


def _settled(gold: _Gold, grade: Grade, extracted: str | None, raw_gold: str) -> GradedAnswer | Question:
    graded = GradedAnswer(grade, gold.text, extracted)
    return graded if gold.is_certain else Question(gold.text, None, graded, raw_gold)


def _is_same(gold: _Gold, extracted: str) -> bool | None:
    value = parse_rational(extracted)
    if value is not None and gold.value is not None:
        return rationals_agree(gold.value, value, "." in extracted or "." in gold.text)
    answer, node = read(extracted), gold.node or read(gold.text)
    if answer is None or node is None:
        return False
    try:
        return same(node, answer, _JUDGE)
    except UndecidedError:
        return None


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> _Gold | None:
    # The usual case first: a number needs no more than that.
    value = parse_rational(gold)
    if value is not None:
        return _Gold(strip_delimiters(gold), value, None, is_certain=True, is_list=False)
    text = gold_answer(gold)
    node = None if text is None else read(text)
    if text is None or node is None or num_words(node) > MAX_GOLD_WORDS:
        return None
    return _Gold(text, parse_rational(text), node, _is_certain(node), is_listing(node))


def num_words(node: Node) -> int:
    """Return how many words an answer has outside its mathematics."""
    return sum(len(part.text.split()) for part in walk(node) if isinstance(part, Words))


def _is_certain(node: Node) -> bool:
    """Whether every expression in it has a value for sure."""
    if isinstance(node, Name | Words | Clock):
        return True
    if isinstance(node, Number | Apply):
        return rational_value(node) is not None or (
            isinstance(node, Apply) and node.head in ("*", "base", "ratio") and all(map(_is_certain, node.args))
        )
    return isinstance(node, Choice | Bracket | Listing | Quantity | Phrase) and all(map(_is_certain, parts_of(node)))


def _is_plain_name(node: Node) -> bool:
    return isinstance(node, Name) and ((len(node.text) == 1 and node.text not in "ei°") or "_" in node.text)
