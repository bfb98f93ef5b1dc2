"""Reads code blocks, commands, links and names from README.md, CONTRIBUTING.md and the pages of docs/."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from checkout import ROOT


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages of which only links and names are checked.
LINKED_PAGES = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "benchmarks/README.md", "hub/README.md"))]
# First words of commands, in a block or in backticks.
PROGRAMS = ("accelerate", "make", "pip", "python", "torchrun", "trl-dapo")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A code block of a page, with the number of its first line."""

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
    """Returns what is in backticks in the prose of a page."""
    return _INLINE.findall(prose(page))


def commands() -> dict[str, list[str]]:
    """Returns the shell commands of all pages: the command without comments, and its words."""
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


def section(page: Path, title: str) -> str:
    """Returns the text below a heading of the second level, up to the next one."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} has no section {title}"
    return found[1]


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
