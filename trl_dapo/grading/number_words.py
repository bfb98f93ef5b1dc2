"""Numbers that are written in English words."""

import re
from fractions import Fraction

from .vocabulary import SMALL_NUMBERS, TENS


_SMALL = {word: number for number, word in enumerate(SMALL_NUMBERS)}
_TENS = {word: 10 * number for number, word in enumerate(TENS, start=2)}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
_TEXT = re.compile(r"(?:\\text\s*\{)?\s*([A-Za-z]+(?:[ -]+[A-Za-z]+){0,24})\s*\}?")


def number_of_words(text: str) -> Fraction | None:
    r"""
    Read a number in words.

    Args:
        text (`str`):
            A text, perhaps in `\text{}`.

    Returns:
        `Fraction | None`: The number; `None` if the text is anything else.

    Example:

    >>> number_of_words("one hundred and twenty-one"), number_of_words("two thirds"), number_of_words("Monday")
    (Fraction(121, 1), Fraction(2, 3), None)
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    words = [word for word in match[1].lower().replace("-", " ").split() if word != "and"]
    if words and words[0] in ("negative", "minus"):
        value = _positive(words[1:])
        return None if value is None else -value
    return _positive(words)


def _positive(words: list[str]) -> Fraction | None:
    if not words:
        return None
    part = _PARTS.get(words[-1]) or _PARTS.get(words[-1].removesuffix("s"))
    if part and len(words) == 2 and _SMALL.get(words[0]):
        return Fraction(_SMALL[words[0]], part)
    total, group, last = 0, 0, 0
    for word in words:
        if word in _SMALL:
            # After `twenty` only `one` to `nine`, and nothing directly after a small number.
            if last and not (last >= 20 and _SMALL[word] < 10):
                return None
            group, last = group + _SMALL[word], _SMALL[word] or 1
        elif word in _TENS:
            if last:
                return None
            group, last = group + _TENS[word], _TENS[word]
        elif word == "hundred":
            if not 0 < group < 10:
                return None
            group, last = group * 100, 0
        elif word in _LARGE:
            if not group:
                return None
            total, group, last = total + group * _LARGE[word], 0, 0
        else:
            return None
    return Fraction(total + group)
