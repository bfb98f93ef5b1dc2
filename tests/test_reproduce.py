"""The model card's block that trains the model again: the options in it are those of the run, and the block runs."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from trl import ModelConfig

from trl_dapo import DAPOConfig
from trl_dapo.command_line.launcher import LaunchArguments
from trl_dapo.command_line.option_check import check_options
from trl_dapo.command_line.option_parser import parse_options
from trl_dapo.command_line.train import given_options
from trl_dapo.command_line.training_run import TrainingScriptArguments
from trl_dapo.data.source import DataSource
from trl_dapo.publishing.card import render_card
from trl_dapo.publishing.facts import RunFacts, published_recipe
from trl_dapo.recipes import find, names


TYPES = (TrainingScriptArguments, DAPOConfig, ModelConfig, LaunchArguments)


def made_facts(recipe, **overrides):
    source = {"name": None, "is_on_hub": False, "config": None, "split": None, "revision": None}
    facts = dict.fromkeys(field.name for field in dataclasses.fields(RunFacts))
    facts |= {"model_name": "m", "num_parameters": 1, "num_trained_parameters": 1, "num_eval_rows": {}, "settings": {}}
    facts |= {"rewards": {}, "method": [], "departures": [], "log_history": [], "tags": [], "trackers": {}}
    facts |= {"sampling": {"seed": 0}, "hardware": {"num_processes": 1, "device": "", "precision": "", "sampler": ""}}
    facts |= {"versions": {"trl-dapo": "0.1.0"}, "step": 1, "num_steps": 1, "num_shared_prompts": {}, "recipe": recipe}
    facts |= {"base_model_is_on_hub": False}
    return RunFacts(**facts | {"train_data": DataSource(**source), "eval_data": DataSource(**source)} | overrides)


def block_of(text):
    """The commands under the heading."""
    return re.search(r"^## Reproduce\n\n```bash\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)[1]


def run_block(block, folder, programs=None):
    """Runs the commands, with a pip that does nothing and a trl-dapo that prints its options, or with real programs."""
    stubs = folder / "bin"
    stubs.mkdir()
    for name, body in {"pip": "true", "trl-dapo": 'printf "%s\\n" "$@"', **(programs or {})}.items():
        (stubs / name).write_text(f"#!/bin/sh\n{body}\n")
        (stubs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{stubs}:{os.environ['PATH']}"}
    finished = subprocess.run(
        ["bash", "-euc", block], cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout.split("\n")[:-1]


def parsed(arguments):
    return parse_options("train", TYPES, arguments)


@pytest.mark.parametrize("name", names())
def test_block_gives_the_options_of_every_recipe(name, tmp_path):
    on_the_command_line = [
        "--use_cpu",
        "true",
        "--bf16",
        "false",
        "--use_vllm",
        "false",
        "--learning_rate",
        "3e-7",
        "--reward_names",
    ]
    arguments = ["--config", str(find(name)), *on_the_command_line, "accuracy_reward", "signed_accuracy_reward"]
    before = parsed(arguments)
    recipe = published_recipe(given_options(check_options("train", arguments), before))
    told = run_block(block_of(str(render_card(made_facts(recipe)))), tmp_path)
    assert told == ["train", "--config", "recipe.yaml", "--output_dir", "reproduced"]
    after = parsed(["--config", str(tmp_path / "recipe.yaml"), *told[3:]])
    places = {"output_dir", "logging_dir", "run_name", "report_to", "project", "hub_model_id", "push_to_hub"}
    for one, two in zip(before, after, strict=True):
        for field in dataclasses.fields(one):
            if field.name not in places:
                assert getattr(one, field.name) == getattr(two, field.name), field.name
    assert after[0].reward_names == ["accuracy_reward", "signed_accuracy_reward"]


@pytest.mark.parametrize(
    "text", ["END", "a\nEND\nrm -rf x", "```", "\n```\n# b", "{{ 7 * 7 }}", "$(touch x) `touch x`", "'\"\\"]
)
def test_no_text_leaves_the_file_or_the_block(text, tmp_path):
    block = block_of(str(render_card(made_facts({"prompt_template": text, "learning_rate": 1e-6}))))
    run_block(block, tmp_path)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {"prompt_template": text, "learning_rate": 1e-6}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "recipe.yaml"]


def test_secrets_places_and_folders_of_files_are_left_out(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    given = {"dataset_name": str(rows), "hub_token": "hf_x", "hub_model_id": "me/m", "output_dir": "/home/me/out"}
    given |= {"model_init_kwargs": {"token": "hf_x", "revision": "main"}, "model_name_or_path": "Qwen/Qwen2.5-0.5B"}
    given |= {"reward_names": ["my_rewards.brevity"], "vllm_server_base_url": "http://me:x@host"}
    recipe = published_recipe(given)
    assert recipe == {
        "dataset_name": "rows.jsonl",
        "model_init_kwargs": {"token": None, "revision": "main"},
        "model_name_or_path": "Qwen/Qwen2.5-0.5B",
        "reward_names": ["my_rewards.brevity"],
    }
    text = str(render_card(made_facts(recipe, base_model_is_on_hub=True, base_model="Qwen/Qwen2.5-0.5B")))
    assert "It needs `rows.jsonl`, `my_rewards.brevity` in the folder where it is started." in text


def test_several_processes_are_in_the_command():
    hardware = {"num_processes": 4, "device": "", "precision": "", "sampler": ""}
    for recipe, end in (({"seed": 1}, " --num_processes 4"), ({"seed": 1, "num_processes": 4}, "")):
        block = block_of(str(render_card(made_facts(recipe, hardware=hardware))))
        assert block.endswith(f"trl-dapo train --config recipe.yaml --output_dir reproduced{end}")


def test_card_of_another_program_has_no_such_block():
    assert "## Reproduce" not in str(render_card(made_facts(None)))


@pytest.mark.slow
def test_quickstart_is_reproduced_to_the_bit_by_its_card(tmp_path):
    program = [sys.executable, "-m", "trl_dapo", "train", "--config", "quickstart", "--max_steps", "2"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([*program, "--num_eval_problems", "16"], cwd=tmp_path, env=environment, check=True, timeout=1800)
    block = block_of((tmp_path / "out" / "quickstart" / "README.md").read_text())
    shutil.rmtree(tmp_path / "out" / "quickstart" / "tiny-model", ignore_errors=True)
    run_block(block, tmp_path, {"trl-dapo": f'exec {sys.executable} -m trl_dapo "$@"'})

    def logged(folder):
        history = json.loads((folder / "run_facts.json").read_text())["log_history"]
        return [
            {name: value for name, value in entry.items() if not re.search("time|second|runtime", name)}
            for entry in history
        ]

    assert logged(tmp_path / "reproduced") == logged(tmp_path / "out" / "quickstart")
