r"""
Which rational number an answer is, if it certainly is one.

Integers and simple rationals are all that GSM8K, AIME and DAPO-Math-17k need, and comparing two of them exactly costs
microseconds where a computer algebra system needs milliseconds.
"""

import re
from fractions import Fraction

from .delimiters import strip_delimiters


# Digits that `parse_rational` reads at most. Far more than any real answer has, far fewer than make integers slow.
MAX_DIGITS = 300

_SIGN = r"(?P<sign>[+-]?)"
_CURRENCY = r"(?:\\?\$|[€£¥₹])"
_THOUSANDS = r"(?:,|\\[,;: ]|~|[ \u00a0\u2009\u202f])"
_NUMBER = re.compile(
    rf"(?:{_SIGN}\s*{_CURRENCY}?|{_CURRENCY}\s*(?P<inner_sign>[+-]))\s*"
    rf"(?=\.?[0-9])(?P<whole>[1-9][0-9]{{0,2}}(?P<sep>{_THOUSANDS})[0-9]{{3}}(?:(?P=sep)[0-9]{{3}})*|[0-9]*)"
    r"(?P<decimals>(?:\.[0-9]+)?)(?P<tail>.*)"
)
_BRACED = r"\s*(?:\{{\s*(?P<{0}>{1}[0-9]+)\s*\}}|(?P<{0}_digit>[0-9]))"
_FRACTION = re.compile(
    rf"{_SIGN}\s*(?:(?P<whole>[0-9]+)\s*)?\\[dtc]?frac{_BRACED.format('num', '-?')}{_BRACED.format('den', '')}"
    rf"|(?P<slash_sign>[+-]?)\s*(?:(?P<slash_whole>[0-9]+)\s+)?(?P<slash_num>[0-9]+)\s*/\s*(?P<slash_den>[0-9]+)"
)
_REPEATING = re.compile(
    rf"{_SIGN}\s*(?P<whole>[0-9]*)\.(?P<fixed>[0-9]{{0,20}})\\overline\s*(?:\{{(?P<block>[0-9]{{1,20}})\}}|(?P<digit>[0-9]))"
)
_PERCENT = re.compile(r"\s*(?:\\?%|percent|\\text\s*\{\s*(?:\\?%|percent)\s*\})")
_DEGREES = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\degree)")
# A short word after a number may be a product of variables (`6 xy`), so only these are taken as units ...
_SHORT_UNITS = "[km]?m/s|km/h|mi/h|[ckm]m|ft|yd|mi|oz|lbs?|[km]g|ml|hrs?|min|sec|[km]ph|day|egg|cup|m[ae]n|pen|bag|box|boy|car|cat|dog"
# ... and these long words change the number in front of them, or make it a part of something else.
_VALUE_WORDS = (
    "hundred|thousand|million|billion|trillion|dozen|score|half|halves|(?:quarter|third|(?:four|fif|six|seven|eigh|nin"
    "|ten|hundred|thousand)th|percent)s?|percentage|squared|cubed|times|plus|minus|over|divided|root|sqrt|factorial"
    "|modulo|base|binary|infinity|below|negative|zero|power"
)
_UNIT_WORD = rf"(?!(?i:{_VALUE_WORDS})\b)(?:[A-Za-z]{{4,}}|(?:{_SHORT_UNITS})\b)"
_UNIT_WORDS = rf"(?:(?:{_UNIT_WORD}|an?|the|of|in|per|sq\.?)[ /-]{{1,2}}){{0,4}}{_UNIT_WORD}"
_TEXT_COMMAND = r"\\(?:text|textrm|textbf|textit|mathrm|mbox)\s*"
_UNIT = re.compile(
    rf"\s+{_UNIT_WORDS}"
    rf"|\s*(?:\\[,;: ]|~)?{_TEXT_COMMAND}\{{\s*(?:{_UNIT_WORDS}|[mgsh])\.?\s*\}}(?:\^(?:[23]|\{{[23]\}}))?"
)


def parse_rational(text: str) -> Fraction | None:
    r"""
    Read a text as a rational number, if it certainly is one.

    Read are integers and decimals, with thousands separators (`1,234`, `1{,}234`, `1\,234`, `1 234`), a currency sign,
    `%`, degrees or unit words (`42 apples`, `18\text{ cm}^2`); repeating decimals (`0.1\overline{6}`); fractions of
    integers (`a/b`, `\frac{a}{b}`); proper mixed numbers (`3\frac12`, `3 1/2`). A percentage is its hundredth, `50%` is 1/2: see [`is_percentage`]. Units are
    dropped, not converted. Words that change the number (`5 million`) and everything else give `None`.

    Args:
        text (`str`):
            An answer.

    Returns:
        `Fraction | None`:
            The exact value, or `None` if the text is not certainly one number or has more than 300 digits.

    Example:

    >>> parse_rational(r"\$1{,}234.50")
    Fraction(2469, 2)
    >>> parse_rational("50%")
    Fraction(1, 2)
    >>> parse_rational(r"9\pi")
    """
    if len(text) > 2 * MAX_DIGITS or sum(map(str.isdigit, text)) > MAX_DIGITS:
        return None
    text = strip_delimiters(text).replace("\u2212", "-").replace("{,}", ",").replace("\\!", "")
    if match := _FRACTION.fullmatch(text):
        return _fraction_value(match)
    if match := _REPEATING.fullmatch(text):
        return _repeating_value(match)
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    tail = match["tail"]
    value = Fraction("0" + re.sub(r"\D", "", match["whole"]) + match["decimals"])
    if (match["inner_sign"] or match["sign"]) == "-":
        value = -value
    if _PERCENT.fullmatch(tail):
        return value / 100
    if not tail or re.fullmatch(rf"\s*{_CURRENCY}", tail) or _DEGREES.fullmatch(tail) or _UNIT.fullmatch(tail):
        return value
    return None


def is_percentage(text: str) -> bool:
    r"""
    Whether an answer is written as a percentage.

    Questions about percentages have golds with and without the sign, so callers compare `50%` as 1/2 *and* as 50 with
    an answer that is no percentage, as math-verify does for integers.

    Example:

    >>> is_percentage(r"12.5\%")
    True
    """
    return strip_delimiters(text).endswith(("%", "percent", "%}", "percent}"))


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


def _repeating_value(match: re.Match[str]) -> Fraction:
    fixed, block = match["fixed"], match["block"] or match["digit"]
    value = Fraction(f"0{match['whole']}.{fixed or 0}")
    value += Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(fixed))
    return -value if match["sign"] == "-" else value
