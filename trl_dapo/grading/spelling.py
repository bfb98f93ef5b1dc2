r"""One spelling for each thing: Unicode, LaTeX and plain text that mean the same become the same text.

Everything here is a replacement of characters in linear time. What the text means is found out in [`reading`].
"""

import re
import unicodedata

from .vocabulary import GREEK_ALPHABET


_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe0e\ufe0f\ufeff]")
# What a JSON or Python string makes of `\boxed`, `\frac` and `\text` whose backslash was not escaped.
_LOST_BACKSLASH = re.compile(r"\x08(?=oxed|inom|egin|eta|ar)|\x0c(?=rac|box)|\t(?=ext|imes|frac|heta|an\b)")
_LOST_LETTERS = {"\x08": "\\b", "\x0c": "\\f", "\t": "\\t"}

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢₓ", "0123456789+-()nix")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢₓ]+")

_CHARACTERS = {
    **{chr(0x3B1 + place): f"\\{name} " for place, name in enumerate(GREEK_ALPHABET)},
    **{chr(0x391 + place): f"\\{name.title()} " for place, name in enumerate(GREEK_ALPHABET) if name not in ("pi", "sigma")},
    "Π": "\\Pi ", "Σ": "\\Sigma ", "ς": "\\sigma ", "ϕ": "\\phi ", "ϵ": "\\epsilon ", "ϑ": "\\theta ",
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2015": "-",
    "\ufe63": "-", "\u00d7": "*", "\u22c5": "*", "\u00b7": "*", "\u2219": "*", "\u2217": "*", "\u00f7": "/",
    "\u2215": "/", "\u2044": "/", "\u2264": "\\le ", "\u2a7d": "\\le ", "\u2265": "\\ge ", "\u2a7e": "\\ge ",
    "\u2260": "\\ne ", "\u2248": "\\approx ", "\u2243": "\\approx ", "\u2245": "\\cong ", "\u2261": "\\equiv ",
    "\u221e": "\\infty ", "\u00b1": "\\pm ", "\u2213": "\\mp ", "\u222a": "\\cup ", "\u2229": "\\cap ",
    "\u2216": "\\setminus ", "\u2208": "\\in ", "\u2209": "\\notin ", "\u2205": "\\emptyset ",
    "\u00d8": "\\emptyset ", "\u2282": "\\subset ", "\u2286": "\\subseteq ", "\u2220": "\\angle ",
    "\u25b3": "\\triangle ", "\u22a5": "\\perp ", "\u2225": "\\parallel ", "\u2192": "\\to ", "\u2032": "'",
    "\u2033": "''", "\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2026": "\\ldots ",
    "\u22ef": "\\ldots ", "\u211d": "\\mathbb{R}", "\u2124": "\\mathbb{Z}", "\u2115": "\\mathbb{N}",
    "\u211a": "\\mathbb{Q}", "\u2102": "\\mathbb{C}", "\u2228": " or ", "\u2227": " and ", "\u3001": ",",
    "\u3002": ".", "\u00a2": "\\text{cents}", "\u2103": "°C", "\u2109": "°F", "\u00ba": "°", "\u230a": "\\lfloor ",
    "\u230b": "\\rfloor ", "\u2308": "\\lceil ", "\u2309": "\\rceil ", "\u2329": "\\langle ", "\u232a": "\\rangle ",
    "\u27e8": "\\langle ", "\u27e9": "\\rangle ", "\u3010": "[", "\u3011": "]", "\u2223": "|", "\u2016": "|",
    "\u2225 ": "\\parallel ", "\u2236": ":", "\u223c": "\\sim ", "\u2211": "\\sum ", "\u220f": "\\prod ",
    "\u222b": "\\int ", "\u2030": "\\permille ",
}  # fmt: skip
_TRANSLATION = str.maketrans({key: value for key, value in _CHARACTERS.items() if len(key) == 1})
# Full-width forms, letters of mathematical alphabets, circled and Roman numbers have a plain form in Unicode.
_COMPATIBLE = re.compile("[\uff01-\uffee\u3000\u2460-\u24ff\u2100-\u218f\U0001d400-\U0001d7ff]")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9.]+|[a-zA-Z]))")
_OVERLINED_DIGITS = re.compile("((?:[0-9]\u0305)+)")
_DOTTED_DIGIT = re.compile("([0-9])\u0307")

# Thousands are separated by the same mark throughout; a plain comma or blank does it outside brackets only.
_MARK = r"(?:\{,\}|,\\! ?|(?<!\\)\\[,;: ]|~|[,\u00a0\u2009\u202f ])"
_THOUSANDS = re.compile(
    rf"(?<![0-9.,])[1-9][0-9]{{0,2}}(?P<mark>{_MARK})[0-9]{{3}}(?:(?P=mark)[0-9]{{3}})*(?![0-9]|,[0-9])"
)
_DECIMAL_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])")

_REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"<sup>([^<>]*)</sup>", r"^{\1}"),
        (r"<sub>([^<>]*)</sub>", r"_{\1}"),
        # A backslash that was escaped twice; three in a row are the end of a matrix row and a command.
        (r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|text|left|right|pi|cdot|times|pm|infty|in|cup|leq?|geq?)(?![a-zA-Z]))", r"\\"),
        (r"\\(?:left|right)\s*\.", " "),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\[()\[\]]", " "),
        (r"\\!", ""),
        (r"\\q?quad|\\(?:enspace|thinspace|medspace|thickspace|displaystyle|textstyle|limits|nolimits|strut|hfill)"
         r"(?![a-zA-Z])|(?<!\\)\\[,;:> ]|~|\\(?:hspace|vspace|hskip|phantom|vphantom|label|tag)\*?\s*\{[^{}]*\}", " "),
        (r"\\(?:dfrac|tfrac|cfrac)(?![a-zA-Z])", r"\\frac"),
        (r"\\dbinom(?![a-zA-Z])|\\tbinom(?![a-zA-Z])", r"\\binom"),
        (r"\\(?:mathbf|boldsymbol|bm|mathit|mathcal|mathsf|mathfrak|mathscr|mathtt|pmb|mathop|mathord|boxed|fbox|rm|bf"
         r"|it|bfseries|itshape|cancel|overbrace|underbrace|ensuremath|mathnormal)(?![a-zA-Z])", " "),
        (r"\\(?:textrm|textbf|textit|textsf|texttt|textup|textnormal|textsc|mbox|hbox|mathrm|operatorname\*?|emph"
         r"|underline|uline|mathclap)(?![a-zA-Z])", r"\\text"),
        (r"\\(?:color|textcolor|colorbox)\s*(?:\[[^\[\]]*\]\s*)?\{[^{}]*\}", " "),
        (r"\\text\s*\{\s*\\?([$%])\s*\}", r"\\\1"),
        (r"\\textdollar(?![a-zA-Z])", r"\\$"),
        (r"\\(?:euro|texteuro)(?![a-zA-Z])", "€"),
        (r"\\pounds(?![a-zA-Z])", "£"),
        # The degree sign; and ordinal numbers are read as numbers.
        (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\}|°|\{\s*°\s*\})|\\degree(?![a-zA-Z])|\\textdegree(?![a-zA-Z])", "°"),
        (r"(?<=[0-9])\s*\^?\s*(?:\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|\{\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}"
         r"|\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)(?![a-zA-Z]))", " "),
        (r"(?<![A-Za-z])(?:USD?|HK|AUD?|CAD?|NT|S)\s*\\\$|(?<![A-Za-z])USD\s*(?=[0-9])", r"\\$"),
        (r"(?<![A-Za-z])(?:Rs\.?|INR)\s*(?=[0-9])", "\u20b9"),
        (r"\+\s*/\s*-(?=\s*[0-9a-zA-Z\\(])", r"\\pm "),
        (r"(?<=[)\]}])\s*U\s*(?=[(\[\\{])", r"\\cup "),
        (r"(?<=[0-9}])\s*[xX]\s*(?=10\s*\^)", "*"),
        (r"\*\*(?=\S)", "^"),
        (r"(?<!\\)\{\s*([-+=:;,<>]?)\s*\}", r"\1"),
    )
]  # fmt: skip


def respell(text: str) -> str:
    r"""
    Return an answer in one spelling: no fonts, sizes, colours and blanks of LaTeX, and ASCII where there is a choice.

    Example:

    >>> respell(r"\left(\dfrac{1}{2},\,\textbf{3}\right]"), respell(r"1{,}234\text{ cm}\xb2")
    ('(\\frac{1}{2}, \\text{3}]', '1234\\text{ cm}\\xb2')
    """
    text = _LOST_BACKSLASH.sub(lambda match: _LOST_LETTERS[match[0]], text)
    if not text.isascii():
        text = _without_unicode(text)
    text = _joined_thousands(text)
    text = _DECIMAL_COMMA.sub(".", text).replace("{,}", ",")
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text


def _without_unicode(text: str) -> str:
    text = _INVISIBLE.sub("", text)
    text = _OVERLINED_DIGITS.sub(lambda match: "\\overline{" + match[1].replace("\u0305", "") + "}", text)
    text = _DOTTED_DIGIT.sub(r"\\dot{\1}", text)
    text = _SUPERSCRIPT.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT.sub(lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}", text)
    text = _VULGAR.sub(_vulgar_fraction, text)
    text = text.translate(_TRANSLATION)
    text = _COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return _ROOT.sub(lambda match: "\\sqrt{" + (match[1] or match[2] or match[3] or "") + "}", text)


def _vulgar_fraction(match: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return f"\\frac{{{numerator}}}{{{denominator}}}"


def _joined_thousands(text: str) -> str:
    def joined(match: re.Match[str]) -> str:
        is_plain = match["mark"] in (",", " ")
        if is_plain and _is_in_brackets(text, match.start()):
            return match[0]
        return match[0].replace(match["mark"], "")

    return _THOUSANDS.sub(joined, text)


def _is_in_brackets(text: str, end: int) -> bool:
    before = text[:end]
    return any(before.count(opening) > before.count(closing) for opening, closing in ("()", "[]")) or (
        before.count("\\{") > before.count("\\}")
    )
