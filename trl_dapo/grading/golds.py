"""What gold answers are, and what is wrong with those that cannot be read."""

import enum
from collections.abc import Iterable

from .answers import gold_answer
from .equivalence import Grade, grade
from .exact import MAX_GOLD_WORDS, num_words
from .nodes import (
    Apply,
    Bracket,
    Choice,
    Clock,
    Given,
    Listing,
    Matrix,
    Name,
    Node,
    Number,
    Phrase,
    Quantity,
    Relation,
    SetBuilder,
    Words,
)
from .pool import GradingPool
from .reading import MAX_CHARACTERS, read
from .vocabulary import PLACEHOLDERS


class GoldFault(enum.Enum):
    """Why a gold cannot be read."""

    EMPTY = "empty"
    PLACEHOLDER = "placeholder"
    TOO_LONG = "longer than 1,000 characters"
    PROSE = "prose without a declared answer"
    NOT_READABLE = "not readable"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (Number, "number"),
    (Quantity, "number with a unit"),
    (Choice, "choice"),
    (Clock, "time"),
    (Relation, "equation or inequality"),
    (Listing, "list"),
    ((Bracket, SetBuilder), "tuple, interval or set"),
    (Matrix, "matrix or vector"),
    ((Words, Phrase), "text"),
    ((Apply, Name, Given), "expression"),
)


def gold_kind(gold: str) -> str:
    r"""
    Name the kind of a gold answer that can be read.

    Example:

    >>> gold_kind("#### 18"), gold_kind(r"(-\infty, 3]"), gold_kind("Monday")
    ('number', 'tuple, interval or set', 'text')
    """
    text = gold_answer(gold)
    node: Node | None = None if text is None else read(text)
    return next((name for kind, name in _KINDS if isinstance(node, kind)), "text")


def gold_faults(golds: Iterable[str], pool: GradingPool | None = None) -> dict[str, GoldFault]:
    r"""
    Find the golds that cannot be read.

    Args:
        golds (`Iterable[str]`):
            Gold solutions.
        pool (`GradingPool`, *optional*):
            Who evaluates expressions; `None` for the pool that all rewards of the process share.

    Returns:
        `dict[str, GoldFault]`: The unreadable golds, each once and in order, with the reason.

    Example:

    >>> {gold: fault.value for gold, fault in gold_faults(["18", "proof", "", "18"]).items()}
    {'proof': 'placeholder', '': 'empty'}
    """
    distinct = list(dict.fromkeys(golds))
    graded = grade(distinct, [""] * len(distinct), pool)
    return {
        gold: _fault(gold)
        for gold, result in zip(distinct, graded, strict=True)
        if result.grade is Grade.UNPARSEABLE_GOLD
    }


def _fault(gold: str) -> GoldFault:
    if not gold.strip():
        return GoldFault.EMPTY
    text = gold_answer(gold)
    if text is None:
        bare = gold.replace("\\text{", "").strip(" {}$.").casefold()
        return GoldFault.PLACEHOLDER if bare in PLACEHOLDERS else GoldFault.NOT_READABLE
    if len(text) > MAX_CHARACTERS:
        return GoldFault.TOO_LONG
    node = read(text)
    is_prose = node is not None and num_words(node) > MAX_GOLD_WORDS
    return GoldFault.PROSE if is_prose else GoldFault.NOT_READABLE
