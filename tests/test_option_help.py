"""`--help`: DAPO's own options first, true to what the parser reads, and without loading anything."""

import contextlib
import dataclasses
import importlib.metadata
import re
import subprocess
import sys

import pytest
from test_option_check import TYPES
from trl import GRPOConfig, TrlParser

import trl_dapo
from trl_dapo import DAPOConfig
from trl_dapo.command_line import COMMANDS, main
from trl_dapo.command_line.option_groups import DAPO_GROUPS
from trl_dapo.command_line.option_help import option_groups
from trl_dapo.command_line.option_sources import SOURCES, read_options


def shown_options(text):
    return re.findall(r"^  --(\w+)", text, re.MULTILINE)


def test_every_option_of_ours_is_in_one_group():
    ours = {
        item.name
        for item in dataclasses.fields(DAPOConfig)
        if item.name not in {other.name for other in dataclasses.fields(GRPOConfig)}
    }
    grouped = [name for names in DAPO_GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    # Two are TRL's, with another default here.
    assert set(grouped) == ours | {"epsilon_high", "disable_dropout"}


def test_help_begins_with_dapos_own_and_help_all_adds_every_option_once(capsys):
    main(["train", "--help"])
    short = shown_options(capsys.readouterr().out)
    main(["train", "--help-all"])
    whole = shown_options(capsys.readouterr().out)
    grouped = [name for names in DAPO_GROUPS.values() for name in names]
    assert short[: len(grouped)] == whole[: len(short)][: len(grouped)] == grouped
    assert {"dataset_name", "reward_names", "model_name_or_path", "learning_rate"} < set(short)
    assert len(short) < 90
    assert len(whole) == len(set(whole))
    without_effect = {"dataset_streaming", "ignore_bias_buffers"}
    assert set(whole) == set(read_options("train")) - without_effect


@pytest.mark.parametrize("command", SOURCES)
def test_help_says_what_the_parser_says(command):
    actions = {
        action.dest: action
        for action in TrlParser(TYPES[command])._actions
        if not action.option_strings[0].startswith("--no_")
    }
    options = read_options(command)
    # transformers writes this help with an f-string.
    computed = {"fsdp", "debug", "optim", "report_to", "hub_token"}
    for name, option in options.items():
        action = actions[name]
        if option.help or name not in computed:
            assert option.help == " ".join((action.help or "").split()), name
        assert option.is_required == action.required, name
        if option.default not in (None, ""):
            assert option.default == action.default, name
    shown = [option for part in option_groups(command) for group in part.values() for option in group]
    assert {option.name for option in shown} <= set(options)


def test_every_command_prints_help_that_fits_the_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in COMMANDS:
        with contextlib.suppress(SystemExit):  # argparse's own help ends so
            main([command, "--help"])
        printed = capsys.readouterr().out
        assert printed.startswith(f"usage: trl-dapo {command}")
        if command in SOURCES:
            assert max(map(len, printed.splitlines())) <= 80


def test_version_names_what_a_bug_report_needs(capsys):
    main(["--version"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"trl-dapo {trl_dapo.__version__} (Python {sys.version.split()[0]}, ")
    for name in ("trl", "transformers", "torch"):
        assert f"{name} {importlib.metadata.version(name)}" in line


def test_help_version_and_recipes_load_nothing_that_takes_time():
    code = f"""
import sys
from trl_dapo.command_line import main
for arguments in [["--help"], ["--version"], ["recipes"], *([name, "--help"] for name in {list(SOURCES)})]:
    main(arguments)
assert not {{"torch", "trl", "transformers", "datasets", "numpy", "huggingface_hub"}} & set(sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert all(command in finished.stdout for command in COMMANDS)
