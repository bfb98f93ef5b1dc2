"""What `trl-dapo check` says: a table of verdicts, and a text for an issue."""

import contextlib
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from trl_dapo.config.secrets import without_secrets


_SECRET_VARIABLE = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)($|_)", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
# Below this a text of a secret variable is no secret: "1", "true".
_SHORTEST_SECRET = 6


class Verdict(str, Enum):
    """What is found of a point."""

    OK = "ok"
    SLOW = "slow"
    WILL_NOT_FIT = "will not fit"
    BROKEN = "broken"


@dataclass(frozen=True)
class Line:
    """
    A line of the table.

    Attributes:
        point (`str`):
            What was looked at.
        verdict (`Verdict`):
            What was found.
        text (`str`):
            The figures, or what to do.
    """

    point: str
    verdict: Verdict
    text: str

    @property
    def is_fault(self) -> bool:
        """Whether the recipe will not train as it is."""
        return self.verdict in (Verdict.WILL_NOT_FIT, Verdict.BROKEN)


def table(lines: Sequence[Line], width: int = 120) -> str:
    """
    Returns the table.

    Args:
        lines (`Sequence[Line]`):
            Its lines.
        width (`int`, *optional*, defaults to 120):
            Columns of the text.

    >>> print(table([Line("devices", Verdict.OK, "2 CPU cores")]))
    devices          ok            2 CPU cores
    """
    rows = []
    for line in lines:
        left = f"{line.point:16} {line.verdict.value:13} "
        parts = [part for text in line.text.splitlines() or [""] for part in _wrapped(text, width - len(left))]
        rows += [
            (left if number == 0 else " " * len(left)) + part.rstrip() for number, part in enumerate(parts or [""])
        ]
    return "\n".join(row.rstrip() for row in rows)


def _wrapped(text: str, width: int) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()) + 2 if text.startswith(" ") else 0)
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def exit_status(lines: Sequence[Line]) -> int:
    """Returns 1 if a line is a fault, else 0."""
    return int(any(line.is_fault for line in lines))


def find_secrets(environment: Mapping[str, str], options: Mapping[str, Any]) -> list[str]:
    """
    Returns the texts that must not be printed: of environment variables and options that are named like secrets.

    Args:
        environment (`Mapping[str, str]`), options (`Mapping[str, Any]`):
            Values by their names; an option may be a mapping, or the JSON of one.

    >>> find_secrets({"WANDB_API_KEY": "abc-123"}, {"model_init_kwargs": '{"token": "xyz-789"}', "seed": 1})
    ['abc-123', 'xyz-789']
    """
    found = [value for name, value in environment.items() if _SECRET_VARIABLE.search(name)]
    for name, value in options.items():
        if isinstance(value, str) and value.startswith("{"):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        if isinstance(value, Mapping):
            found += find_secrets({}, value)
        elif isinstance(value, str) and without_secrets(value, str(name)) is None:
            found.append(value)
    return [value for value in found if len(value) >= _SHORTEST_SECRET]


def public_text(text: str, secrets: Sequence[str], home: str | None = None, folders: Sequence[Any] = ()) -> str:
    """
    Returns a text without tokens, credentials of addresses, and the paths of this machine.

    Args:
        text (`str`):
            The text.
        secrets (`Sequence[str]`):
            What [`find_secrets`] found.
        home (`str`, *optional*):
            The home folder. `None`: that of this user.
        folders (`Sequence`, *optional*):
            Other folders: of each only the last part is left.

    >>> public_text("hf_abcdefghij in /home/me/x", [], home="/home/me")
    '*** in ~/x'
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _HUB_TOKEN.sub("***", str(without_secrets(text)))
    for folder in sorted(map(str, folders), key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder, Path(folder).name)
    home = str(Path.home()) if home is None else home
    text = text.replace(home, "~") if len(home) > 1 else text
    # What is left of absolute paths: their last part.
    return re.sub(r"(?<![\w.~:/-])/(?:[\w.@+-]+/)+(?=[\w.@+-]+)", "", text)


def fault(stage: str, kind: str, message: str, code: int | None = None) -> Line:
    """
    Returns the line of a short run that ended with an error.

    Args:
        stage (`str`):
            What it was doing: `loading`, `sampling`, `step 2`, ...
        kind (`str`), message (`str`):
            Class and text of the error. "": the process ended without one.
        code (`int`, *optional*):
            Status with which the process ended; a signal is negative.
    """
    if "OutOfMemory" in kind or "out of memory" in message.lower():
        return Line(
            stage,
            Verdict.WILL_NOT_FIT,
            f"the GPU's memory ran out ({' '.join(message.split())[:200]}). Lower per_device_train_batch_size or "
            "vllm_gpu_memory_utilization, or set vllm_enable_sleep_mode or gradient_checkpointing.",
        )
    if not kind and code in (-9, 137):
        return Line(
            stage,
            Verdict.WILL_NOT_FIT,
            "the process was killed by signal 9, most often because the host's memory ran out.",
        )
    if not kind:
        return Line(
            stage, Verdict.BROKEN, f"the process ended with status {code} and no error. Its output is above the table."
        )
    if kind == "NonFiniteGradientError":
        message += " Lower learning_rate, or compute in bfloat16 (bf16) and not in float16."
    return Line(stage, Verdict.BROKEN, f"{kind}: {message}")


def batch_lines(logs: Sequence[Mapping[str, Any]], uses_filter: bool = True) -> list[Line]:
    """
    Returns what the log lines of a short run say of its batches: loss, acceptance, truncation.

    Args:
        logs (`Sequence[Mapping]`):
            The log line of each optimizer step.
        uses_filter (`bool`, *optional*, defaults to `True`):
            Whether groups are filtered.
    """
    steps = [entry for entry in logs if "loss" in entry]
    if not steps:
        return []
    lines = []
    losses = [entry["loss"] for entry in steps]
    norms = [entry.get("grad_norm") for entry in steps]
    bad = [
        number
        for number, entry in enumerate(steps, 1)
        if entry.get("dapo/frac_non_finite_steps") or not all(map(_is_finite, (entry["loss"], entry.get("grad_norm"))))
    ]
    shown = f"loss {', '.join(map(_short, losses))}; gradient norm {', '.join(map(_short, norms))}"
    if bad:
        lines.append(
            Line(
                "optimizer steps",
                Verdict.BROKEN,
                f"step {', '.join(map(str, bad))} is not finite ({shown}). Lower learning_rate, look at the reward functions, or "
                "compute in bfloat16 (bf16) and not in float16.",
            )
        )
    else:
        lines.append(Line("optimizer steps", Verdict.OK, f"{len(steps)} steps; {shown}"))
    first = steps[0]
    lines += [_acceptance(first)] if "dapo/acceptance_rate" in first else []
    lines += [_truncation(first)] if "completions/clipped_ratio" in first else []
    return lines


def _acceptance(first: Mapping[str, Any]) -> Line:
    rate, correct = float(first["dapo/acceptance_rate"]), float(first.get("dapo/frac_all_correct", 0))
    wrong, none = float(first.get("dapo/frac_all_wrong", 0)), float(first.get("dapo/frac_unscorable", 0))
    drawn = int(first.get("dapo/prompts_drawn", 0))
    text = f"{rate:.0%} of {drawn or 'the'} groups of the first batch are informative; all correct {correct:.0%}, all wrong {wrong:.0%}"
    text += f", without a reward {none:.0%}" if none else ""
    if rate >= 0.2:
        return Line("acceptance", Verdict.OK, text)
    if none > max(correct, wrong):
        advice = "The reward functions give None: `trl-dapo grade` shows which golds cannot be read"
    elif correct > wrong:
        advice = "The problems are too easy for this model: take harder ones, or a smaller model"
    else:
        advice = "The problems are too hard, or answers are not found: read completions (num_groups_to_log), and compare prompt_template with what the reward reads"
    return Line(
        "acceptance", Verdict.SLOW if rate or drawn < 8 else Verdict.BROKEN, f"{text}. {advice}; docs/curves.md."
    )


def _truncation(first: Mapping[str, Any]) -> Line:
    share = float(first["completions/clipped_ratio"])
    text = f"{share:.0%} of the completions reach the limit, mean length {float(first.get('completions/mean_length', 0)):,.0f} tokens"
    if share <= 0.3:
        return Line("truncation", Verdict.OK, text)
    return Line(
        "truncation",
        Verdict.SLOW,
        f"{text}. Raise max_completion_length, or ask for shorter answers; they count as wrong.",
    )


def _is_finite(value: Any) -> bool:
    return value is None or math.isfinite(float(value))


def _short(value: Any) -> str:
    return "-" if value is None else f"{float(value):.4g}"
