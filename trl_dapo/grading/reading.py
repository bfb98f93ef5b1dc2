r"""Reading an answer: from text to the nodes that it is made of.

Read are the LaTeX, Unicode and plain text in which people and models write final answers. Upper and lower case are kept
apart, and nothing is dropped: what is not understood makes the answer a [`Phrase`], which equals only the same phrase.
"""

import re
from fractions import Fraction
from functools import lru_cache

from .delimiters import strip_delimiters, without_math_dollars
from .nodes import Apply, Bracket, Choice, Clock, Listing, Name, Node, Number, Phrase, Words
from .number_words import number_of_words
from .parser import Parser, phrase
from .spelling import respell
from .tokens import Token, UnreadableError, tokenize
from .units import is_measure
from .vocabulary import ALL_REALS, CONDITIONALS, NO_SOLUTION


# Longer answers are not read: no honest one is, and computer algebra gets slow.
MAX_CHARACTERS = 1_000

_HALF = r"(?:\s|\\text\s*\{|\})*(?:(?P<half>[aApP])\.?\s?[mM]\.?(?:\s|\})*)?"
_CLOCK = re.compile(rf"(?:\\text\s*\{{\s*)?(?P<hours>[0-9]{{1,2}})(?:\s*:\s*(?P<minutes>[0-9]{{2}}))?{_HALF}")
_NOON = re.compile(r"(?:12(?::00)?\s*)?(?:\\text\s*\{\s*)?(noon|midnight)\s*\}?", re.IGNORECASE)
_TEXT = r"(?:\\text\s*\{\s*)?"
_CHOICE = re.compile(
    rf"(?:{_TEXT}(?i:option|choice|answer|letter)\s*\}}?\s*)?(?:\{{\s*)?{_TEXT}(?:\((?P<closed>[A-Z])\)|(?P<open>[A-J])\s*[.):])"
    r"\s*\}?\s*[.:,]?\s*\}?\s*(?P<content>.*)",
    re.DOTALL,
)
_CHOICE_BEHIND = re.compile(rf"(?P<content>.+?)\s*{_TEXT}\s*\((?P<letter>[A-Z])\)\s*\}}?", re.DOTALL)
_NO_CONTENT = re.compile(
    r"[-+*/=^_,<>&](?!\s*[0-9])|and\b|or\b|\([A-Z]\)|\\(?!text|d?frac|sqrt|\$|pi\b|\{|infty\b|left|begin|d?binom)"
)
_LONE_CHOICE = re.compile(rf"{_TEXT}(?i:option|choice|letter)\s*\}}?\s*{_TEXT}\(?([A-Z])\)?\s*\}}?")
_BASED = re.compile(
    r"(?:\\text\s*\{)?([0-9A-F]{1,60})\}?\s*_\s*(?:\{\s*(?:\\text\s*\{)?\s*([0-9]{1,2}|[a-z]{3,7})\s*\}*|([0-9]))"
)
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|equiv|in|text)(?![a-z])")
_BASE_NAMES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


@lru_cache(maxsize=8_192)
def read(text: str) -> Node | None:
    r"""
    Read an answer.

    Args:
        text (`str`):
            An answer without what declares it: LaTeX, Unicode or plain text.

    Returns:
        `Node | None`:
            What it means; a [`Phrase`] or [`Words`] if it is no mathematics, and `None` if it is longer than 1,000
            characters, has control characters, lone surrogates or unbalanced braces, or nothing to read in it.

    Example:

    >>> read("1,234"), read(r"\text{Monday}")
    (Number(value=Fraction(1234, 1), places=None), Words(text='monday'))
    """
    if len(text) > MAX_CHARACTERS:
        return None
    spelled = respell(without_math_dollars(text)).strip()
    if len(spelled) > 4 * MAX_CHARACTERS or any(
        (character < " " and character not in "\n\r\t") or "\ud800" <= character <= "\udfff" for character in spelled
    ):
        return None
    spelled = strip_delimiters(spelled)
    if not _has_balanced_braces(spelled):
        return None
    while (inside := _inside_braces(spelled)) is not None:
        spelled = inside
    return _clock(spelled) or _choice(spelled) or _based_number(spelled) or _mathematics(spelled)


def is_mathematical(node: Node | None) -> bool:
    """
    Whether an answer is more than words: a number, an expression, a choice, a collection of them.

    Example:

    >>> is_mathematical(read("x = 5")), is_mathematical(read("consistent with 5"))
    (True, False)
    """
    if isinstance(node, Listing):
        return all(map(is_mathematical, node.items))
    return node is not None and not isinstance(node, Words | Phrase)


def _has_balanced_braces(text: str) -> bool:
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += (token[0] == "{") - (token[0] == "}")
        if depth < 0:
            return False
    return depth == 0


def _inside_braces(text: str) -> str | None:
    """Return what a group of TeX that is the whole text holds, unless it is a set of items."""
    if not text.startswith("{") or not text.endswith("}") or text.endswith("\\}"):
        return None
    inside = text[1:-1]
    is_set = "," in inside and not _RELATION.search(inside)
    return None if is_set or not _has_balanced_braces(inside) else inside.strip()


def _clock(text: str) -> Clock | None:
    if match := _NOON.fullmatch(text):
        return Clock(720 if match[1].lower() == "noon" else 0, is_half=False)
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hours, minutes, half = int(match["hours"]), int(match["minutes"] or 0), (match["half"] or "").lower()
    if half:
        is_time = 1 <= hours <= 12 and minutes < 60
        return Clock((hours % 12 + 12 * (half == "p")) * 60 + minutes, is_half=False) if is_time else None
    is_time = match["minutes"] is not None and hours <= 24 and minutes < 60
    return Clock(hours * 60 + minutes, is_half=hours <= 12) if is_time else None


def _choice(text: str) -> Choice | Name | None:
    if match := _LONE_CHOICE.fullmatch(text):
        return Name(match[1])
    if match := _CHOICE.fullmatch(text):
        letter, content = match["closed"] or match["open"], match["content"].strip()
        if not content.strip(".}"):
            return Name(letter)
        # `(A) + B` and `(A)(B)` are no choices with content, and `(A), (C)` are several.
        if not _NO_CONTENT.match(content):
            node = _clock(content) or _mathematics(content)
            return Name(letter) if node is None else Choice(letter, node)
    if match := _CHOICE_BEHIND.fullmatch(text):
        node = _mathematics(match["content"])
        # Behind letters and operations the bracket is a factor.
        return None if node is None or isinstance(node, Name | Apply) else Choice(match["letter"], node)
    return None


def _based_number(text: str) -> Apply | None:
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    base = _BASE_NAMES.get(match[2]) if match[2] and match[2].isalpha() else int(match[2] or match[3])
    if not base or not 2 <= base <= 16 or any(int(digit, 16) >= base for digit in match[1]):
        return None
    return Apply("base", (Words(match[1].lower()), Number(Fraction(base))))


def _mathematics(text: str) -> Node | None:
    number = number_of_words(text)
    if number is not None:
        return Number(number)
    try:
        tokens = tokenize(text)
    except UnreadableError:
        return None
    if not any(token.kind != "symbol" or token.text.isalnum() for token in tokens):
        if [token.text for token in tokens] == ["\\{", "\\}"]:
            return Bracket("{", "}", ())
        return None
    node: Node | None
    try:
        node = Parser(tokens).answer()
    except UnreadableError:
        shorter = _without_parenthesis(tokens)
        try:
            node = None if shorter is None else Parser(shorter).answer()
        except UnreadableError:
            node = None
    node = node or phrase(tokens)
    if isinstance(node, Words):
        if node.text in NO_SOLUTION:
            return Bracket("{", "}", ())
        if node.text in ALL_REALS:
            return Name("\\mathbb{R}")
    return node


def _without_parenthesis(tokens: list[Token]) -> list[Token] | None:
    """Drop a remark in parentheses from the end, or the parentheses around a unit."""
    texts = [token.text for token in tokens]
    if texts[-1:] != [")"] or "(" not in texts[1:]:
        return None
    start = len(texts) - 1 - texts[::-1].index("(")
    inside = tokens[start + 1 : -1]
    words = [token.text.casefold() for token in inside if token.kind == "word"]
    if start == 0 or not words or CONDITIONALS & set(words):
        return None
    if len(words) == len(inside) and all(map(is_measure, words)):
        return [*tokens[:start], *inside]
    return tokens[:start]
