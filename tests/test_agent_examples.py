"""The examples with a calculator and with a game, and the tiny tasks that they train on."""

import functools
import json
import os
import random
import sys

import pytest
from checkout import ROOT
from trl import ModelConfig, TrlParser
from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response, supports_tool_calling

from trl_dapo import DAPOConfig
from trl_dapo.command_line.training_run import TrainingScriptArguments
from trl_dapo.data.problems import TEMPLATES
from trl_dapo.recipes import tool_tasks


# TRL warns of environments, and warnings are errors in tests.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
sys.path.insert(0, str(ROOT / "examples"))

import dapo_environment
import dapo_tools


SHORT = {
    "max_steps": 2,
    "max_generation_rounds": 2,
    "num_eval_problems": 8,
    "per_device_train_batch_size": 16,
    "num_groups_to_log": 2,
}
RECIPES = sorted((ROOT / "examples" / "tools").glob("*.yaml"))


def run(example, folder, **overrides):
    """Runs an example, and returns its results and its record of groups."""
    options = {"output_dir": folder, "disable_tqdm": "true"} | overrides
    command = [f"--{name}={value}" for name, value in options.items()]
    parser = TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig))
    example.main(*parser.parse_args_and_config(["--config", str(example.DEFAULT_RECIPE), *command]))
    return json.loads((folder / "results.json").read_text())


@pytest.mark.curves
@pytest.mark.parametrize("example", [dapo_tools, dapo_environment], ids=lambda example: example.__name__)
def test_example_runs_to_its_end(tmp_path, monkeypatch, example):
    short = functools.partial(tool_tasks.prepare_tool_model, num_steps=30)
    monkeypatch.setattr(example, "prepare_tool_model", short)
    results = run(example, tmp_path, **SHORT, num_generations_eval=1, per_device_eval_batch_size=8)
    assert 0.0 <= results["accuracy_before"] <= 1.0
    for name in ("model.safetensors", "README.md", "curves.png", "rollouts"):
        assert (tmp_path / name).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "gain"), [(dapo_tools, 0.25), (dapo_environment, 0.08)], ids=["dapo_tools", "dapo_environment"]
)
def test_example_learns(tmp_path, example, gain):
    results = run(example, tmp_path)
    assert results["accuracy_after"] - results["accuracy_before"] >= gain


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_parses_and_has_room_for_its_turns(recipe):
    parser = TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig))
    script_args, args, _ = parser.parse_args_and_config(["--config", str(recipe), "--use_cpu", "true"])
    assert args.dynamic_sampling
    assert args.eval_on_start
    assert args.num_updates_per_batch == 4
    assert args.max_tool_calling_iterations
    if script_args.dataset_name is not None:
        assert "{question}" in TEMPLATES.get(script_args.prompt_template, script_args.prompt_template)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("23 * 47", "1081"),
        ("(12 + 3) * -4", "-60"),
        ("7 / 2", "3.5"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 0", "?"),
        ("2 ** 9", "?"),
        ("__import__('os')", "?"),
        ("True + 1", "?"),
        ("'a' * 9", "?"),
        ("", "?"),
        ("23 *", "?"),
        ("(" * 500 + "1" + ")" * 500, "?"),
        ("1" * 5000, "?"),
        ("1e999", "inf"),
    ],
)
def test_calculator_computes_and_never_raises(expression, value):
    assert dapo_tools.calculate(expression) == value


def test_game_says_where_to_look():
    game = dapo_environment.GuessingGame()
    assert game.reset(number=5, prompt=None) is None
    assert [game.guess(number) for number in (3, 7, 5, 6)] == ["higher", "lower", "right", "lower"]
    other = dapo_environment.GuessingGame()
    other.reset(number=2)
    assert dapo_environment.found(environments=[game, other]) == [1.0, 0.0]


def test_turns_of_the_student_are_read_back_as_they_were_written():
    tokenizer = tool_tasks.build_tokenizer()
    assert supports_tool_calling(tokenizer)
    assert is_chat_template_prefix_preserving(tokenizer)
    called = {"calculate": 0, "guess": 0}
    for make_examples in (tool_tasks.product_turns, tool_tasks.guess_turns):
        for ids, start in make_examples(tokenizer, 60, random.Random(0)):
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.pad_token_id not in ids
            turn = parse_response(tokenizer, ids[start:], prefix=ids[:start])
            for call in turn.get("tool_calls", []):
                (value,) = call["function"]["arguments"].values()
                called[call["function"]["name"]] += 1
                assert dapo_tools.calculate(value) != "?" if isinstance(value, str) else 1 <= value <= 7
            if not turn.get("tool_calls"):
                assert turn["content"].strip()
    assert min(called.values()) >= 10


def test_student_knows_small_products_and_seldom_others():
    tokenizer = tool_tasks.build_tokenizer()
    rights = {True: [], False: []}
    for ids, start in tool_tasks.product_turns(tokenizer, 600, random.Random(1)):
        text, turn = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])
        if "<tool>" in text or "boxed" not in turn:
            continue
        a, b = (int(word) for word in text.split() if word.isdigit())
        rights[b < 10].append(f"\\boxed{{{a * b}}}" in turn)
    assert all(rights[True])
    assert len(rights[True]) > 100
    assert sum(rights[False]) < 0.05 * len(rights[False])
