"""What a run is: its name, results, model, data and settings, and where the settings of two runs differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from group_view import text_html


_MAX_ROWS = 200
_IN_THE_HEADING = ("model", "data", "prompts", "steps", "seed")


def heading_html(
    name: str,
    facts: Mapping[str, Any],
    results: Mapping[str, float],
    num_groups: int,
    num_completions: int,
    problems: Sequence[str] = (),
    kind: str = "",
) -> str:
    """
    Returns a run in a few lines: its name, what it trained on what, and its results.

    Args:
        name (`str`):
            Folder or repository.
        facts (`Mapping`):
            The content of `run_facts.json`.
        results (`Mapping[str, float]`):
            The numbers of `results.json`.
        num_groups, num_completions (`int`):
            Size of the record.
        problems (`Sequence[str]`, *optional*):
            Files that could not be read.
        kind (`str`, *optional*):
            Of two runs, how its curves are drawn: `solid` or `broken`.
    """
    tiles = [(f"{num_groups:,}", "recorded groups"), (f"{num_completions:,}", "completions")]
    for result, value in list(results.items())[:12]:
        if result == "seed":
            continue  # it is in the heading
        shown = f"{value:.1%}" if "accuracy" in result and 0 <= value <= 1 else f"{value:.4g}"
        tiles.append((shown, result[:60].replace("_", " ")))
    cells = "".join(f"<div class=tile><b>{value}</b><span>{text_html(label)}</span></div>" for value, label in tiles)
    title = str(facts.get("model_name") or name)
    where = "" if title == name else f" <code>{text_html(name, limit=200)}</code>"
    described = ", ".join(f"{label} {value}" for label, value in about(facts).items() if label in _IN_THE_HEADING)
    lines = [described] if described else []
    lines += [f"{len(problems)} files could not be read: {'; '.join(problems[:3])}"] if problems else []
    lines += [f"Stopped: {facts['stop_reason']}"] if facts.get("stop_reason") else []
    paragraphs = "".join(f"<p>{text_html(line, limit=600)}</p>" for line in lines)
    return (
        f'<div class="run"><h3 class="{kind}">{text_html(title, limit=200)}{where}</h3>{paragraphs}'
        f'<div class="tiles">{cells}</div></div>'
    )


def about(facts: Mapping[str, Any]) -> dict[str, str]:
    """
    Returns what a run was, in words. What was not recorded is absent.

    >>> about({"base_model": "tiny", "train_data": {"name": "gsm8k", "split": "train"}, "num_train_rows": 7473})
    {'model': 'tiny', 'data': 'gsm8k train', 'prompts': '7473'}
    """
    data, sampling, hardware = (_dict(facts.get(name)) for name in ("train_data", "sampling", "hardware"))
    steps = facts.get("step"), facts.get("num_steps")
    words = {
        "model": facts.get("base_model"),
        "data": " ".join(str(data[name]) for name in ("name", "config", "split") if data.get(name)),
        "prompts": facts.get("num_train_rows"),
        "rewards": _listed(facts.get("rewards")),
        "steps": None if None in steps else f"{steps[0]} of {steps[1]}",
        "seed": sampling.get("seed"),
        "hardware": _listed(hardware),
        "versions": _listed(facts.get("versions")),
    }
    return {name: str(value) for name, value in words.items() if value not in (None, "")}


def settings_html(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Returns the settings of a run that differ from the defaults, or the settings in which two runs differ.

    Args:
        runs (`Mapping[str, Mapping]`):
            The content of `run_facts.json` by the name of the run; one or two.
    """
    if not all(runs.values()):
        without = ", ".join(name for name, facts in runs.items() if not facts)
        return (
            f'<div class="empty">No settings are known: {text_html(without, limit=400)} has no run_facts.json.</div>'
        )
    values = [about(facts) | _settings(facts, 0) for facts in runs.values()]
    defaults: dict[str, str] = {}
    for facts in runs.values():
        defaults |= _settings(facts, 1)
    names = list(dict.fromkeys(name for of_run in values for name in of_run))
    rows = [[name, *(of_run.get(name, defaults.get(name, "")) for of_run in values)] for name in names]
    if len(runs) > 1:
        rows = [row for row in rows if len(set(row[1:])) > 1]
    rows = [[*row, defaults.get(row[0], "")] for row in rows]
    head = ["Settings that differ" if len(runs) > 1 else "Settings", *runs, "default"]
    return (
        f"<table><thead>{_row(head, 'th')}</thead><tbody>{''.join(_row(row, 'td') for row in rows[:_MAX_ROWS])}</tbody></table>"
        if rows
        else '<div class="empty">The two runs have the same settings.</div>'
    )


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{text_html(cell, limit=400)}</{tag}>' for cell in cells)}</tr>"


def _settings(facts: Mapping[str, Any], place: int) -> dict[str, str]:
    """Returns the values (place 0) or the defaults (place 1) of the settings that differ from their defaults."""
    settings = _dict(facts.get("settings"))
    return {name: str(pair[place]) for name, pair in settings.items() if isinstance(pair, list) and len(pair) == 2}


def _listed(values: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in _dict(values).items())


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
