r"""
Where the answer stands in a text: the *final* answer of a completion, and the answer of a gold solution.

Only what a marker names counts: a number that merely occurs in the reasoning is never an answer. A long completion is
cut to the part where its answer can be, so that it costs hardly more than a short one.
"""

import re
from collections.abc import Iterator

from .delimiters import strip_delimiters
from .rationals import parse_rational


# A completion without any marker is its own answer only if it is at most this many characters long.
MAX_BARE_CHARACTERS = 200

# How far from the end of a completion, in characters, a marker in words counts. Boxes count anywhere.
MAX_TAIL_CHARACTERS = 2_000
# A box that is not closed after so many characters never is.
MAX_BOX_CHARACTERS = 4_000
# The last boxes of a text that are looked at: a few suffice to get past empty, unfinished and nested ones.
MAX_BOXES = 8

_BLANK = " \t\r\n\"'`.,;:*$"
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,8}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED_BOX = re.compile(r"[^\s${}][^\s$]*")
_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.DOTALL)
# The repetitions are bounded and the classes disjoint, so that no text makes these patterns backtrack.
_ANSWER_LINE = re.compile(r"\banswer[\s*]{0,8}[:\uff1a][\s*]{0,16}", re.IGNORECASE)
_GSM8K_LINE = re.compile(r"####[ \t]{0,8}")
_ANSWER_PHRASE = re.compile(r"\banswer\s{1,4}is[\s:*]{0,16}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_LEADING_MATH = re.compile(r"\$([^$\n]+)\$|\\\(([^\n]+?)\\\)")
# Commands, text arguments and function names are consumed first, so that what is left are words.
_WORD = re.compile(
    r"\\(?:text|textrm|textbf|textit|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+"
    r"|\b(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|mod)h?\b|(?P<word>[^\W\d_]{2,})"
)


def final_answer(completion: str) -> str | None:
    r"""
    Find the final answer of a completion.

    The first rule that finds one decides: the last balanced `\boxed{...}` (or `\fbox{...}`, or `\boxed 5`; of nested
    boxes the outermost), the last `Answer: ...` line as in DAPO's data, the last `#### n` as in GSM8K, the last "the
    answer is ...", and last the whole completion if it is nothing but an expression. Of a completion with `</think>`
    the text after it is searched, and only if that gives no answer the boxes before it. Earlier mentions never count,
    and an unfinished box is no answer. Boxes count anywhere, what is in words in the last 2,000 characters.

    Args:
        completion (`str`):
            The text of the completion.

    Returns:
        `str | None`:
            The answer without math delimiters and trailing punctuation, or `None` if the completion gives none.

    Example:

    >>> final_answer(r"First \boxed{5}. No: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> final_answer("It could be 7, or 8.")
    """
    # The usual case first: a box near the end settles it without a look at the rest.
    end = completion[-MAX_TAIL_CHARACTERS:].rpartition("</think>")[2]
    answer = next(filter(None, map(_usable, _boxed(end))), None)
    if answer is not None:
        return answer
    reasoning, _, rest = completion.rpartition("</think>")
    answer = _first_marked(rest)
    # Guesses in the reasoning are cheap; a box is not.
    return answer if answer is not None else next(filter(None, map(_usable, _boxed(reasoning))), None)


def gold_answer(gold: str) -> str | None:
    r"""
    Find the answer in a gold solution: that of its last box, of its last `#### n` line, or the whole text.

    Args:
        gold (`str`):
            A plain number, a LaTeX expression, a text, or a whole solution that ends in a box or in `#### n`.

    Returns:
        `str | None`:
            The answer without math delimiters and trailing punctuation, or `None` if the text holds none: it is empty,
            or it opens a box that it does not close.

    Example:

    >>> gold_answer("16 - 3 - 4 = <<16-3-4=9>>9 eggs, 9 * 2 = $18.\n#### 18")
    '18'
    """
    for candidates in (_boxed(gold), _rest_of_line(gold, _GSM8K_LINE), [gold]):
        for candidate in candidates:
            if answer := _usable(candidate):
                return answer
    return None


def count_words(text: str) -> int:
    r"""
    Count the words (two letters or more) of a text that are neither LaTeX commands nor function names.

    Example:

    >>> count_words(r"\frac{1}{2} \sin x + cos x"), count_words("I think it is 5")
    (0, 3)
    """
    return sum(match["word"] is not None for match in _WORD.finditer(text))


def _first_marked(text: str) -> str | None:
    for candidate in _boxed(text):
        if answer := _usable(candidate):
            return answer
    text = text[-MAX_TAIL_CHARACTERS:]
    bare = text.strip()
    for candidate in _rest_of_line(text, _ANSWER_LINE):
        if answer := _usable(candidate):
            return answer
    for candidate in _rest_of_line(text, _GSM8K_LINE):
        # Words are a Markdown heading (`#### Step 2`), unless the text ends with them.
        if (answer := _usable(candidate)) and (_is_expression(answer) or bare.endswith(candidate.rstrip())):
            return answer
    for candidate in _rest_of_line(text, _ANSWER_PHRASE):
        formula = _LEADING_MATH.match(candidate)
        clause = (formula[1] or formula[2]) if formula else _SENTENCE_END.split(candidate, maxsplit=1)[0]
        if answer := _usable(clause):
            return answer
    # One word is a text answer (`Monday`); a word beside symbols is prose (`so 5`).
    if len(bare) <= MAX_BARE_CHARACTERS and "\n" not in bare and (bare.isalpha() or _is_expression(bare)):
        return _usable(bare)
    return None


def _is_expression(text: str) -> bool:
    return count_words(text) == 0 or parse_rational(text) is not None


def _usable(candidate: str) -> str | None:
    answer = strip_delimiters(candidate)
    if match := _WHOLE_BOX.fullmatch(answer):
        answer = strip_delimiters(match[1])
    is_unfinished_box = "\\boxed" in answer or "\\fbox" in answer
    return None if is_unfinished_box or not answer.strip(_BLANK) else answer


def _rest_of_line(text: str, marker: re.Pattern[str]) -> Iterator[str]:
    """Yield what follows each marker on its line or in its display formula, the last marker first."""
    limit = len(text)  # where the next marker begins, so that many markers on a line cost no more than one
    for match in reversed(list(marker.finditer(text))):
        start = match.end()
        closing = {"\\[": "\\]", "$$": "$$"}.get(text[start : start + 2])
        end = text.find(closing, start + 2, limit) + 2 if closing else text.find("\n", start, limit)
        yield text[start : end if end > start else limit]
        limit = match.start()


def _boxed(text: str) -> Iterator[str]:
    """Yield the contents of the last boxes, the one that closes last first; an unfinished box counts for nothing."""
    spans: list[tuple[int, int]] = []
    end = len(text)
    while len(spans) < MAX_BOXES and (start := max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))) >= 0:
        spans.append(_box_span(text, start))
        end = start
    for start, end in sorted(spans, key=lambda span: span[1], reverse=True):
        if end >= 0:
            yield text[start:end]


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
