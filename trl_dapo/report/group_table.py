"""The sampled groups as a table in the terminal, beside the table of completions that TRL prints."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from transformers.utils import is_rich_available
from trl.trainer.utils import print_prompt_completions_sample

from trl_dapo.trl_seams import completions_printed_by

from .recorder import RolloutRecorder
from .terminal_text import printable, printable_parts


# Enough to show every verdict without filling the screen.
_MAX_GROUPS = 8
_MAX_CHARACTERS = 200
_STYLES = {
    "trained": "bold green",
    "surplus": "green",
    "stale": "dim green",
    "all_correct": "cyan",
    "all_wrong": "red",
    "unscorable": "bold magenta",
}


def print_groups(recorder: RolloutRecorder, num_completions: int | None = None) -> None:
    """
    Prints a few groups of the batch that was recorded last, some of each verdict. Nothing where `rich` is not installed.

    Args:
        recorder (`RolloutRecorder`):
            The record; each of its batches is printed once.
        num_completions (`int`, *optional*):
            TRL's `num_completions_to_print`: as many groups as have so many completions, and at most 8.
    """
    rows, recorder.latest = recorder.latest, []
    groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["position"])]
    most = _MAX_GROUPS
    if num_completions is not None and groups:
        most = min(most, math.ceil(num_completions / len(groups[0])))
    chosen = one_of_each(groups, most)
    if not chosen or not is_rich_available():
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, header_style="bold", show_lines=True)
    for name in ("Group", "Prompt", "Solution"):
        table.add_column(name)
    table.add_column("Rewards", justify="right")
    table.add_column("Tokens", justify="right")
    table.add_column("A completion")
    for group in chosen:
        outcome = fate_of(group[0])
        shown = group[0]
        # `Text` does not read markup in what a model wrote; control characters it would pass on.
        table.add_row(
            Text(outcome.replace("_", " "), style=_STYLES.get(outcome, "yellow")),
            Text(_shortened(last_turn(shown["prompt"]))),
            Text(_shortened(shown["solution"])),
            Text(" ".join(_number(row[f"rewards/{row['filter_reward']}"]) for row in group)),
            Text(f"{min(row['length'] for row in group)}-{max(row['length'] for row in group)}"),
            Text(_shortened(shown["completion"])),
        )
    facts = recorder.latest_facts
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in facts["groups"].items() if count)
    title = f"Step {facts['step']}: {sum(facts['groups'].values())} groups sampled ({counts})"
    Console().print(Panel(table, title=Text(printable(title)), expand=False))


def printing_plainly() -> AbstractContextManager[None]:
    """Inside it, TRL's table of completions shows what a model wrote and does not obey it."""

    def print_table(*columns: Any, **named: Any) -> None:
        print_prompt_completions_sample(*printable_parts(columns), **printable_parts(named))

    return completions_printed_by(print_table)


def fate_of(row: Mapping[str, Any]) -> str:
    """
    Returns what became of the group of a completion, in one word: its fate, or the verdict that filtered it.

    >>> fate_of({"fate": "filtered", "verdict": "all_wrong"}), fate_of({"fate": "trained", "verdict": "informative"})
    ('all_wrong', 'trained')
    """
    fate: str = row["verdict"] if row["fate"] == "filtered" else row["fate"]
    return fate


def last_turn(prompt: str | None) -> str | None:
    """
    Returns what is asked last in a prompt of the record: the content of the last message of a conversation.

    >>> last_turn('[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2"}]'), last_turn("2 + 2")
    ('2 + 2', '2 + 2')
    """
    if prompt is None or not prompt.startswith("[{"):
        return prompt
    try:
        content = json.loads(prompt)[-1]["content"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return prompt
    return content if isinstance(content, str) else prompt


def one_of_each(groups: Sequence[list[dict[str, Any]]], most: int) -> list[list[dict[str, Any]]]:
    """
    Returns up to `most` groups in their order: the first of each fate, then the second of each, and so on.

    Args:
        groups (`Sequence[list[dict]]`):
            The completions of each group.
        most (`int`):
            Most groups to return.
    """
    num_before: dict[str, int] = {}
    turns = []
    for number, group in enumerate(groups):
        fate = fate_of(group[0])
        turns.append((num_before.get(fate, 0), number))
        num_before[fate] = num_before.get(fate, 0) + 1
    return [groups[number] for number in sorted(number for _, number in sorted(turns)[: max(0, most)])]


def _number(reward: float | None) -> str:
    return "-" if reward is None or math.isnan(reward) else f"{reward:g}"


def _shortened(text: str | None) -> str:
    # The beginning and the end: the answer stands there.
    text = printable(text or "")
    half = _MAX_CHARACTERS // 2
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"
