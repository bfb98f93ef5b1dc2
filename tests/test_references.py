"""The pages of the documentation that are made from the code are what the code says."""

import dataclasses
import inspect
import re
import sys

import pytest
from checkout import ROOT
from trl import GRPOConfig
from trl.trainer import grpo_trainer

import trl_dapo
from trl_dapo import DAPOConfig
from trl_dapo.loss.diagnostics import _MAXIMA, _MEANS
from trl_dapo.report.metric_reference import METRICS, is_explained


sys.path.insert(0, str(ROOT / "docs" / "site"))
import references


@pytest.mark.parametrize("name", references.PAGES)
def test_page_is_what_the_code_says(name):
    said = "run `python docs/site/references.py --write`"
    assert (ROOT / "docs" / name).read_text() == references.PAGES[name](), said


def test_every_field_has_its_type_default_and_text():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for field in dataclasses.fields(DAPOConfig):
        if field.name in {other.name for other in dataclasses.fields(GRPOConfig)}:
            continue
        entry = re.search(rf"^### `{field.name}`\n\n(.+)\n\n(.+)$", page, re.MULTILINE)
        assert entry is not None, field.name
        kind, text = entry.groups()
        default = f'"{field.default}"' if isinstance(field.default, str) else str(field.default)
        assert kind.endswith(f"defaults to `{default}`") or field.default is None, field.name
        assert len(text) > 30


def test_every_metric_that_trl_logs_is_explained():
    source = inspect.getsource(grpo_trainer)
    names = re.findall(r'_metrics\[mode\]\[\s*f?"([^"]+)"', source)
    assert len(names) > 30
    names = [re.sub(r"{\w+}", "any_reward", name) for name in names]
    assert [name for name in names if not is_explained(name)] == []


def test_every_metric_of_the_loss_is_explained():
    # The others are seen in the tests that train: tests/conftest.py looks at all that they log.
    assert [name for name in (*_MEANS, *_MAXIMA) if not is_explained(f"dapo/{name}")] == []


def test_no_metric_is_explained_that_nothing_logs():
    source = "".join(path.read_text() for path in (ROOT / "trl_dapo").rglob("*.py") if "reference" not in path.name)
    fates = re.findall(r'= "(\w+)"', (ROOT / "trl_dapo" / "sampling" / "judge.py").read_text())
    for group in METRICS.values():
        for name in group:
            if not name.startswith("dapo/"):
                continue
            _, _, last = name.rpartition("/")
            assert last == "<fate>" or f'{last}"' in source or last in fates, name


@pytest.mark.parametrize(
    ("name", "is_known"),
    [
        ("dapo/acceptance_rate", True),
        ("rewards/think_format_reward/std", True),
        ("eval_rewards/accuracy_reward/mean", True),
        ("eval_aime_2024_pass@16", True),
        ("dapo/seconds/all_wrong", True),
        ("dapo/accept_rate", False),
        ("eval_luck", False),
        ("rewards/a/b/mean", False),
    ],
)
def test_names_of_runs_are_found_by_pattern(name, is_known):
    assert is_explained(name) == is_known


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "api.md").read_text()
    for name in set(trl_dapo.__all__) - {"__version__"}:
        assert f"### `{name}`\n" in page
    # Nothing of doc-builder's links and of LaTeX is left in the text.
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    assert not re.search(r"\[`|\\\(|\$\$", text)


def test_docstring_becomes_markdown():
    doc = """
    Adds.

    Args:
        a (`int`), b (`list[int]`, *optional*):
            Two
            numbers.

    Returns:
        `int`: their sum, see [`~trl.GRPOTrainer`].

    Raises:
        `ValueError`: never. `TypeError`: at times.

    >>> add(1, 2)
    3
    """
    assert list(references.markdown(inspect.cleandoc(doc))) == [
        "Adds.\n",
        "**Args**\n",
        "- `a` (`int`): Two numbers.\n- `b` (`list[int]`, *optional*): Two numbers.\n",
        "**Returns**\n\n`int`: their sum, see `GRPOTrainer`.\n",
        "**Raises**\n\n- `ValueError`: never.\n- `TypeError`: at times.\n",
        "```pycon\n>>> add(1, 2)\n3\n```\n",
    ]
