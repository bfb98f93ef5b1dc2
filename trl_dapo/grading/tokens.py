r"""The tokens of an answer in one spelling: numbers, letters, words, commands and symbols."""

import re
from dataclasses import dataclass

from .units import UNITS, is_measure
from .vocabulary import CAPITAL_WORDS, FUNCTIONS, GREEK, SHORT_WORDS, SPACED_WORDS


class UnreadableError(Exception):
    """The text is no mathematics that this package reads."""


@dataclass(frozen=True, slots=True)
class Token:
    """
    A token.

    Args:
        kind (`str`):
            `number`, `letter` (a variable, Latin or Greek), `word`, `function`, `command` or `symbol`.
        text (`str`):
            Its text; commands and Greek letters with their backslash.
        is_upright (`bool`, *optional*, defaults to `False`):
            Whether it stands in `\\text{}`, `\\mathrm{}` or the like.
        is_spaced (`bool`, *optional*, defaults to `False`):
            Whether a blank stands before it.
    """

    kind: str
    text: str
    is_upright: bool = False
    is_spaced: bool = False


_VARIANTS = {
    "bar": "overline",
    "varepsilon": "epsilon",
    "vartheta": "theta",
    "varphi": "phi",
    "varrho": "rho",
    "varsigma": "sigma",
}
# Other names of commands and of symbols.
_SYNONYMS = {
    "cdot": "*", "times": "*", "ast": "*", "bullet": "*", "div": "/", "lt": "<", "gt": ">", "leq": "\\le",
    "leqslant": "\\le", "leqq": "\\le", "geq": "\\ge", "geqslant": "\\ge", "geqq": "\\ge", "neq": "\\ne", "vert": "|",
    "lvert": "|", "rvert": "|", "Vert": "|", "lVert": "|", "rVert": "|", "mid": "|", "lbrace": "\\{",
    "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "colon": ":", "approxeq": "\\approx",
    "simeq": "\\approx", "thickapprox": "\\approx", "varnothing": "\\emptyset", "dots": "\\ldots", "cdots": "\\ldots",
    "dotsc": "\\ldots", "dotsb": "\\ldots", "backslash": "\\setminus", "smallsetminus": "\\setminus", "lor": "or",
    "vee": "or", "land": "and", "wedge": "and", "iff": "\\iff", "implies": "\\to", "rightarrow": "\\to",
    "Rightarrow": "\\to", "longrightarrow": "\\to", "infin": "\\infty", "prime": "'", "euro": "€", "bigcup": "\\cup",
    "bigcap": "\\cap", "isin": "\\in", "pmod": "\\pmod", "bmod": "\\bmod", "mod": "\\bmod",
}  # fmt: skip
_PLAIN = {
    "pi": "\\pi", "infinity": "\\infty", "infty": "\\infty", "inf": "\\infty", "oo": "\\infty", "mod": "\\bmod",
    "union": "\\cup", "cup": "\\cup", "intersect": "\\cap", "percent": "%", "percentage": "%", "pct": "%",
    "degree": "°", "degrees": "°", "deg": "°",
}  # fmt: skip
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+(?![0-9]*[a-zA-Z.]))?)"
    r"|\\(?P<command>[a-zA-Z]+)\*?"
    r"|(?P<escaped>\\.)"
    r"|(?P<letters>[a-zA-Z\u00c0-\u024f]+)"
    r"|(?P<foreign>[^\W\d_a-zA-Z\u00c0-\u024f]+)"
    r"|(?P<symbol><=|>=|!=|->|\.\.\.|.)",
    re.DOTALL,
)
_TEXT = re.compile(r"\\text\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_FUNCTION_OF_LETTER = re.compile(rf"([a-z]?)({'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})([xynt])")
MAX_TEXT_DEPTH = 4


def tokenize(text: str) -> list[Token]:
    r"""
    Split an answer in one spelling (see [`respell`]) into tokens.

    Args:
        text (`str`):
            The answer.

    Returns:
        `list[Token]`: Its tokens, in order.

    Raises:
        `UnreadableError`: If a `\text{` is not closed, or holds more than four others.

    Example:

    >>> [token.text for token in tokenize(r"2xy \text{ cm} + \sin x")]
    ['2', 'x', 'y', 'cm', '+', 'sin', 'x']
    """
    tokens: list[Token] = []
    _append_tokens(text, tokens, is_upright=False, depth=0)
    return tokens


def _append_tokens(text: str, tokens: list[Token], is_upright: bool, depth: int) -> None:
    if depth > MAX_TEXT_DEPTH:
        raise UnreadableError("text in text")
    position, is_spaced = 0, bool(tokens and is_upright)
    while position < len(text):
        if text.startswith("\\text", position) and (opening := _TEXT.match(text, position)):
            end = _closing_brace(text, opening.end() - 1)
            _append_tokens(text[opening.end() : end], tokens, is_upright=True, depth=depth + 1)
            position, is_spaced = end + 1, True
            continue
        match = _TOKEN.match(text, position)
        assert match is not None  # the last alternative takes any character
        position = match.end()
        kind = match.lastgroup
        if kind == "space":
            is_spaced = True
            continue
        if kind == "letters":
            tokens += _letter_tokens(match, tokens[-1] if tokens else None, is_upright, is_spaced)
        elif kind == "foreign":
            tokens.append(Token("word", match[0], is_upright, is_spaced))
        elif kind == "number":
            tokens.append(Token("number", match[0], is_upright, is_spaced))
        elif kind == "command":
            tokens.append(_command_token(match["command"], is_upright, is_spaced))
        else:
            symbol = {"<=": "\\le", ">=": "\\ge", "!=": "\\ne", "->": "\\to", "...": "\\ldots", "\\|": "|", "\\$": "$",
                      "\\%": "%", "\\_": "_", "\\&": "and", "\\#": "#"}.get(match[0], match[0])  # fmt: skip
            is_command = symbol in ("\\to", "\\ldots")
            kind = "command" if is_command else "word" if symbol == "and" else "symbol"
            tokens.append(Token(kind, symbol, is_upright, is_spaced))
        is_spaced = False


def _closing_brace(text: str, start: int) -> int:
    depth = 0
    for match in _BRACE.finditer(text, start):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.start()
    raise UnreadableError("an open brace")


def _command_token(name: str, is_upright: bool, is_spaced: bool) -> Token:
    name = _VARIANTS.get(name, name)
    if name in _SYNONYMS:
        text = _SYNONYMS[name]
        kind = "word" if text.isalpha() else "command" if text[0] == "\\" and text[1].isalpha() else "symbol"
        if text in ("\\le", "\\ge", "\\ne", "\\approx", "\\setminus"):
            kind = "symbol"
        return Token(kind, text, is_upright, is_spaced)
    if name in ("le", "ge", "ne", "approx", "setminus", "cup", "cap", "in", "pm", "mp", "notin", "equiv"):
        return Token("symbol", "\\" + name, is_upright, is_spaced)
    if name in GREEK:
        return Token("letter", "\\" + name, False, is_spaced)
    if name in FUNCTIONS:
        return Token("function", name, is_upright, is_spaced)
    return Token("command", "\\" + name, is_upright, is_spaced)


def _letter_tokens(match: re.Match[str], before: Token | None, is_upright: bool, is_spaced: bool) -> list[Token]:
    run = match[0]
    if len(run) == 1:
        return [Token("letter", run, is_upright, is_spaced)]
    if run in FUNCTIONS or (is_upright and run.casefold() in FUNCTIONS):
        return [Token("function", run, is_upright, is_spaced)]
    plain = _PLAIN.get(run) or _PLAIN.get(run.casefold() if len(run) > 3 else run)
    if plain:
        kind = "command" if plain[1:].isalpha() and plain not in ("\\cup", "\\cap") else "symbol"
        return [Token(kind, plain, is_upright, is_spaced)]
    if run in GREEK:
        return [Token("letter", "\\" + run, False, is_spaced)]
    if run.isupper() and run.isascii() and len(run) <= 6 and run not in UNITS and run not in CAPITAL_WORDS:
        # The points of a figure, or the letters of several choices.
        return [Token("letter", letter, False, is_spaced and place == 0) for place, letter in enumerate(run)]
    is_word = is_upright or not run.isascii() or _is_word(match, before, is_spaced)
    if not is_word and (parts := _FUNCTION_OF_LETTER.fullmatch(run)):
        first = [Token("letter", parts[1], False, is_spaced)] if parts[1] else []
        return [*first, Token("function", parts[2], False, not first and is_spaced), Token("letter", parts[3])]
    if is_word:
        return [Token("word", run, is_upright, is_spaced)]
    return [Token("letter", letter, False, is_spaced and place == 0) for place, letter in enumerate(run)]


def _is_word(match: re.Match[str], before: Token | None, is_spaced: bool) -> bool:
    run, rest = match[0], match.string[match.end() :]
    if run in ("and", "or") and match.string[: match.start()].endswith((")", "]", "}", " ")):
        return True
    if rest[:1] in ("^", "_", "("):
        # `ab^2` and `sum(x)` are no words, but `cm^2` may be a unit behind a number.
        return bool(rest[:1] == "^" and before and before.kind == "number" and is_measure(run))
    if len(run) > 3:
        return not _FUNCTION_OF_LETTER.fullmatch(run)
    is_behind_number = before is not None and before.kind == "number"
    if run in UNITS and is_behind_number:
        return True
    is_apart = (is_spaced or match.start() == 0) and (
        not rest or (not rest[0].isalnum() and rest[0] not in "+-*/=\\{")
    )
    known = run if run in SHORT_WORDS or run in UNITS else run.casefold()
    return (known in SHORT_WORDS or known in UNITS) and (is_apart or known not in SPACED_WORDS)
