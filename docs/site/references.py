"""
Makes the pages of docs/ that come from the code: configuration.md, metrics.md, api.md and upstream.md.

`python docs/site/references.py --write` writes them. A test holds that they are what the code says.
"""

import dataclasses
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from trl import GRPOConfig  # noqa: E402

from trl_dapo import DAPOConfig  # noqa: E402
from trl_dapo.command_line.option_groups import DAPO_GROUPS  # noqa: E402
from trl_dapo.command_line.option_help import option_groups  # noqa: E402
from trl_dapo.command_line.option_sources import Option  # noqa: E402
from trl_dapo.report.metric_reference import METRICS  # noqa: E402
from trl_dapo.trl_seams import OVERRIDDEN, OVERRIDDEN_IN_VLLM_GENERATION  # noqa: E402


MADE = "<!-- Made by docs/site/references.py: run it with --write. -->\n\n"
# Of upstream.md: what follows is kept.
BY_HAND = "\n<!-- From here on written by hand. -->\n"
# The public names, by module.
API = {
    "trl_dapo": ("DAPOTrainer", "DAPOConfig"),
    "trl_dapo.rewards": ("accuracy_reward", "AccuracyReward", "SoftOverlongPunishment", "find_rewards", "get_reward"),
    "trl_dapo.data": ("as_problems", "load_rows", "check_problems", "DataSource"),
    "trl_dapo.grading.equivalence": ("is_equivalent", "grade", "Grade", "GradedAnswer"),
    "trl_dapo.evaluation": (),
    "trl_dapo.report.curves": ("plot_curves",),
    "trl_dapo.publishing.push": ("push_run", "PushOptions"),
    "trl_dapo.errors": (
        "RefillExhaustedError",
        "RewardTimeoutError",
        "RankFailedError",
        "NonFiniteGradientError",
        "StaleEngineError",
        "TrainingStoppedError",
        "HubPushError",
        "HubUnreachableError",
    ),
}
_SECTIONS = ("Args", "Parameters", "Attributes", "Returns", "Raises", "Example", "Examples")


def configuration_page() -> str:
    """Returns the reference of the options: the fields of `DAPOConfig`, then those of the command line."""
    told = entries(section_of(DAPOConfig, "Parameters"))
    fields = {item.name: item for item in dataclasses.fields(DAPOConfig)}
    of_trl = {item.name: item for item in dataclasses.fields(GRPOConfig)}
    lines = [
        "# Configuration\n",
        "`DAPOConfig` is TRL's [`GRPOConfig`](https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig) with the fields of this "
        "page. In Python they are its arguments; on the command line and in a recipe they have the same names "
        "(`--surplus carry`, `surplus: carry`). [recipes.md](recipes.md) has whole configurations, and "
        "[differences.md](differences.md) explains what the fields do together.\n",
    ]
    for title, names in DAPO_GROUPS.items():
        lines.append(f"## {title}\n")
        for name in names:
            kind, text = told[name]
            lines.append(f"### `{name}`\n\n{kind}\n\n{text}\n")
    changed = {
        name: (fields[name].default, other.default)
        for name, other in of_trl.items()
        if fields[name].default != other.default and name not in told
    }
    assert not changed, f"explain the defaults of {sorted(changed)} in the docstring of DAPOConfig"
    shown, rest = option_groups("train")
    lines.append("## On the command line and in recipes\n")
    lines.append(
        "Options of `trl-dapo train` that are no fields of `DAPOConfig`, and the fields of TRL that most runs set.\n"
    )
    for title, group in shown.items():
        if title not in DAPO_GROUPS:
            lines += [f"### {title}\n", option_table(group)]
    num_left = sum(map(len, rest.values()))
    lines.append(
        f"`trl-dapo train --help-all` lists {num_left} more: all fields of TRL's `GRPOConfig` and `ModelConfig` and of transformers' "
        "`TrainingArguments`.\n"
    )
    return MADE + "\n".join(lines)


def option_table(options: list[Option]) -> str:
    """Returns a table of options."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for option in options:
        value = option.default
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        default = "" if shown is None else f"`{shown}`"
        rows.append(f"| `{option.name}` | {default} | {cell(option.help)} |")
    return "\n".join(rows) + "\n"


def metrics_page() -> str:
    """Returns the reference of the metrics."""
    lines = [
        "# Metrics\n",
        "Every metric that a run may log. [curves.md](curves.md) says what to change when one looks wrong, and what each is "
        "computed over. A metric without a value is absent: one that can only be 0 in a configuration, and one over nothing.\n",
        "Look first at `dapo/sampled_accuracy` and `eval_avg@k`.\n",
    ]
    for title, metrics in METRICS.items():
        lines += [f"## {title}\n", "| metric | meaning | logged |", "|---|---|---|"]
        lines += [
            f"| `{name}` | {cell(metric.meaning)} | {cell(metric.when or 'with dynamic sampling')} |"
            for name, metric in metrics.items()
        ]
        lines.append("")
    lines.append(
        "A reward function adds metrics of its own with `log_metric(name, value)`. `trainer.state.log_history` has all of them by "
        "step, and `log_history.jsonl` in the output folder.\n"
    )
    return MADE + "\n".join(lines)


def api_page() -> str:
    """Returns the reference of the public classes and functions."""
    lines = [
        "# API\n",
        "The classes and functions that programs use. Everything else may change. "
        "[CONTRIBUTING.md](../CONTRIBUTING.md) says how the package is built.\n",
    ]
    for module_name, names in API.items():
        module = importlib.import_module(module_name)
        lines.append(f"## {module_name}\n")
        for name in names or module.__all__:
            lines += list(describe(module_name, name, getattr(module, name)))
    return MADE + "\n".join(lines)


def describe(module_name: str, name: str, what: Any) -> Iterator[str]:
    """Yields the Markdown of a class or function."""
    yield f"### `{name}`\n"
    if not callable(what):
        yield f"A constant, `{module_name}.{name}`.\n"
        return
    yield f"```py\nfrom {module_name} import {name}\n\n{name}{signature(what)}\n```\n"
    if what is DAPOConfig:
        yield "Its fields are in [configuration.md](configuration.md).\n"
        yield from markdown(inspect.getdoc(what) or "", without=("Parameters",))
        return
    yield from markdown(inspect.getdoc(what) or "")


def signature(what: Any) -> str:
    """Returns the arguments of a function, one a line where they are many. A configuration has too many to be shown."""
    if isinstance(what, type) and issubclass(what, Exception):
        return "(message)"
    if what is DAPOConfig:
        return "(output_dir, **fields)"
    if isinstance(what, type) and issubclass(what, importlib.import_module("enum").Enum):
        return ""
    text = str(inspect.signature(what))
    text = re.sub(r"(?:[a-z_]+\.)+([A-Z]\w*)", r"\1", text.replace("typing.", ""))
    text = re.sub(r"<function (\w+) at 0x\w+>", r"\1", text)
    if len(text) < 100:
        return text
    arguments, _, result = text.rpartition(")")
    parts = re.split(r", (?=\*{0,2}\w+(?::|=|,|$))", arguments[1:])
    return "(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def markdown(doc: str, without: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields the Markdown of a docstring in the format of Hugging Face."""
    pieces = re.split(rf"^({'|'.join(_SECTIONS)}):\n", doc, flags=re.MULTILINE)
    yield linked(as_prose(pieces[0])) + "\n"
    for title, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if title in without:
            continue
        body = inspect.cleandoc("\n" + text)
        rest = ""
        if title in ("Args", "Parameters", "Attributes"):
            # What follows a blank line and is not indented belongs to the text again.
            yield f"**{title}**\n"
            yield "".join(f"- `{name}` ({kind}): {told}\n" for name, (kind, told) in entries(text).items())
        elif title.startswith("Example"):
            yield f"```pycon\n{body}\n```\n" if body.startswith(">>>") else as_prose(body) + "\n"
        else:
            head, _, rest = body.partition("\n\n>>>")
            told = linked(" ".join(head.split()))
            if title == "Raises":
                told = "\n".join(f"- {part.strip()}" for part in re.split(r" (?=`\w+Error`(?:, `[\w.]+`)*:)", told))
            yield f"**{title}**\n\n{told}\n"
            if rest:
                yield f"```pycon\n>>>{rest}\n```\n"


def as_prose(text: str) -> str:
    """Returns a text of a docstring, its examples as code blocks."""
    parts = []
    for part in text.strip().split("\n\n"):
        parts.append(f"```pycon\n{part}\n```" if part.lstrip().startswith(">>>") else part)
    # Programs of the documentation are run by tests, with what they name; these are excerpts.
    return "\n\n".join(parts).replace("```python\n", "```py\n")


def section_of(what: Any, title: str) -> str:
    """Returns a section of a docstring."""
    doc = inspect.getdoc(what) or ""
    found = re.search(rf"^{title}:\n(.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{what} has no section {title}"
    return found[1]


def entries(text: str) -> dict[str, tuple[str, str]]:
    """Returns the entries of a section: type and text by name. `a (`int`), b (`int`):` are two of one text."""
    found = {}
    body = inspect.cleandoc("\n" + text)
    for match in re.finditer(r"^(\w.*?):\n((?:^[ ]+.*\n?|^\n)+)", body + "\n", re.MULTILINE):
        told = linked(" ".join(match[2].split()))
        for name, kind in re.findall(r"(\w+)(?:, \w+)* \(((?:[^()]|\([^()]*\))*)\)", match[1]):
            found[name] = (linked(kind), told)
    return found


def linked(text: str) -> str:
    """Returns a text in which a reference to a class, as doc-builder writes it, is its name."""
    return re.sub(r"\[`~?(?:[\w.]*\.)?(\w+)`\]", r"`\1`", without_math(text))


def without_math(text: str) -> str:
    r"""
    Returns a text whose formulas need no script of another site: displayed ones are `math` blocks, which GitHub renders.

    >>> without_math(r"at \( L_{\max} - L_{\text{cache}} \)")
    'at `L_max - L_cache`'
    """
    text = re.sub(r"^\$\$\n(.*?)\n\$\$$", r"```math\n\1\n```", text, flags=re.MULTILINE | re.DOTALL)

    def plain(match: re.Match[str]) -> str:
        return "`" + re.sub(r"\\text|\\(?=max|min)|[{}]", "", match[1]) + "`"

    return re.sub(r"\\{1,2}\( ?(.*?) ?\\{1,2}\)", plain, text)


def cell(text: str) -> str:
    """Returns a text that may stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def tests_of_seams() -> dict[str, str]:
    """Returns, by seam, the first test that fails with its name when it moves in TRL."""
    source = (ROOT / "tests" / "test_trl_seams.py").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for test in source.split("\ndef test_")[1:]:
        for seam in re.findall(r'relies_on\(\s*"([^"]+)"', test.split("\n\n\n")[0]):
            found.setdefault(seam, f"test_{test[: test.index('(')]}")
    # Of this alone no other thing is relied on than that it trains, and how it is called.
    return found | {"train": "test_override_takes_every_argument_that_the_method_of_trl_takes"}


def upstream_page() -> str:
    """Returns what of TRL the package builds on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (trl,) = (name for name in project["dependencies"] if name.startswith("trl"))
    tested = tests_of_seams()
    lines = [
        "# Upstream\n",
        "This package is a subclass of TRL's trainer, not a copy of it: generation, scoring, loss, logging, PEFT, vLLM and the Hub "
        "are TRL's code. A fix in TRL is a fix here.\n",
        f"It needs `{trl}`, because it overrides private methods. `tests/test_trl_seams.py` runs TRL's own trainer, looks at "
        "what calls what, and names the seam that has moved, with each supported release ([versions.md](versions.md)); "
        "`trl_dapo/trl_seams.py` is the only file to read then.\n",
        "TRL has four of DAPO's parts as options. Dynamic sampling is what it lacks "
        "([huggingface/trl#3708](https://github.com/huggingface/trl/issues/3708)). What of this package could go into TRL: the "
        "denominator of each optimizer step, the rule of what ends a completion, and the hooks below, which would make most of the "
        "overrides unnecessary.\n",
        "## Methods of `GRPOTrainer` that are overridden\n",
        "| method | what for | test that fails when it moves |",
        "|---|---|---|",
        *(f"| `{name}` | {cell(reason)} | `{tested[name]}` |" for name, reason in OVERRIDDEN.items()),
        "\n## Methods of TRL's `VLLMGeneration` that are overridden\n",
        "| method | what for | test that fails when it moves |",
        "|---|---|---|",
        *(
            f"| `{name}` | {cell(reason)} | `{tested[f'VLLMGeneration.{name}']}` |"
            for name, reason in OVERRIDDEN_IN_VLLM_GENERATION.items()
        ),
        "\nEach override calls `super()` and adds to what it returns. [development.md](development.md) says how the range is widened, "
        "and [troubleshooting.md](troubleshooting.md) lists faults of TRL that a run may meet.\n",
    ]
    written = (ROOT / "docs" / "upstream.md").read_text().split(BY_HAND)[1]
    return MADE + "\n".join(lines) + BY_HAND + written


PAGES = {
    "configuration.md": configuration_page,
    "metrics.md": metrics_page,
    "api.md": api_page,
    "upstream.md": upstream_page,
}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make())
