"""What stands around an answer and is no part of it."""


def strip_delimiters(text: str) -> str:
    r"""
    Strip white space, math delimiters, Markdown emphasis and trailing punctuation from around an answer.

    Example:

    >>> strip_delimiters(r"**$\frac{1}{2}$**.")
    '\\frac{1}{2}'
    """
    # Four layers are more than any answer has; a bound keeps hostile nesting linear.
    for _ in range(4):
        before = text
        text = text.strip("`* \t\r\n")
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
