"""Takes README.md and the pages of docs/ apart: code blocks, commands, links, names."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What begins a command, in a block or in backticks.
PROGRAMS = ("accelerate", "make", "pip", "python", "torchrun", "trl-dapo")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A piece of code of a page, with the number of its first line."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str) -> list[Block]:
    """Returns the fenced blocks in a language, of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for fence in _FENCE.finditer(text):
            if fence[1] == language:
                found.append(Block(page, text.count("\n", 0, fence.start()) + 2, fence[2]))
    return found


def prose(page: Path) -> str:
    """Returns a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def names_in_backticks(page: Path) -> list[str]:
    """Returns what stands in backticks in the prose of a page."""
    return _INLINE.findall(prose(page))


def commands() -> dict[str, list[str]]:
    """Returns the shell commands of all pages: what is written, without comments, and its words."""
    found = {}
    for line in _command_lines():
        words = shlex.split(line, comments=True)
        if words:
            found[" ".join(words)] = words
    return found


def _command_lines() -> Iterator[str]:
    for block in blocks("bash"):
        yield from block.text.replace("\\\n", " ").splitlines()
    for page in PAGES:
        # One word alone (`accelerate`) is the name of the program.
        yield from (name for name in names_in_backticks(page) if name.split()[0] in PROGRAMS and " " in name)


def links(page: Path) -> list[tuple[str, str]]:
    """Returns text and target of the links of a page."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
