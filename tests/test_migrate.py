"""`trl-dapo migrate`: recipes from the configurations of other frameworks."""

import dataclasses
import re
import subprocess
import sys

import pytest
import yaml
from checkout import ROOT
from trl import ModelConfig, TrlParser

from trl_dapo import DAPOConfig
from trl_dapo.command_line import main
from trl_dapo.command_line.migrate import batch_fields, migrate
from trl_dapo.command_line.option_tables import FRAMEWORKS
from trl_dapo.command_line.training_run import TrainingScriptArguments


CONFIGS = sorted((ROOT / "tests" / "data" / "migrate").glob("*.yaml"))


def framework_of(path):
    return next(name for name in FRAMEWORKS if path.stem.startswith(name))


def leaves(value, prefix=""):
    if not isinstance(value, dict):
        return [prefix]
    return [name for key, part in value.items() for name in leaves(part, f"{prefix}.{key}" if prefix else key)]


def moved(name):
    path = ROOT / "tests" / "data" / "migrate" / f"{name}.yaml"
    return migrate(yaml.safe_load(path.read_text()), framework_of(path))


def test_every_framework_has_configurations_and_there_are_fourteen():
    assert len(CONFIGS) >= 14
    assert {framework_of(path) for path in CONFIGS} == set(FRAMEWORKS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipe_parses_and_every_option_is_translated_or_listed(path, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    main(["migrate", "--from", framework_of(path), str(path), "--output", str(recipe)])
    types = (TrainingScriptArguments, DAPOConfig, ModelConfig)
    overrides = ["--use_cpu", "true", "--bf16", "false"]
    _, args, _ = TrlParser(types).parse_args_and_config(["--config", str(recipe), *overrides])
    for name, value in yaml.safe_load(recipe.read_text()).items():
        if hasattr(args, name) and name not in (
            "bf16",
            "report_to",
            "lr_scheduler_type",
            "filter_range",
            "filter_reward",
        ):
            assert getattr(args, name) == value, name
    config = yaml.safe_load(path.read_text())
    result = migrate(config, framework_of(path))
    told = [line.partition(":")[0] for line in result.translated + result.untranslated]
    assert sorted(told) == sorted(leaves(config))
    assert all(line in recipe.read_text() for line in result.untranslated)
    assert all(line in capsys.readouterr().out for line in [f"{len(result.untranslated)} not translated"])


def test_public_recipe_of_verl_is_the_paper_here():
    recipe = moved("verl-dapo-32b").recipe
    # 512 x 16 = 8192 completions, updates of 32 x 16 = 512 on 64 GPUs: 8 each, in 4 micro-batches of 2; 16 updates.
    batch = [
        recipe[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
    ]
    assert batch == [2, 4, 64]
    assert recipe["warmup_steps"] == 10 * 16
    assert recipe["save_steps"] == 5 * 16
    assert (recipe["epsilon"], recipe["epsilon_high"], recipe["delta"]) == (0.2, 0.28, 10.0)
    assert (recipe["dynamic_sampling"], recipe["filter_reward"]) == (True, "accuracy_reward")
    assert (recipe["max_generation_rounds"], recipe["on_exhausted"]) == (10, "error")
    assert (recipe["max_completion_length"], recipe["soft_punish_cache"]) == (20480, 4096)
    assert (recipe["learning_rate"], recipe["beta"], recipe["loss_type"]) == (1e-6, 0.0, "dapo")


def test_what_is_off_there_is_off_here():
    recipe = moved("verl-grpo").recipe
    assert (recipe["dynamic_sampling"], recipe["soft_punish_cache"], recipe["loss_type"]) == (False, 0, "grpo")
    recipe = moved("ms-swift-lora").recipe
    # Their defaults: no dynamic sampling, symmetric clipping; no punishment among the rewards.
    assert (recipe["dynamic_sampling"], recipe["epsilon_high"], recipe["soft_punish_cache"]) == (False, 0.2, 0)


def test_the_other_public_recipes_keep_their_meaning():
    swift = moved("ms-swift-dapo").recipe
    assert (swift["max_generation_rounds"], swift["soft_punish_cache"]) == (3 + 1, 819)
    assert swift["reward_names"] == ["accuracy_reward"]
    openrlhf = moved("OpenRLHF-dapo").recipe
    # 128 x 8 = 1024 completions, updates of 128 on 8 GPUs: 16 each, in 2 micro-batches of 8; 8 updates.
    batch = [
        openrlhf[name]
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
    ]
    assert batch == [8, 2, 16]
    assert openrlhf["save_steps"] == 20 * 8
    assert openrlhf["filter_range"] == [0.0, 1.0]
    nemo = moved("NeMo-RL-dapo").recipe
    # 8192 completions, updates of 512 on 128 GPUs: 4 each, one at a time; 16 updates, 100 rollout steps.
    assert (nemo["gradient_accumulation_steps"], nemo["steps_per_generation"]) == (4, 64)
    assert nemo["max_steps"] == 100 * 16


def test_roll_counts_micro_batches_of_a_data_parallel_rank():
    recipe = moved("ROLL-dapo").recipe
    # 64 x 8 = 512 completions. 8 GPUs hold 4 copies of the model: updates of 2 x 16 x 4 = 128. On 8 processes 16 each, in 8
    # micro-batches of 2; 4 updates.
    batch = [
        recipe[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
    ]
    assert batch == [2, 8, 32]
    assert (recipe["max_steps"], recipe["save_steps"], recipe["warmup_steps"]) == (200 * 4, 50 * 4, 20)
    assert (recipe["epsilon"], recipe["epsilon_high"], recipe["loss_type"]) == (0.2, 0.28, "dapo")
    assert (recipe["dynamic_sampling"], recipe["mask_truncated_completions"]) == (True, True)
    assert moved("ROLL-grpo").num_processes == 2


def test_skyrl_counts_prompts():
    recipe = moved("SkyRL-dapo").recipe
    # 512 x 16 = 8192 completions, updates of 32 x 16 = 512 on 16 GPUs: 32 each, in 16 micro-batches of 2; 16 updates.
    batch = [
        recipe[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
    ]
    assert batch == [2, 16, 256]
    assert (recipe["save_steps"], recipe["warmup_steps"]) == (10 * 16, 160)
    assert (recipe["dynamic_sampling"], recipe["max_generation_rounds"], recipe["delta"]) == (True, 30, 10.0)
    assert (recipe["beta"], recipe["soft_punish_cache"], recipe["max_completion_length"]) == (0.0, 4096, 20480)
    # The dual clip is off with the regular loss, and its KL term is on by default.
    grpo = moved("SkyRL-grpo").recipe
    assert (grpo["delta"], grpo["beta"], grpo["loss_type"], grpo["lora_r"]) == (None, 0.001, "grpo", 32)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("verl-sum", "actor_rollout_ref.actor.loss_agg_mode: seq-mean-token-sum"),
        ("verl-sum", "algorithm.filter_groups.metric: seq_reward"),
        ("ms-swift-plugin", "reward_funcs: ['accuracy', 'format']"),
        ("ms-swift-plugin", "some_new_flag: 1 (not in the table of ms-swift)"),
        ("NeMo-RL-grpo", "grpo.use_leave_one_out_baseline: True"),
        ("ROLL-grpo", "actor_infer.strategy_args.strategy_name: sglang"),
        ("ROLL-grpo", "norm_mean_type: batch"),
        ("ROLL-grpo", "dual_clip_loss: True"),
        ("ROLL-grpo", "rewards.code_sandbox.query_filter_config.type: no_filter"),
        ("SkyRL-grpo", "trainer.algorithm.advantage_estimator: rloo"),
        ("SkyRL-grpo", "trainer.algorithm.dynamic_sampling.type: replace"),
        ("SkyRL-grpo", "trainer.algorithm.dynamic_sampling.max_sample_batches: -1"),
    ],
)
def test_what_has_no_counterpart_is_listed_with_the_reason(name, line):
    assert any(entry.startswith(line) and entry.endswith(")") for entry in moved(name).untranslated)


def test_an_interval_that_means_never_is_listed():
    result = migrate({"trainer.save_freq": -1}, "verl")
    assert result.untranslated == ["trainer.save_freq: -1 (no number of steps: write save_steps or its strategy)"]
    assert "save_steps" not in result.recipe


def test_batch_sizes_cover_every_completion_once():
    for prompts, generations, updates, processes, micro in ((32, 8, 4, 1, 16), (512, 16, 16, 64, 1), (48, 4, 2, 3, 5)):
        samples = prompts * generations // updates
        fields = batch_fields(prompts, generations, samples, processes, micro)
        per_update = fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"] * processes
        assert per_update == samples
        assert fields["steps_per_generation"] == updates * fields["gradient_accumulation_steps"]
        assert fields["per_device_train_batch_size"] <= micro


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((10, 4, 16, 1, 1), "are 40, but must be a multiple of the 16"), ((8, 4, 16, 3, 1), "processes")],
)
def test_batch_sizes_that_do_not_divide_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        batch_fields(*sizes)


def test_wrong_files_end_in_one_line(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    for name, message in (("nowhere", "is not a file"), ("list", "holds no options"), ("broken", "is no YAML")):
        with pytest.raises(SystemExit, match=message):
            main(["migrate", "--from", "verl", str(tmp_path / f"{name}.yaml")])


def test_page_lists_exactly_the_options_of_the_tables():
    page = (ROOT / "docs" / "moving.md").read_text()
    for name, table in FRAMEWORKS.items():
        part = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", part, re.MULTILINE))
        listed = {option.theirs: option.ours for option in table.options}
        listed |= dict.fromkeys(table.left_out, "not translated")
        assert {theirs: ours.replace("`", "") for theirs, ours in rows.items()} == listed


def test_help_needs_neither_torch_nor_trl():
    code = "import sys; from trl_dapo.command_line import main; main(['migrate', '--help'])"
    check = (
        f"try:\n    {code}\nexcept SystemExit: pass\nassert not {{'torch', 'trl', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_every_field_of_the_tables_is_an_option_of_train():
    types = (TrainingScriptArguments, DAPOConfig, ModelConfig)
    fields = {field.name for arguments in types for field in dataclasses.fields(arguments)}
    named = {name for table in FRAMEWORKS.values() for option in table.options for name in option.ours.split(", ")}
    assert {name for name in named if not name.startswith("--num_")} <= fields
