"""Every recipe that we ship parses, is consistent, and says what its comments say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from checkout import ROOT
from forked import run_program
from trl import ModelConfig, TrlParser

from trl_dapo import DAPOConfig
from trl_dapo.command_line.preflight.arithmetic import (
    KNOWN_SIZES,
    BatchPlan,
    memory_plan,
    sampling_seconds,
    training_seconds,
)
from trl_dapo.command_line.training_run import TrainingScriptArguments
from trl_dapo.data.problems import TEMPLATES


SCRIPT = ROOT / "examples" / "dapo_gsm8k.py"
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))


def parse(recipe, *overrides):
    parser = TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig))
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


# Vocabulary; tokens of a prompt; GPUs; then what docs/recipes.md assumes: mean length, tokens a second of all engines.
QWEN = {
    "gsm8k_qwen2.5_0.5b": (151_936, 256, 1, 200, 10_000),
    "dapo_math_qwen2.5_7b": (152_064, 300, 8, 1_500, 8 * 5_000),
    "dapo_qwen2.5_32b_paper": (152_064, 300, 64, 5_000, 16 * 4_000),
}


@pytest.mark.parametrize("column", range(3))
def test_estimates_of_the_documentation_follow_from_the_recipes(column):
    name = list(QWEN)[column]
    vocabulary, prompt, num_gpus, mean_length, speed = QWEN[name]
    _, args, model_args = parse(ROOT / "examples" / "recipes" / f"{name}.yaml")
    model = KNOWN_SIZES[model_args.model_name_or_path]
    size = model.num_parameters
    values = vars(args) | vars(model_args) | {"bf16": True}
    batch = BatchPlan.of(values | {"steps_per_generation": None}, num_gpus)
    plan = memory_plan(values, batch, model, size, num_gpus, 80e9, prompt)
    page = (ROOT / "docs" / "recipes.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    cells = {row[0]: row[column + 1] for row in rows if len(row) == 4}

    tokens = args.per_device_train_batch_size * (args.max_completion_length + prompt)
    assert f"{4 * tokens * vocabulary / 1e9:.1f}" in page  # logits in float32
    state = cells["weights, gradients, Adam: 16 bytes a parameter, over the GPUs"]
    assert state.endswith(f" {plan.state_bytes / 1e9:.1f}")
    kept = plan.activation_bytes / 1e9
    assert cells["activations of one micro-batch"] == f"{kept:.1f}"
    share, num_shards = args.vllm_gpu_memory_utilization * 80, args.vllm_tensor_parallel_size
    assert cells["vLLM's share, `vllm_gpu_memory_utilization` x 80"] == f"{share:.0f}"
    weights = cells["of it weights in bfloat16, over the tensor-parallel GPUs"]
    assert weights == f"{2 * size / num_shards / 1e9:.1f}"
    assert cells["KV cache of a token"] == f"{model.cache_bytes() / 1024:.0f} KiB"
    room = plan.cached_tokens
    held = cells["tokens that the rest of vLLM's share holds, at most"].split()[0].replace(",", "")
    assert int(held) == pytest.approx(room, rel=0.005)
    completions = cells["completions of full length at once, at most"].split()[0].replace(",", "")
    assert int(completions) == int(room / (args.max_completion_length + prompt))

    # With sleep mode vLLM's share is free while activations are held.
    peak = plan.peak_bytes / 1e9
    (line,) = (line for line in page.splitlines() if line.startswith(f"| [`{name}.yaml`]"))
    memory, time_taken = line.strip("| ").split(" | ")[5:]
    assert memory.startswith(f"{peak:.0f} GB")
    assert time_taken == cells["together"]
    if num_gpus == 1:  # on 24 GB a quarter of the rows at a time
        assert memory.endswith(f"; {peak - kept * 3 / 4 - share * (80 - 24) / 80:.0f} on one of 24")

    num_completions = batch.num_completions
    assert cells["completions x mean length"] == f"{num_completions:,} x {mean_length:,}"
    sampling = sampling_seconds(num_completions, mean_length, 0.5, speed)
    training = training_seconds(size, num_completions * mean_length, num_gpus)
    assert cells["sampling"] == f"{sampling:,.0f} s"
    assert cells["training"] == f"{training:,.0f} s"
    num_updates = 4 if num_gpus == 1 else 16
    num_rollout_steps = args.max_steps // num_updates
    assert cells["rollout steps"] == f"{args.max_steps:,} / {num_updates} = {num_rollout_steps}"
    hours = (sampling + training) * num_rollout_steps / 3600
    assert float(cells["together"].split()[0]) == pytest.approx(hours, rel=0.05)


def test_steps_of_1e_6_are_lost_on_bfloat16_weights_and_recipes_keep_float32_ones():
    frac_still = {}
    for dtype in (torch.bfloat16, torch.float32):
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter((0.02 * torch.randn(10_000, generator=generator)).to(dtype))
        before = weight.detach().clone()
        optimizer = torch.optim.AdamW([weight], lr=1e-6, weight_decay=0.0)
        for _ in range(400):
            weight.grad = (1e-3 * (torch.randn(10_000, generator=generator) + 0.5)).to(dtype)
            optimizer.step()
        frac_still[dtype] = (weight == before).float().mean().item()
    assert frac_still[torch.bfloat16] == pytest.approx(0.98, abs=0.005)
    assert frac_still[torch.float32] == 0.0
    for recipe in RECIPES:
        _, args, model_args = parse(recipe)
        # The other two keep a float32 copy: FSDP2 in mixed precision, and ZeRO-3.
        is_sharded = recipe.stem.startswith("dapo_")
        assert is_sharded or args.learning_rate > 1e-4 or model_args.dtype == "float32"


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero3"])
def test_accelerate_configuration_loads(name):
    config = load_config_from_file(str(ROOT / "examples" / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == 8


def run_script(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CI": "1", "HF_HUB_OFFLINE": "0"} | environment,
    )


def test_script_without_hub_says_in_one_line_what_to_do():
    finished = run_script("--use_cpu", "true", "--use_vllm", "false", HF_ENDPOINT="http://127.0.0.1:9")
    assert finished.returncode == 1
    last_line = finished.stderr.strip().splitlines()[-1]
    assert last_line.startswith("HubUnreachableError: --dataset_name is 'openai/gsm8k'")
    assert "--config quickstart" in last_line
    assert "Traceback" not in finished.stderr


def test_script_with_a_wrong_path_says_so_in_one_line(tmp_path):
    code, printed = run_program(SCRIPT, ["--use_cpu", "true", "--dataset_name", "./nowhere"], tmp_path / "output.txt")
    assert code == 1
    assert printed.strip().splitlines()[-1].startswith("FileNotFoundError: --dataset_name is './nowhere'")


def test_script_with_a_misspelt_option_says_what_it_may_mean(tmp_path):
    code, printed = run_program(SCRIPT, ["--config", "quickstart", "--learning_ratee", "1"], tmp_path / "output.txt")
    assert code == 1
    assert printed.strip() == "ValueError: There is no option --learning_ratee (did you mean learning_rate?)."


def test_documentation_names_every_recipe():
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert all(Path(recipe).name in page for recipe in RECIPES)
