"""
Draws the pictures of docs/batch.md: what they show is computed by the code of the package.

`python docs/site/pictures.py --write` writes them. A test holds that they are what the code says.
"""

import math
import random
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from trl_dapo.sampling.judge import GroupFilter, GroupVerdict  # noqa: E402
from trl_dapo.sampling.refill_planner import RefillPlanner  # noqa: E402


NUM_GROUPS, NUM_GENERATIONS = 8, 4
# Pass rates of the prompts in stream order: easy, hard and in between, and one whose gold cannot be read.
_RATES = [0.5, 1.0, 0.0, 0.25, 0.0, 1.0, 0.75, 0.5, 0.0, 1.0, 0.25, 0.5, math.nan, 0.0, 0.75, 0.5, 1.0, 0.0, 0.5, 0.25]
_COLORS = {1.0: "#2a9d5c", 0.0: "#d1495b"}
_MARKS = {1.0: "M{0},{4} L{1},{5} L{2},{3}", 0.0: "M{0},{3} L{2},{5} M{2},{3} L{0},{5}"}
_TEXT = 'font-family="Helvetica, Arial, sans-serif" fill="#222"'


class Group(NamedTuple):
    """A sampled group of the example: its round, its rewards, what the filter says, and what becomes of it."""

    round_number: int
    rewards: list[float]
    verdict: GroupVerdict
    fate: str


def example() -> list[Group]:
    """Returns the groups that are sampled for a batch of 8 groups of 4 completions."""
    rng = random.Random(4)
    planner = RefillPlanner(NUM_GROUPS, confidence=0.9, max_prompts=12)
    judge = GroupFilter()
    groups: list[Group] = []
    num_accepted, number = 0, 0
    while num_accepted < NUM_GROUPS:
        number += 1
        plan = planner.plan(num_needed=NUM_GROUPS - num_accepted)
        found = 0
        for _ in range(plan.num_prompts):
            rate = _RATES[len(groups) % len(_RATES)]
            rewards = [math.nan if math.isnan(rate) else float(rng.random() < rate) for _ in range(NUM_GENERATIONS)]
            verdict = judge.judge(rewards)
            fate = verdict.value.replace("_", " ")
            if verdict is GroupVerdict.INFORMATIVE:
                found += 1
                num_accepted += 1
                fate = "trained" if num_accepted <= NUM_GROUPS else "surplus"
            groups.append(Group(number, rewards, verdict, fate))
        planner.observe(num_informative=found, num_sampled=plan.num_prompts)
    return groups


def batch_picture() -> str:
    """Returns the picture of the example: a column a group, a square a completion."""
    groups = example()
    return "\n".join(_frame(70 + 38 * len(groups), 236, "A batch of 8 groups", _columns(groups)))


def _columns(groups: list[Group]) -> Iterator[str]:
    yield f'<text x="16" y="28" font-size="15" font-weight="bold" {_TEXT}>A batch of 8 groups of 4 completions</text>'
    last = 0
    for number, group in enumerate(groups):
        x = 24 + 38 * number + 26 * (group.round_number - 1)
        if group.round_number != last:
            yield f'<text x="{x}" y="56" font-size="13" {_TEXT}>round {group.round_number}</text>'
            last = group.round_number
        is_informative = group.verdict is GroupVerdict.INFORMATIVE
        if is_informative:
            dashes = "" if group.fate == "trained" else ' stroke-dasharray="5 4"'
            yield f'<rect x="{x - 4}" y="64" width="32" height="112" rx="5" fill="none" stroke="#1d3557" stroke-width="2.5"{dashes}/>'
        for place, reward in enumerate(group.rewards):
            color = _COLORS.get(reward, "#9aa0a6")
            opacity = 1 if is_informative else 0.45
            y = 68 + 26 * place
            yield f'<rect x="{x}" y="{y}" width="24" height="24" rx="3" fill="{color}" opacity="{opacity}"/>'
            if reward in _MARKS:  # beside the color, for those who do not tell red from green
                path = _MARKS[reward].format(*(x + dx for dx in (6, 10, 18)), *(y + dy for dy in (6, 12, 18)))
                yield f'<path d="{path}" fill="none" stroke="#fff" stroke-width="2.5"/>'
        # Turned, so that the words of neighbours do not meet.
        yield f'<text transform="translate({x + 8},184) rotate(38)" font-size="11" {_TEXT}>{escape(group.fate)}</text>'


_BOXES = (
    ("prompt stream", "every prompt once a pass,", "the same on all ranks"),
    ("round", "as many prompts as fill", "the batch with 90 %"),
    ("rewards", "graded once,", "in bounded time"),
    ("filter", "0 < correct < G,", "by one named reward"),
    ("batch", "the first N informative", "groups in stream order"),
    ("optimizer steps", "token-level loss,", "exact denominators"),
)


def flow_picture() -> str:
    """Returns the picture of the way from the prompt stream to the optimizer."""
    return "\n".join(_frame(30 + 172 * len(_BOXES), 200, "From the prompt stream to the optimizer", _flow()))


def _flow() -> Iterator[str]:
    yield (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L10,5 L0,10 z" fill="#1d3557"/></marker></defs>'
    )
    for number, (title, *words) in enumerate(_BOXES):
        x = 16 + 172 * number
        yield f'<rect x="{x}" y="44" width="146" height="78" rx="8" fill="#eef3f8" stroke="#1d3557" stroke-width="1.5"/>'
        yield f'<text x="{x + 73}" y="68" font-size="14" font-weight="bold" text-anchor="middle" {_TEXT}>{title}</text>'
        for line, text in enumerate(words):
            yield f'<text x="{x + 73}" y="{90 + 17 * line}" font-size="11.5" text-anchor="middle" {_TEXT}>{escape(text)}</text>'
        if number:
            yield _arrow(f"M{x - 26},83 L{x - 1},83")
    middle = [16 + 172 * number + 73 for number in range(len(_BOXES))]
    yield _arrow(f"M{middle[4]},122 C{middle[4]},166 {middle[1]},166 {middle[1]},124")
    yield f'<text x="{(middle[1] + middle[4]) / 2}" y="172" font-size="12" text-anchor="middle" {_TEXT}>not full: another round</text>'
    yield _arrow(f"M{middle[4] - 30},44 C{middle[4] - 30},6 {middle[0]},6 {middle[0]},42")
    yield f'<text x="{(middle[0] + middle[4]) / 2}" y="34" font-size="12" text-anchor="middle" {_TEXT}>surplus: prompts go back</text>'


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="#1d3557" stroke-width="1.8" marker-end="url(#head)"/>'


def _frame(width: int, height: int, title: str, content: Iterator[str]) -> Iterator[str]:
    """Yields an SVG with a light ground, which is readable on a dark page too."""
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
    yield f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>'
    yield from content
    yield "</svg>\n"


PICTURES = {"batch.svg": batch_picture, "flow.svg": flow_picture}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    for name, draw in PICTURES.items():
        (ROOT / "docs" / "pictures" / name).write_text(draw())
