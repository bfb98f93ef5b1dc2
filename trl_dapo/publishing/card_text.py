"""Makes foreign text (names of models, datasets and metrics) safe for a model card."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any


# Characters that begin a structure inside a line of CommonMark, or of GitHub's and the Hub's extensions: emphasis, code, a link
# or picture (also one without brackets), a cell of a table, a formula, a mention.
_MARKUP = re.compile(r"([\\`*_\[\]|~$@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
_MAX_LENGTH = 300


def single_line(text: Any) -> str:
    r"""
    Returns a text on one line, without control characters, cut after 300 characters.

    >>> single_line("a\n---\nb\x00")
    'a --- b'
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if len(line) <= _MAX_LENGTH else line[: _MAX_LENGTH - 1] + "…"


def as_markdown(text: Any) -> str:
    r"""
    Returns a text that Markdown shows unchanged, without structure, link, formula or HTML. For the middle of a line.

    >>> as_markdown("<b> | [x](https://evil.example)")
    '&lt;b&gt; \\| \\[x\\](https\\://evil.example)'
    """
    return html.escape(_MARKUP.sub(r"\\\1", single_line(text)), quote=False)


def as_code(text: Any) -> str:
    r"""
    Returns a text as a code span for a cell of a table.

    >>> as_code("a`b|c")
    '`` a`b\\|c ``'
    """
    line = single_line(text).replace("|", r"\|") or " "
    longest = max((len(ticks) for ticks in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest else f"{fence}{line}{fence}"


def as_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    Returns a table of cells that are already Markdown, or an empty text if there are no rows.

    >>> print(as_table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(header)} |", "|" + "---|" * len(header), *lines])
