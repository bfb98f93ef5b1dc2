"""
The faults of other packages in docs/upstream.md are there: each block prints what the page says.

A block that prints something else shows that the fault is mended, or has changed: then the page changes, and with it what this
package does about it.
"""

import re

import pytest
from checkout import ROOT


PAGE = ROOT / "docs" / "upstream.md"
_PRINTS = re.compile(r"# prints (.+); right: \S")
# Starts a process, which imports torch.
SLOW = ("accelerate", "TRL: a run that resumes")


def reproductions() -> tuple[str, list[tuple[str, str]]]:
    """Returns the block with which all others begin, and the others with their titles."""
    _, text = PAGE.read_text().split("## Faults found upstream")
    first, *faults = re.split(r"^### ", text, flags=re.MULTILINE)
    (shared,) = _blocks(first)
    return shared, [(fault.partition("\n")[0], block) for fault in faults for block in _blocks(fault)]


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def said_by(block: str) -> list[str]:
    """Returns what a block prints, as its comments say."""
    return _PRINTS.findall(block)


SHARED, FAULTS = reproductions()
HERE = [(title, block) for title, block in FAULTS if not title.startswith("vLLM")]


def marked(title, block):
    return pytest.param(block, id=title, marks=[pytest.mark.slow] * title.startswith(SLOW))


@pytest.fixture(scope="module")
def shared():
    scope: dict = {}
    exec(compile(SHARED, str(PAGE), "exec"), scope)
    return scope


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", [marked(title, block) for title, block in HERE])
def test_fault_is_still_there(block, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    exec(
        compile(block, str(PAGE), "exec"),
        shared | {"print": lambda *values: printed.append(" ".join(map(str, values)))},
    )
    assert printed == said_by(block)
    assert len(printed) == 1


def test_every_fault_has_a_reproduction_of_a_few_lines():
    titles = re.findall(r"^### (.+)$", PAGE.read_text(), re.MULTILINE)
    assert set(titles) == {title for title, _ in FAULTS}
    assert {title.partition(":")[0] for title in titles} == {
        "TRL",
        "accelerate",
        "latex2sympy2_extended",
        "math-verify",
        "vLLM",
    }
    assert all(len(block.splitlines()) <= 28 for _, block in FAULTS)
