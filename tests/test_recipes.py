"""Every recipe that we ship parses, is consistent, and says what its comments say."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from trl import ModelConfig, TrlParser

from trl_dapo import DAPOConfig
from trl_dapo.data import TEMPLATES


sys.path.insert(0, str(ROOT / "examples"))
SCRIPT = ROOT / "examples" / "dapo_gsm8k.py"
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))


def parse(recipe, *overrides):
    from dapo_gsm8k import DAPOScriptArguments

    parser = TrlParser((DAPOScriptArguments, DAPOConfig, ModelConfig))
    return parser.parse_args_and_config(["--config", str(recipe), "--use_cpu", "true", *overrides])


def test_all_recipes_are_here():
    assert [recipe.stem for recipe in RECIPES] == [
        "dapo_math_qwen2.5_7b",
        "dapo_qwen2.5_32b_paper",
        "gsm8k_qwen2.5_0.5b",
        "quickstart",
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_parses_and_evaluates_before_and_after(recipe):
    script_args, args, model_args = parse(recipe)
    assert args.dynamic_sampling
    assert args.eval_on_start
    assert script_args.tiny_task or (model_args.model_name_or_path and script_args.dataset_name)
    template = script_args.prompt_template
    assert script_args.tiny_task or "{question}" in TEMPLATES.get(template, template)
    # Several optimizer steps on each generation batch: with one the ratio is 1 and nothing can be clipped.
    assert args.steps_per_generation > args.gradient_accumulation_steps


def test_paper_recipe_has_the_numbers_of_the_paper():
    _, args, _ = parse(ROOT / "examples" / "recipes" / "dapo_qwen2.5_32b_paper.yaml")
    num_gpus = 64
    samples_per_step = args.per_device_train_batch_size * num_gpus * args.gradient_accumulation_steps
    assert (args.num_groups_per_batch, args.num_generations) == (512, 16)
    assert samples_per_step == 512
    assert args.generation_batch_size // samples_per_step == 16
    assert args.warmup_steps == 20 * 16
    assert args.max_completion_length == 16_384 + 4_096
    assert args.soft_punish_cache == 4_096
    assert (args.epsilon, args.epsilon_high) == (0.2, 0.28)
    assert args.learning_rate == 1e-6
    assert args.max_grad_norm == 1.0


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero3"])
def test_accelerate_configuration_loads(name):
    config = load_config_from_file(str(ROOT / "examples" / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == 8


def run_script(*arguments, **environment):
    start = time.monotonic()
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CI": "1", "HF_HUB_OFFLINE": "0"} | environment,
    )
    return finished, time.monotonic() - start


def test_script_without_hub_says_in_one_line_what_to_do():
    finished, seconds = run_script("--use_cpu", "true", HF_ENDPOINT="http://127.0.0.1:9")
    assert finished.returncode == 1
    last_line = finished.stderr.strip().splitlines()[-1]
    assert last_line.startswith("HubUnreachableError: --dataset_name is 'openai/gsm8k'")
    assert "make quickstart" in last_line
    assert "Traceback" not in finished.stderr
    assert seconds < 120  # nearly all of it imports; the libraries' own retries would add 24 and 52 seconds


def test_script_with_a_wrong_path_says_so_in_one_line():
    finished, _ = run_script("--use_cpu", "true", "--dataset_name", "./nowhere")
    assert finished.returncode == 1
    assert finished.stderr.strip().splitlines()[-1].startswith("FileNotFoundError: --dataset_name is './nowhere'")


def test_readme_names_every_recipe():
    readme = (ROOT / "README.md").read_text()
    assert all(Path(recipe).name in readme for recipe in RECIPES)
