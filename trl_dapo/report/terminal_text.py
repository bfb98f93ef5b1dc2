"""Text of others (prompts, completions, what reward functions logged) as a terminal may show it."""

from collections.abc import Mapping, Sequence
from typing import Any


def printable(text: str) -> str:
    r"""
    Returns a text in which every character is visible, but for line breaks and tabs.

    An escape sequence in a completion could otherwise move the cursor, rename the window or make a link, a direction
    mark could turn the line around, and a lone surrogate would end the run.

    >>> printable("a\x1b[2Jb\n\u202ec\ud800")
    'a␛[2Jb\n�c�'
    """
    return "".join(char if char.isprintable() or char in "\n\t" else _visible(char) for char in text)


def printable_parts(value: Any) -> Any:
    """Returns mappings and sequences with every text in them made printable, keys too; numbers and `None` as they are."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_parts(name): printable_parts(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [printable_parts(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float) else printable(str(value))


def _visible(char: str) -> str:
    # Unicode has a picture of each of ASCII's control characters.
    return (
        chr(0x2400 + ord(char))
        if char < " "
        else "\N{SYMBOL FOR DELETE}"
        if char == "\x7f"
        else "\N{REPLACEMENT CHARACTER}"
    )
