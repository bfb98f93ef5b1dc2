"""Aims of a benchmark, and whether its figures meet them."""

from collections.abc import Iterable
from typing import NamedTuple


class Check(NamedTuple):
    """
    One aim, and whether it holds.

    Attributes:
        aim (`str`):
            The aim.
        holds (`bool`):
            Whether it holds in every case.
        detail (`str`):
            The figures behind the answer.
    """

    aim: str
    holds: bool
    detail: str


def checks_text(checks: Iterable[Check], markdown: bool = False) -> str:
    """Returns one line per aim."""
    if not markdown:
        return "\n".join(f"{'HOLDS' if c.holds else 'FAILS'}  {c.aim}: {c.detail}" for c in checks)
    lines = ["| aim | holds | figures |", "|---|---|---|"]
    return "\n".join(lines + [f"| {c.aim} | {'yes' if c.holds else '**no**'} | {c.detail} |" for c in checks])
