"""What stands around an answer and is no part of it."""

import re


# The end of a proof, and the marks with which chat models decorate an answer.
_END_MARK = re.compile(
    r"(?<=\S)[\s$]{0,4}(?:\\(?:blacksquare|square|Box|qed|checkmark)(?![a-zA-Z])[\s$]{0,4}"
    "|[\u220e\u25a0\u25a1\u25fb\u25fc\u2705\u2713\u2714\u2611\u2728\u2b50\U0001f389\U0001f44d\U0001f4af\U0001f60a\ufe0f]\\s{0,4}){1,8}$"
)
_BOLD = re.compile(r"(?<![\w*)\]}])\*\*([^*\n]+?)\*\*(?![\w*(\\{])")
_BARE_DOLLAR = re.compile(r"(?<!\\)\$")


def strip_delimiters(text: str) -> str:
    r"""
    Strip white space, math delimiters, Markdown emphasis, trailing punctuation and end marks from around an answer.

    Example:

    >>> strip_delimiters(r"**$\frac{1}{2}$**.")
    '\\frac{1}{2}'
    """
    if match := _END_MARK.search(text):
        text = text[: match.start()]
        # A dollar sign before the mark may have closed a formula.
        text += "$" * (text.count("$") % 2)
    if "**" in text:
        text = _BOLD.sub(r"\1", text)
    # Four layers are more than any answer has; a bound keeps hostile nesting linear.
    for _ in range(4):
        before = text
        text = text.strip('`*_"\u201c\u201d \t\r\n')
        if not text.endswith(("\\,", "\\;", "\\:", "\\.", "\\right.")):
            text = text.rstrip(".,;: ")
        for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                inside = text[len(opening) : -len(closing)]
                # `$5 and $6$` is no single formula, and the last dollar of `$5\$` belongs to the amount.
                if opening not in inside and closing not in inside and not inside.endswith("\\"):
                    text = inside
        for decoration in ("\\displaystyle", "\\approx", "\u2248", "="):
            text = text.removeprefix(decoration)
        if text == before:
            break
    return text


def without_math_dollars(text: str) -> str:
    r"""
    Replace dollar signs that delimit formulas by blanks, and those of amounts of money by `\$`.

    Example:

    >>> without_math_dollars("$73$ or $74$"), without_math_dollars("$5 and $6"), without_math_dollars(r"$\$36$")
    (' 73  or  74 ', '\\$5 and \\$6', ' \\$36 ')
    """
    if "$" not in text:
        return text
    text = text.replace("$$", "$")
    places = [match.start() for match in _BARE_DOLLAR.finditer(text)]
    pairs = list(zip(places[::2], places[1::2], strict=False))
    is_money = len(places) % 2 == 1 or any(_is_amount(text, start, end) for start, end in pairs)
    if "\\$" in text and len(places) % 2 == 1:
        is_money = False
    return _BARE_DOLLAR.sub(r"\\$" if is_money else " ", text)


def _is_amount(text: str, start: int, end: int) -> bool:
    """Whether two dollar signs begin two amounts, as in `$5 and $6`, and enclose no formula."""
    return text[start + 1].isdigit() and text[end - 1] == " " and text[end + 1 : end + 2].isdigit()
