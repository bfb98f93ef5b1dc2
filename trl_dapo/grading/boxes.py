r"""The boxes of a text: `\boxed{...}` and `\fbox{...}`, from the last one back."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .delimiters import strip_delimiters


# A box that is not closed after so many characters never is.
MAX_BOX_CHARACTERS = 4_000
# The last boxes of a text that are looked at: a few suffice to get past empty, unfinished and nested ones.
MAX_BOXES = 8
# Characters between two boxes of one sentence.
MAX_BETWEEN_BOXES = 60

BLANK = " \t\r\n\"'`.,;:*$_"
_COMMANDS = ("\\boxed", "\\fbox", "\\framebox")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s{0,8}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED_BOX = re.compile(r"[^\s${}][^\s$]*")
_MARGIN = r"(?:[\s$.]|\\[\[\](),;!])*"
_WHOLE_BOX = re.compile(rf"{_MARGIN}\\(?:boxed|fbox|framebox)\s*\{{(.*)\}}{_MARGIN}", re.DOTALL)
_JOINER = re.compile(
    r"(?:[\s$,;]|\\[\[\](),;! ]|\\q?quad|\\(?:text|mbox|textrm|mathrm)\s*\{|\}|[a-zA-Z](?:_\{?\w\}?)?\s*=|\band\b|\b(?P<or>or)\b)*"
)


@dataclass(frozen=True, slots=True)
class Declared:
    r"""
    The answer that a text declares.

    Args:
        text (`str`):
            The answer without math delimiters and trailing punctuation.
        end (`int`):
            Where its declaration ends.
        joined (`str`, *optional*):
            All answers of the sentence if it has several boxes, as a list: of `\boxed{2}` and `\boxed{3}` this is `2, 3`.
    """

    text: str
    end: int
    joined: str | None = None


def usable(candidate: str) -> str | None:
    r"""
    Return an answer without what stands around it, also a box; `None` if nothing is left.

    Example:

    >>> usable(r" $\boxed{\frac12}$. "), usable("**")
    ('\\frac12', None)
    """
    if candidate.isalnum():
        return candidate
    answer = strip_delimiters(candidate)
    if match := _WHOLE_BOX.fullmatch(answer):
        answer = strip_delimiters(match[1])
    is_unfinished_box = any(command in answer for command in _COMMANDS)
    return None if is_unfinished_box or not answer.strip(BLANK) else answer


def has_box(text: str) -> bool:
    r"""Whether a text opens a box."""
    return any(command in text for command in _COMMANDS) and _BOX.search(text) is not None


def boxed_answers(text: str) -> Iterator[Declared]:
    r"""
    Yield the answers in the last boxes of a text, that of the box that closes last first.

    An empty box, and one that is not closed, holds no answer. Of boxes that only `or` joins, like `\boxed{2}` or
    `\boxed{3}`, none is the answer: it is `2 or 3`.

    Example:

    >>> [declared.text for declared in boxed_answers(r"First \boxed{5}. In the end \boxed{\frac{1}{2}}.")]
    ['\\frac{1}{2}', '5']
    """
    spans = sorted(_box_spans(text), key=lambda span: span[1], reverse=True)
    for place, (start, end) in enumerate(spans):
        answer = usable(text[start:end])
        if answer is not None:
            yield _with_neighbours(text, spans[place:], answer)


def _box_spans(text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    end, num_seen = len(text), 0
    while (
        num_seen < MAX_BOXES
        and (
            start := max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end), text.rfind("\\framebox", 0, end))
        )
        >= 0
    ):
        span = _box_span(text, start)
        if span[1] >= 0:
            spans.append(span)
        end, num_seen = start, num_seen + 1
    return spans


def _box_span(text: str, start: int) -> tuple[int, int]:
    """Find where the content of the box that begins at `start` begins and ends; the end is -1 if it does not."""
    box = _BOX.match(text, start)
    if box is None:
        return start, -1
    begin = box.end()
    if not text.startswith("{", begin):
        unbraced = _UNBRACED_BOX.match(text, begin, begin + MAX_BOX_CHARACTERS)
        return unbraced.span() if unbraced else (begin, -1)
    depth = 0
    for token in _BRACE.finditer(text, begin, begin + MAX_BOX_CHARACTERS):
        depth += (token[0] == "{") - (token[0] == "}")
        if depth == 0:
            return begin + 1, token.start()
    return begin, -1


def _with_neighbours(text: str, spans: list[tuple[int, int]], answer: str) -> Declared:
    """Join an answer with those of the boxes before it in the same sentence."""
    answers, has_or = [answer], False
    last_start, end = spans[0]
    for start, other_end in spans[1:]:
        if other_end > last_start:
            continue  # inside the other
        between = text[other_end + 1 : last_start]
        between = between[: between.rfind("\\")] if "\\" in between else between
        other = usable(text[start:other_end])
        joiner = _JOINER.fullmatch(between) if len(between) <= MAX_BETWEEN_BOXES else None
        if other is None or joiner is None:
            break
        has_or |= bool(joiner["or"])
        answers.append(other)
        last_start = start
    if len(answers) == 1:
        return Declared(answer, end)
    joined = (" or " if has_or else ", ").join(reversed(answers))
    return Declared(joined if has_or else answer, end, joined)
