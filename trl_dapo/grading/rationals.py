r"""
Which rational number an answer is, if it is written as one and nothing more.

Integers and simple fractions are all that GSM8K, AIME and DAPO-Math-17k need. Comparing two of them costs microseconds.
"""

import re
from fractions import Fraction

from .delimiters import strip_delimiters


# Digits that `parse_rational` reads at most. Far more than any real answer has, far fewer than make integers slow.
MAX_DIGITS = 300
# Decimals agree when they round to the same number at this many places ...
DECIMAL_PLACES = 6
# ... and differ by no more than this part of the larger: else everything below 1e-6 would equal 0.
MAX_RELATIVE_ERROR = Fraction(1, 1000)

_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
_SIGN = r"(?P<sign>[+-]?)"
_THOUSANDS = r"(?:,|\\[,;: ]|~|[ \u00a0\u2009\u202f])"
_NUMBER = re.compile(
    rf"{_SIGN}\s*"
    rf"(?=\.?[0-9])(?P<whole>[1-9][0-9]{{0,2}}(?P<sep>{_THOUSANDS})[0-9]{{3}}(?:(?P=sep)[0-9]{{3}})*|[0-9]*)"
    r"(?P<decimals>(?:\.[0-9]+)?)"
)
_BRACED = r"\s*(?:\{{\s*(?P<{0}>{1}[0-9]+)\s*\}}|(?P<{0}_digit>[0-9]))"
_FRACTION = re.compile(
    rf"{_SIGN}\s*(?:(?P<whole>[0-9]+)\s*)?\\[dtc]?frac{_BRACED.format('num', '-?')}{_BRACED.format('den', '')}"
    rf"|(?P<slash_sign>[+-]?)\s*(?:(?P<slash_whole>[0-9]+)\s+)?(?P<slash_num>[0-9]+)\s*/\s*(?P<slash_den>[0-9]+)"
)


def parse_rational(text: str) -> Fraction | None:
    r"""
    Read a text as a rational number, if it is one and nothing more.

    Read are integers and decimals, with thousands separators (`1,234`, `1{,}234`, `1\,234`, `1 234`), fractions of integers
    (`a/b`, `\frac{a}{b}`) and proper mixed numbers (`3\frac12`, `3 1/2`). Everything else gives `None`: units, percent and
    other words change what a number is equal to, see [`reading`].

    Args:
        text (`str`):
            An answer.

    Returns:
        `Fraction | None`:
            The exact value, or `None` if the text is not certainly one number or has more than 300 digits.

    Example:

    >>> parse_rational(r"1{,}234.50"), parse_rational(r"-\frac{3}{4}"), parse_rational("50%")
    (Fraction(2469, 2), Fraction(-3, 4), None)
    """
    if _INTEGER.fullmatch(text):
        return Fraction(int(text))
    if len(text) > 2 * MAX_DIGITS or sum(map(str.isdigit, text)) > MAX_DIGITS:
        return None
    text = strip_delimiters(text).replace("\u2212", "-").replace("{,}", ",").replace("\\!", "")
    if match := _FRACTION.fullmatch(text):
        return _fraction_value(match)
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    value = Fraction("0" + re.sub(r"\D", "", match["whole"]) + match["decimals"])
    return -value if match["sign"] == "-" else value


def rationals_agree(gold: Fraction, answer: Fraction, is_decimal: bool) -> bool:
    """
    Compare two rational numbers.

    Args:
        gold, answer (`Fraction`):
            The numbers.
        is_decimal (`bool`):
            Whether one of them is written as a decimal: then both may be rounded to the same six places.

    Returns:
        `bool`: Whether they are the same.

    Example:

    >>> third = Fraction(1, 3)
    >>> rationals_agree(third, Fraction("0.333333"), is_decimal=True), rationals_agree(third, Fraction("0.333"), True)
    (True, False)
    """
    if gold == answer or not is_decimal:
        return gold == answer
    return round(gold, DECIMAL_PLACES) == round(answer, DECIMAL_PLACES) and abs(
        gold - answer
    ) <= MAX_RELATIVE_ERROR * max(abs(gold), abs(answer))


def _fraction_value(match: re.Match[str]) -> Fraction | None:
    if match["slash_num"]:
        sign, whole = match["slash_sign"], match["slash_whole"]
        numerator, denominator = int(match["slash_num"]), int(match["slash_den"])
    else:
        sign, whole = match["sign"], match["whole"]
        numerator, denominator = int(match["num"] or match["num_digit"]), int(match["den"] or match["den_digit"])
    if denominator == 0 or (whole and not 0 <= numerator < denominator):
        # `3\frac{5}{2}` may be a product.
        return None
    value = Fraction(numerator, denominator) + int(whole or 0)
    return -value if sign == "-" else value
