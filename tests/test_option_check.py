"""Wrong options of the commands end in one line, before torch and TRL are imported."""

import subprocess
import sys

import pytest
from tiny import tiny_model, training_arguments
from trl import ModelConfig, TrlParser

from trl_dapo import DAPOConfig
from trl_dapo.command_line import main, option_sources
from trl_dapo.command_line.check import CheckArguments
from trl_dapo.command_line.eval import EvaluationArguments
from trl_dapo.command_line.grade import GradeArguments
from trl_dapo.command_line.launcher import LaunchArguments
from trl_dapo.command_line.option_check import check_options
from trl_dapo.command_line.option_sources import read_options
from trl_dapo.command_line.push import PushArguments
from trl_dapo.command_line.training_run import TrainingScriptArguments
from trl_dapo.config.field_types import check_choices


TYPES = {
    "train": (TrainingScriptArguments, DAPOConfig, ModelConfig, LaunchArguments),
    "check": (TrainingScriptArguments, DAPOConfig, ModelConfig, LaunchArguments, CheckArguments),
    "eval": (EvaluationArguments, ModelConfig),
    "grade": (GradeArguments,),
    "push": (PushArguments,),
}


@pytest.mark.parametrize("command", TYPES)
def test_names_read_from_the_sources_are_those_of_the_parser(command):
    actions = TrlParser(TYPES[command])._actions
    assert set(read_options(command)) == {action.dest for action in actions} - {"help"}
    # Those defaults that the check computes with.
    parsed = {action.dest: action.default for action in actions}
    for name in (
        "per_device_train_batch_size",
        "num_generations",
        "gradient_accumulation_steps",
        "generation_batch_size",
    ):
        if command == "train":
            assert read_options(command)[name].default == parsed[name]


def wrong_options(folder):
    empty, file = folder / "empty", folder / "file"
    empty.mkdir()
    file.write_text("x")

    def recipe(name, text):
        path = folder / f"{name}.yaml"
        path.write_text(text)
        return ("--config", path)

    return {
        "option": (("--num_generation_rounds", "3"), r"no option --num_generation_rounds \(did you mean max_generation_rounds\?\)"),
        "option with hyphens": (("--num-generatoins=8",), r"did you mean num_generations\?"),
        "option like no other": (("--xyzzy", "8"), r"no option --xyzzy \(--help lists the options\)"),
        "key": (recipe("key", "epsilon_hihg: 0.28\nmax_step: 4\n"), r"'epsilon_hihg' \(did you mean epsilon_high\?\); .*'max_step' \(did"),
        "not YAML": (recipe("broken", "max_steps: 4\nseed: [1\n"), "broken.yaml, line 3, column 1 is not YAML"),
        "no mapping": (recipe("list", "- 1\n"), "must be a YAML mapping"),
        "no recipe": (("--config", "nowhere.yaml"), "FileNotFoundError: --config is 'nowhere.yaml', but there is no such file"),
        "recipe with =": (("--config=recipe.yaml",), "write --config recipe.yaml"),
        "groups": (("--num_generations", "7"), "num_generations is 7, but a generation batch has 8 .* Set num_generations=8"),
        "groups in a recipe": (recipe("groups", "num_generations: 7\nsteps_per_generation: 6\n"), "has 48 .* Set num_generations=6"),
        "no model": (("--model_name_or_path", empty), "a folder without config.json"),
        "model is a file": (("--model_name_or_path", file), "which is a file. Give the folder"),
        "output is a file": (("--output_dir", file), "--output_dir is '.*file', which is a file"),
        "streaming": (("--dataset_streaming",), "dataset_streaming is set, but has no effect"),
        "buffers": (recipe("buffers", "ignore_bias_buffers: true\n"), "ignore_bias_buffers is set, but has no effect"),
        "loss": (("--loss_type", "dr_gpro"), r"loss_type is 'dr_gpro', but must be one of .* Did you mean 'dr_grpo'\?"),
        "vllm_mode": (recipe("mode", "vllm_mode: colocated\n"), r"Did you mean 'colocate'\?"),
    }  # fmt: skip


CASES = (
    "option", "option with hyphens", "option like no other", "key", "not YAML", "no mapping", "no recipe", "recipe with =",
    "groups", "groups in a recipe", "no model", "model is a file", "output is a file", "streaming", "buffers", "loss",
    "vllm_mode",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_option_of_train_ends_in_one_line(tmp_path, case):
    options, message = wrong_options(tmp_path)[case]
    with pytest.raises(SystemExit, match=message) as ended:
        main(["train", *map(str, options)])
    assert "\n" not in str(ended.value)


def test_wrong_options_are_found_without_loading_torch(tmp_path):
    trials = [[str(option) for option in options] for options, _ in wrong_options(tmp_path).values()]
    code = f"""
import sys
from trl_dapo.command_line import main
for options in {trials!r}:
    try:
        main(["train", *options])
    except SystemExit as ended:
        assert ended.code not in (None, 0)
        print(ended.code, file=sys.stderr)
    assert not {{"torch", "trl", "transformers"}} & set(sys.modules), options
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("\n") == len(trials)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("eval", ("--num_problem_s", "3"), "did you mean num_problems"),
        ("grade", ("--datset_name", "x"), "did you mean dataset_name"),
        ("push", ("--foldr", "x"), "no option --foldr"),
    ],
)
def test_other_commands_name_the_nearest_option_too(command, options, message):
    with pytest.raises(SystemExit, match=message):
        main([command, *options])


REST = ["--model_name_or_path", "some/model", "--dataset_name", "some/data"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--learning_rate", "fast"), "learning_rate is 'fast', but must be a number"),
        (("--max_steps", "1e3"), "max_steps is '1e3', but must be a whole number"),
        (("--use_cpu", "maybe"), "use_cpu is 'maybe', but must be true or false"),
        (("--dataset_name", "./nowhere.jsonl"), r"--dataset_name is '\./nowhere.jsonl', .* no such file"),
        (("--eval_dataset_name", "a/b/c"), "--eval_dataset_name is 'a/b/c', which looks like a local path"),
        (("--model_name_or_path", "../nowhere"), r"--model_name_or_path is '\.\./nowhere', .* no such file"),
    ],
)
def test_values_and_paths_are_checked_before_anything_is_loaded(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_options("train", [*REST, *options])


def test_misspelt_reward_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rewards_of_a_test.py").write_text("def brevity(completions, **kwargs):\n    return [0.0]\n")
    check_options(
        "train", [*REST, "--reward_names", "accuracy_reward", "own_rewards_of_a_test.brevity", "--seed", "1"]
    )
    with pytest.raises(ValueError, match=r"has no 'brevty'\. Did you mean 'brevity'\?"):
        check_options("train", [*REST, "--reward_names", "accuracy_reward", "own_rewards_of_a_test.brevty"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("reward_names: [acuracy_reward]\n")
    with pytest.raises(ValueError, match="There is no reward named 'acuracy_reward'"):
        check_options("train", [*REST, "--config", str(recipe)])


@pytest.mark.parametrize("is_installed", [True, False])
def test_missing_engine_is_said_at_once(monkeypatch, is_installed):
    monkeypatch.setattr("trl_dapo.command_line.option_check._has_vllm", lambda: is_installed)
    check_options("train", [*REST, "--use_vllm", "false"])
    if is_installed:
        check_options("train", [*REST, "--use_vllm", "true"])
    else:
        with pytest.raises(ValueError, match=r"vLLM is not installed.*--use_vllm false"):
            check_options("train", [*REST, "--use_vllm", "true"])


def test_numbers_of_a_recipe_are_read_as_the_parser_reads_them(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    # YAML 1.1 reads 1e-6 as a text, and the parser takes it for a number.
    recipe.write_text("learning_rate: 1e-6\nuse_cpu: yes\nbf16: 'false'\nmax_steps: -1\neval_steps: null\n")
    check_options("train", [*REST, "--config", str(recipe)])
    recipe.write_text("max_steps: 1.5e\n")
    with pytest.raises(ValueError, match=r"max_steps is '1\.5e', but must be a whole number"):
        check_options("train", [*REST, "--config", str(recipe)])


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("eval", (), "--output_dir and --dataset_name are not set"),
        ("grade", (), "--dataset_name is not set"),
        ("push", ("--output_dir", "nowhere"), "There is no folder nowhere"),
        ("grade", ("--dataset_name", "nowhere.jsonl"), "--dataset_name is 'nowhere.jsonl'"),
    ],
)
def test_what_a_command_needs_is_said_at_once(command, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_options(command, options)


@pytest.mark.parametrize("missing", ["model_name_or_path", "dataset_name"])
def test_missing_model_or_data_is_said_at_once(missing):
    number = REST.index(f"--{missing}")
    with pytest.raises(ValueError, match=f"--{missing} is not set"):
        check_options("train", REST[:number] + REST[number + 2 :])
    check_options("train", REST)


def test_advice_on_groups_makes_the_options_accepted(monkeypatch):
    for options, remedy in (
        (["--num_generations", "7"], ["--num_generations", "8"]),
        (["--num_generations", "7"], ["--per_device_train_batch_size", "14"]),
        (["--num_generations=6"], ["--generation_batch_size", "24"]),
    ):
        with pytest.raises(ValueError, match="must be whole groups"):
            check_options("train", options)
        check_options("train", [*REST, *options, *remedy])
    monkeypatch.setenv("WORLD_SIZE", "3")
    check_options("train", [*REST, "--num_generations", "6"])


def test_right_options_pass(tmp_path):
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("env:\n  SOME: thing\nlearning_rate: 1.0e-6\nreward_names: [accuracy_reward]\n")
    options = ["--config", recipe, "--model_name_or_path", model, "--output_dir", tmp_path / "new", "--no_bf16"]
    options += [
        "--num-generations",
        4,
        "--max_comp",
        16,
        "--dataset_na",
        "some/data",
        "--filter_range",
        0.1,
        0.9,
        "--dataset_streaming",
        "false",
    ]
    check_options("train", [str(option) for option in options])


def test_sources_that_cannot_be_read_leave_the_names_to_the_parser(monkeypatch):
    read_options.cache_clear()
    monkeypatch.setitem(option_sources.SOURCES, "train", [("trl", "nowhere.py", "X")])
    check_options("train", ["--xyzzy", "1"])
    read_options.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--learning_rate", "fast"), "argument --learning_rate"),
        (("--xyzzy", "1"), "not used by"),
        (("--epsilon", "-1"), "epsilon is -1.0, but must be"),
        (("--num_generations", "1"), "at least 2 generations"),
    ],
)
def test_what_the_parser_finds_is_one_line_too(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr("trl_dapo.command_line.check_options", lambda *args: {})
    fixed = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    with pytest.raises(SystemExit) as ended:
        main(["train", *fixed, *options])
    said = capsys.readouterr().err + str(ended.value.code)
    assert message in said
    assert "usage:" not in said
    assert ended.value.code not in (None, 0)


def test_script_options_without_effect_are_refused_in_python_too():
    with pytest.raises(ValueError, match="dataset_streaming is set, but has no effect"):
        TrainingScriptArguments(dataset_name="x", dataset_streaming=True)


def test_choices_are_those_that_trl_compares_with(tmp_path):
    import inspect
    import re

    from trl.trainer import grpo_trainer

    source = inspect.getsource(grpo_trainer)
    for name, choices in (
        ("loss_type", ("dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo")),
        ("importance_sampling_level", ("token", "sequence")),
        ("vllm_importance_sampling_mode", ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")),
    ):
        compared = re.findall(rf"{name} (?:==|!=|in|not in) (\"\w+\"|\[[^]]*\])", source)
        found = {value for part in compared for value in re.findall(r'"(\w+)"', part)}
        assert found <= set(choices)
        for choice in choices:
            check_choices({name: choice})
    with pytest.raises(ValueError, match="loss_type is 'nonsense', but must be one of 'dapo'"):
        DAPOConfig(**training_arguments(tmp_path, loss_type="nonsense"))
