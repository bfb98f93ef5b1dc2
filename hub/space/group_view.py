"""
Groups as HTML: a list of groups, and one group with all its completions.

Text of a model is shown as text only. `text_html` escapes it, and is the only function that puts it into HTML.
"""

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rollout_index import CORRECT, Group


_MAX_TEXT = 40_000  # characters of one text; the beginning and the end are shown
_MAX_SNIPPET = 160
_MAX_VISITS = 40
_DOTS_LEGEND = "<i class=right></i> correct <i class=wrong></i> wrong <i class=none></i> not scored"
_ADVANTAGE_LEGEND = (
    '<div class="key"><b>A</b> is the advantage: training makes a completion with A above 0 more probable, and one with A below 0 '
    "less probable.</div>"
)
# Characters that are invisible, or that change the order in which their neighbours are shown.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")


class Visit(NamedTuple):
    """A group of a prompt: its number, step, number of correct completions, and number of completions."""

    number: int
    step: int
    num_correct: int
    size: int


def text_html(text: str, mark: str = "", limit: int = _MAX_TEXT) -> str:
    """
    Returns a text as HTML: escaped, with codes for invisible characters, and without the middle of a text that is too long.

    Args:
        text (`str`):
            Any text.
        mark (`str`, *optional*):
            Text to highlight; upper and lower case are the same.
        limit (`int`, *optional*):
            Maximum number of characters.

    >>> text_html("1 < 2 <script>", mark="SCRIPT")
    '1 &lt; 2 &lt;<mark>script</mark>&gt;'
    """
    if len(text) > limit:
        head, tail = text[: limit // 2], text[len(text) - limit // 2 :]
        left_out = f'<span class="gap">{len(text) - 2 * (limit // 2):,} characters left out</span>'
        return text_html(head, mark) + left_out + text_html(tail, mark)
    pieces = re.split(f"({re.escape(mark)})", text, flags=re.IGNORECASE) if mark else [text]
    # The pieces at odd places are the matches.
    return "".join(
        f"<mark>{_escaped(piece)}</mark>" if number % 2 else _escaped(piece) for number, piece in enumerate(pieces)
    )


def list_html(groups: Sequence[Group], filter_reward: str, chosen: int | None, mark: str = "") -> str:
    """
    Returns the groups of a page as a list of buttons, each with its number in `data-group`.

    Args:
        groups (`Sequence[Group]`):
            The groups.
        filter_reward (`str`):
            Column whose values are shown as dots: correct or not.
        chosen (`int`, *optional*):
            Number of the group that is open.
        mark (`str`, *optional*):
            Text to highlight.
    """
    if not groups:
        return '<div class="empty">No group matches. Remove a condition.</div>'
    rows = []
    for group in groups:
        rewards = [completion[filter_reward] for completion in group.completions]
        lengths = [completion["length"] for completion in group.completions]
        rows.append(
            f'<button type="button" class="row{" chosen" if group.number == chosen else ""}" '
            f'data-group="{group.number:d}">'
            f'<span class="line">{_outcome(group)}<span class="step">step {group.step:d}</span>{_dots(rewards)}'
            f'<span class="length">{min(lengths):d}&ndash;{max(lengths):d} tokens</span></span>'
            f'<span class="snippet">{text_html(_last_words(group.prompt), mark)}</span></button>'
        )
    return f'<div class="key dots">{_DOTS_LEGEND}</div><div class="rows">{"".join(rows)}</div>'


def group_html(
    group: Group,
    reward_names: Iterable[str],
    meets: Sequence[bool],
    mark: str = "",
    title: str = "",
    visits: Sequence[Visit] = (),
) -> str:
    """
    Returns a group with its prompt, solution and completions.

    Args:
        group (`Group`):
            The group.
        reward_names (`Iterable[str]`):
            Columns to show for each completion, `rewards/<name>`.
        meets (`Sequence[bool]`):
            Whether each completion matches the query; the others are pale.
        mark (`str`, *optional*):
            Text to highlight.
        title (`str`, *optional*):
            Name of the run, where two are shown.
        visits (`Sequence[Visit]`, *optional*):
            All groups of the prompt.
    """
    names = [name for name in reward_names if name.startswith("rewards/")]
    cards = "".join(
        _completion_html(completion, names, is_meant, mark, group.solution)
        for completion, is_meant in zip(group.completions, meets, strict=True)
    )
    gold = (
        f'<div class="part"><h4>Solution</h4><pre>{text_html(group.solution, mark)}</pre></div>'
        if group.solution
        else ""
    )
    left_out = f'<div class="empty">{group.num_left_out:,} more left out</div>' if group.num_left_out else ""
    heading = f'<h4 class="title">{text_html(title, limit=200)}</h4>' if title else ""
    has_advantage = any(math.isfinite(completion["advantage"]) for completion in group.completions)
    return (
        f'<div class="group">{heading}<div class="line">{_outcome(group)}<span class="step">step {group.step:d}</span></div>'
        f"{_visits_html(visits, group.number)}"
        f'<div class="part"><h4>Prompt</h4>{_prompt_html(group.prompt, mark)}</div>{gold}'
        f"{_ADVANTAGE_LEGEND if has_advantage else ''}{cards}{left_out}</div>"
    )


def pair_html(left: str, right: str) -> str:
    """Returns two groups side by side, or one below the other where there is no room."""
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'


def _visits_html(visits: Sequence[Visit], chosen: int) -> str:
    if len(visits) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" class="visit{" chosen" if visit.number == chosen else ""}" data-group="{visit.number:d}">'
        f"step {visit.step:d} <b>{visit.num_correct:d}/{visit.size:d}</b></button>"
        for visit in visits[:_MAX_VISITS]
    )
    left_out = f" {len(visits) - _MAX_VISITS} more" if len(visits) > _MAX_VISITS else ""
    return f'<div class="part"><h4>Correct, each time this prompt was sampled</h4><div class="line">{buttons}{left_out}</div></div>'


def _completion_html(
    completion: dict[str, Any], names: Sequence[str], is_meant: bool, mark: str, solution: str
) -> str:
    facts = [f"<b>#{completion['sample']:d}</b>"]
    advantage = completion["advantage"]
    if math.isfinite(advantage):
        sign = "up" if advantage > 0 else "down" if advantage < 0 else "zero"
        facts.append(f'<span class="advantage {sign}">A {advantage:+.2f}</span>')
    for name in names:
        label = text_html(name.removeprefix("rewards/"), limit=60)
        facts.append(f'<span class="fact">{label} <b>{_number(completion[name])}</b></span>')
    if len(names) > 1:
        facts.append(f'<span class="fact">sum <b>{_number(completion["reward"])}</b></span>')
    facts.append(f'<span class="fact">{completion["length"]:d} tokens</span>')
    # Only tools and environments make more than one turn: a model that writes JSON cannot look like them.
    has_turns = completion["num_turns"] > 1 or completion["num_tool_tokens"] > 0
    if has_turns:
        facts.append(f'<span class="fact">{completion["num_turns"]:d} turns</span>')
        facts.append(f'<span class="fact">{completion["num_tool_tokens"]:d} tokens of tools</span>')
    if completion["env_fault"]:
        facts.append(f'<span class="chip truncated">{text_html(completion["env_fault"], limit=60)}</span>')
    if completion["is_truncated"]:
        facts.append('<span class="chip truncated">truncated</span>')
    extra = "".join(
        f'<span class="fact">{text_html(name, limit=60)} <b>{text_html(value, mark, limit=300)}</b></span>'
        for name, value in _extra(completion["extra"])
        if (name, value) != ("solution", solution)  # shown above
    )
    turns = _conversation(completion["completion"]) if has_turns else None
    empty = '<pre><span class="gap">empty</span></pre>'
    text = _turns_html(turns, mark) if turns else f"<pre>{text_html(completion['completion'], mark)}</pre>"
    text = text if completion["completion"] else empty
    return (
        f'<div class="card{"" if is_meant else " pale"}"><div class="line">{"".join(facts)}</div>'
        f"{f'<div class=line>{extra}</div>' if extra else ''}{text}</div>"
    )


def _outcome(group: Group) -> str:
    # Both are known names: the index replaces all others.
    is_informative = group.verdict == "informative"
    fate = group.fate if is_informative or group.fate != "filtered" else ""
    verdict = f'<span class="chip {group.verdict}">{group.verdict.replace("_", " ")}</span>'
    return verdict + (f'<span class="chip fate {fate}">{fate}</span>' if fate else "")


def _dots(rewards: Sequence[float]) -> str:
    kinds = ["none" if math.isnan(reward) else "right" if reward >= CORRECT else "wrong" for reward in rewards[:32]]
    scored = [kind for kind in kinds if kind != "none"]
    title = f"{kinds.count('right')} of {len(scored)} correct"
    return f'<span class="dots" title="{title}">{"".join(f"<i class={kind}></i>" for kind in kinds)}</span>'


def _prompt_html(prompt: str, mark: str) -> str:
    messages = _conversation(prompt)
    return f"<pre>{text_html(prompt, mark)}</pre>" if messages is None else _turns_html(messages, mark)


def _turns_html(messages: Sequence[tuple[str, str]], mark: str) -> str:
    return "".join(
        f'<div class="turn{" tool" if role.startswith("tool") else ""}"><span class="role">{text_html(role, limit=60)}</span>'
        f"<pre>{text_html(content, mark)}</pre></div>"
        for role, content in messages[:100]
    )


def _last_words(prompt: str) -> str:
    """Returns the end of a prompt, which has the question; worked examples and instructions come before it."""
    messages = _conversation(prompt)
    text = " ".join((messages[-1][1] if messages else prompt)[-2000:].split())
    return text if len(text) <= _MAX_SNIPPET else f"… {text[-_MAX_SNIPPET:]}"


def _conversation(prompt: str) -> list[tuple[str, str]] | None:
    """Returns the roles and contents of a text that is a conversation, else `None`."""
    if not prompt.startswith("[{"):
        return None
    try:
        return [_message(message) for message in json.loads(prompt)] or None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _message(message: dict[str, Any]) -> tuple[str, str]:
    """
    Returns role and content of a message; calls of tools are lines of the content.

    >>> call = {"function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    >>> _message({"role": "assistant", "content": "Let me see.", "tool_calls": [call]})
    ('assistant', 'Let me see.\\nadd({"a": 2, "b": 3})')
    """
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    content = message.get("content") if calls else message["content"]
    lines = [_content(content)] if content or not calls else []
    lines += [f"{call['name']}({_content(call['arguments'])})" for call in calls]
    name = message.get("name") if message["role"] == "tool" else None
    return (f"tool {name}" if name else str(message["role"])), "\n".join(lines)


def _content(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _extra(text: str) -> list[tuple[str, str]]:
    """Returns names and values that reward functions logged for a completion."""
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        values = {}
    items = values.items() if isinstance(values, dict) else []
    return [(name, _content(value)) for name, value in list(items)[:20]]


def _number(value: float) -> str:
    return "&ndash;" if math.isnan(value) else f"{value:.3g}"


def _escaped(text: str) -> str:
    # Replaced after escaping, so that the markup of the codes is kept.
    return _INVISIBLE.sub(lambda found: f'<span class="code">U+{ord(found[0]):04X}</span>', html.escape(text))
