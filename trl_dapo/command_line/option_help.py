"""`trl-dapo COMMAND --help`: the options in groups, DAPO's own first."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from .option_groups import DAPO_GROUPS, DATA_GROUP, DATA_OPTIONS, LAUNCH_GROUP, OFTEN_SET, REST
from .option_sources import Option, read_options


_LEFT = 36  # columns for the name and the type of an option


def help_text(command: str, summary: str, is_all: bool, width: int | None = None) -> str | None:
    """
    Returns the help of a command.

    Args:
        command (`str`):
            The command.
        summary (`str`):
            What it does.
        is_all (`bool`):
            Whether to list the options of TRL and transformers too that few runs set.
        width (`int`, *optional*):
            Columns of the text. `None`: those of the terminal.

    Returns:
        `str`, *optional*: `None` where the sources of the options cannot be read.
    """
    options = read_options(command)
    if not options:
        return None
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 120)
    groups = option_groups(command)
    shown, rest = groups
    lines = [
        f"usage: trl-dapo {command} [--config {'RECIPE' if command in ('train', 'check') else 'FILE'}] [options]",
        "",
        summary,
    ]
    if command in ("train", "check"):
        lines += textwrap.wrap(
            "RECIPE is a YAML file with options, or a name of `trl-dapo recipes`. Options after it replace its values.",
            width,
        )
    if command == "check":
        lines += ["", *textwrap.wrap("Takes every option of `trl-dapo train`, which are not shown here, and:", width)]
    for title, group in (shown | rest if is_all else shown).items():
        lines += ["", f"{title}:", *(line for option in group for line in _lines(option, width))]
    if rest and not is_all:
        num_left = sum(map(len, rest.values()))
        lines += ["", f"{num_left} more options of TRL and transformers: trl-dapo {command} --help-all"]
    return "\n".join(lines) + "\n"


def option_groups(command: str) -> tuple[dict[str, list[Option]], dict[str, list[Option]]]:
    """
    Returns the options of a command by the titles of their groups: those of `--help`, and those that `--help-all` adds.

    Args:
        command (`str`):
            The command.
    """
    options = dict(read_options(command))
    shown: dict[str, list[Option]] = {}
    if command == "check":
        return {"Options": [option for option in options.values() if option.owner == "CheckArguments"]}, {}
    if command == "train":
        for title, names in DAPO_GROUPS.items():
            shown[title] = [options.pop(name) for name in names]
        others = [
            option for option in options.values() if option.owner == "DAPOConfig" and not _is_in(option, OFTEN_SET)
        ]
        if others:
            shown["Other options of DAPO"] = others
        data = [options.pop(name) for name in DATA_OPTIONS]
        own = [
            option for option in options.values() if option.owner in ("TrainingScriptArguments", "TinyTaskArguments")
        ]
        shown[DATA_GROUP] = data + sorted(own, key=lambda option: option.owner == "TinyTaskArguments")
        for title, names in OFTEN_SET.items():
            shown[title] = [options.pop(name) for name in names]
        shown[LAUNCH_GROUP] = [option for option in options.values() if option.owner == "LaunchArguments"]
    else:
        shown["Options"] = [option for option in options.values() if option.owner not in REST]
        if "model_name_or_path" in options:
            shown["Model"] = [options.pop(name) for name in ("model_name_or_path", "dtype")]
    taken = {option.name for group in shown.values() for option in group}
    rest: dict[str, list[Option]] = {}
    for option in options.values():
        title = REST.get(option.owner, "")
        if option.name not in taken and title:
            rest.setdefault(title, []).append(option)
    order = [title for title in dict.fromkeys(REST.values()) if title in rest]
    return shown, {title: rest[title] for title in order}


def _is_in(option: Option, groups: Mapping[str, Sequence[str]]) -> bool:
    return any(option.name in names for names in groups.values())


def command_list(commands: Mapping[str, str]) -> str:
    """
    Returns the help of the program.

    Args:
        commands (`Mapping[str, str]`):
            What each command does.
    """
    lines = ["usage: trl-dapo COMMAND [options]", "", *(f"  {name:9}{text}" for name, text in commands.items())]
    lines += ["", "trl-dapo COMMAND --help lists the options, trl-dapo --version the versions."]
    return "\n".join(lines) + "\n"


def _lines(option: Option, width: int) -> Iterator[str]:
    left = f"  --{option.name} {_type_word(option)}"
    text = textwrap.wrap(f"{option.help or 'See TRL.'} {_default_words(option)}", max(width - _LEFT, 30))
    if len(left) >= _LEFT:
        yield left
    else:
        text[0] = f"{left:{_LEFT}}{text[0]}"
    for line in text:
        yield line if line.startswith("  --") else " " * _LEFT + line


def _type_word(option: Option) -> str:
    """Returns what to write after an option: `INT`, `TEXT ...`, `partial|error`."""
    if option.choices:
        return "|".join(map(str, option.choices))
    words = {"int": "INT", "float": "NUMBER", "bool": "BOOL", "dict": "JSON"}
    first: Sequence[str] = [part.strip() for part in option.annotation.split("|") if part.strip() != "None"]
    if any(part.startswith("list") for part in first):
        inner = next(part for part in first if part.startswith("list")).removeprefix("list[").rstrip("]")
        return f"{words.get(inner, 'TEXT')} ..."
    return next((word for name, word in words.items() if any(part.startswith(name) for part in first)), "TEXT")


def _default_words(option: Option) -> str:
    if option.is_required:
        return "(required)"
    if option.default is None:
        return ""
    value = option.default
    return f"[{' '.join(map(str, value)) if isinstance(value, list) else value}]"
