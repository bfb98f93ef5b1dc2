"""
README.md, CONTRIBUTING.md and docs/ are true: their code runs, their commands parse, their names and links exist.

A new command must be put into `TESTED_BY` or into `NOT_RUN`, with the reason. A new program needs a check in `CHECKS`.
"""

import dataclasses
import os
import re
import sys
import tomllib

import datasets
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from checkout import ROOT
from datasets import Dataset
from documentation import LINKED_PAGES, PAGES, PROGRAMS, anchors, blocks, commands, links, names_in_backticks, section
from test_layers import ROOMS
from tiny import tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.distributed.run import get_args_parser as torchrun_parser
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, ModelConfig, TrlParser

import trl_dapo
from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.command_line import COMMANDS
from trl_dapo.command_line.check import CheckArguments
from trl_dapo.command_line.eval import EvaluationArguments
from trl_dapo.command_line.grade import GradeArguments
from trl_dapo.command_line.launcher import LaunchArguments
from trl_dapo.command_line.push import PushArguments
from trl_dapo.command_line.serve import server_command
from trl_dapo.command_line.training_run import TrainingScriptArguments
from trl_dapo.config.departures import departures
from trl_dapo.recipes import ACCELERATE, find, names, with_path
from trl_dapo.report.batch_metrics import always_zero_metrics


sys.path.insert(0, str(ROOT / "examples"))
from dapo_gsm8k import DEFAULT_RECIPE


# Commands that a test runs, with the same options or with less to do.
TESTED_BY = {
    "make quickstart": "tests/test_quickstart.py::test_quickstart_raises_accuracy_by_25_points_and_leaves_what_it_says",
    "trl-dapo eval": "tests/test_command_line.py::test_eval_prints_a_table_and_goes_on_where_it_was",
    "trl-dapo eval --model_name_or_path DIR_OR_HUB_ID --dataset_name FILE_OR_HUB_ID --k 4 --output_dir OUT": (
        "tests/test_command_line.py::test_eval_prints_a_table_and_goes_on_where_it_was"
    ),
    "trl-dapo check": "tests/test_check.py::test_check_of_a_run_that_works_and_touches_nothing",
    "trl-dapo check --config quickstart": "tests/test_check.py::test_check_of_a_run_that_works_and_touches_nothing",
    "trl-dapo push": "tests/test_push.py::test_command_pushes_what_belongs_to_the_model_and_nothing_else",
    "trl-dapo push --output_dir out/quickstart --hub_model_id me/my-model --license apache-2.0": (
        "tests/test_push.py::test_command_pushes_what_belongs_to_the_model_and_nothing_else"
    ),
    "trl-dapo train --help": (
        "tests/test_option_help.py::test_help_begins_with_dapos_own_and_help_all_adds_every_option_once"
    ),
    "trl-dapo train --help-all": (
        "tests/test_option_help.py::test_help_begins_with_dapos_own_and_help_all_adds_every_option_once"
    ),
    "trl-dapo recipes fsdp2 my_fsdp2.yaml": (
        "tests/test_recipes_by_name.py::test_copy_is_the_recipe_and_overwrites_nothing"
    ),
    "trl-dapo recipes": "tests/test_recipes_by_name.py::test_list_has_every_recipe_with_what_it_trains",
    "trl-dapo recipes gsm8k_qwen2.5_0.5b my_recipe.yaml": (
        "tests/test_recipes_by_name.py::test_copy_is_the_recipe_and_overwrites_nothing"
    ),
    "trl-dapo train --config quickstart": "tests/test_recipes_by_name.py::test_quickstart_trains_by_name_in_any_folder",
    "trl-dapo migrate": "tests/test_migrate.py::test_recipe_parses_and_every_option_is_translated_or_listed",
    "trl-dapo migrate --from verl CONFIG.yaml --output RECIPE.yaml": (
        "tests/test_migrate.py::test_recipe_parses_and_every_option_is_translated_or_listed"
    ),
    "python benchmarks/refill.py": "tests/test_refill_benchmark.py::",
}
_IS_TESTING = "runs tests"
_NEEDS_GPU = "needs GPUs, a model and data from the Hub"
_IS_MINUTES = "takes minutes to hours on 2 cores"
# Commands that are only parsed, and why they are not run.
NOT_RUN = {
    "make test": _IS_TESTING,
    "make test-slow": _IS_TESTING,
    "make test-deepspeed": _IS_TESTING,
    "make test-versions": _IS_TESTING,
    "make test-trl-suite TRL_REPO=DIR": _IS_TESTING,
    "python tests/version_matrix.py TRL 1.14": _IS_TESTING,
    "make test-vllm": _IS_TESTING,
    "make test-gpu": _IS_TESTING,
    "trl-dapo check --config my_recipe.yaml --num_processes 8": _NEEDS_GPU,
    "accelerate launch -m trl_dapo check ...": "the beginning of a command; tests/test_check.py starts two processes",
    "make space RUNS=out/quickstart": "serves until it is stopped; `make test-space` opens it in a browser",
    "make test-space": _IS_TESTING,
    "make docs": "builds the site in an environment of its own; tests/test_documentation_site.py checks its parts",
    "make docs-serve": "serves until it is stopped",
    "python docs/site/references.py --write": "changes files; tests/test_references.py makes the pages",
    "trl-dapo train --config my_recipe.yaml --model_name_or_path MODEL --dataset_name rows.jsonl": _NEEDS_GPU,
    "trl-dapo train --config my_recipe.yaml --reward_names accuracy_reward my_rewards.brevity": _NEEDS_GPU,
    "make quality": "part of each check of this repository",
    "make bench": _IS_MINUTES,
    "make quickstart ARGS=--compare_grpo true": _IS_MINUTES,
    "make quickstart-vllm": "needs vLLM",
    "make serve-tiny": "serves until it is stopped; tests/with_vllm/test_servers.py starts servers",
    "make quickstart-server": "needs vLLM and a server",
    "trl-dapo serve": "the beginning of a command",
    "trl-dapo serve DIR": "DIR stands for a model; tests/with_vllm/test_servers.py starts servers",
    "trl-dapo train --model_name_or_path DIR --dataset_name FILE_OR_DIR --use_vllm true --vllm_mode server --refill stream": (
        "needs vLLM and a server"
    ),
    "make quickstart-vllm ARGS=--refill stream --surplus carry --seed 1": "needs vLLM",
    "python benchmarks/streaming.py": _IS_MINUTES,
    "make style": "changes files",
    "pip install -e .[curves]": "changes the environment",
    "pip install -e .[curves,vllm]": "changes the environment",
    "pip install -e .[vllm]": "changes the environment",
    "accelerate launch examples/dapo_gsm8k.py": _NEEDS_GPU,
    "trl-dapo train --config gsm8k_qwen2.5_0.5b --model_name_or_path DIR --dataset_name FILE_OR_DIR --use_vllm false": (
        "DIR and FILE_OR_DIR stand for a model and data"
    ),
    "trl-dapo grade --dataset_name rows.jsonl": "rows.jsonl stands for a file; tests/test_grade_command.py runs the command",
    "python tests/perturbations.py": _IS_MINUTES,
    "trl-dapo train": _NEEDS_GPU,
    "trl-dapo train --config gsm8k_qwen2.5_0.5b": _NEEDS_GPU,
    "trl-dapo train --config gsm8k_qwen2.5_0.5b --output_dir OUT": _NEEDS_GPU,
    "trl-dapo train --config gsm8k_qwen2.5_0.5b --reward_names accuracy_reward my_rewards.brevity": _NEEDS_GPU,
    "trl-dapo train --config my_recipe.yaml": _NEEDS_GPU,
    "trl-dapo train --num_processes 8": _NEEDS_GPU,
    "accelerate launch -m trl_dapo train ...": "the beginning of a command; tests/test_launcher.py starts two processes",
    "pip install deepspeed": "changes the environment",
    "pip install cmake nanobind==2.9.2": "changes the environment",
    "make vllm-env": "takes minutes; `make test-vllm` runs it",
    "pip install --no-deps --no-build-isolation arctic-inference==0.1.1": "changes the environment",
    "trl-dapo train --config dapo_math_qwen2.5_7b --accelerate_config fsdp2": _NEEDS_GPU,
    "trl-dapo train --config dapo_qwen2.5_32b_paper --accelerate_config deepspeed_zero3 --num_processes 64 --num_machines 8 "
    "--machine_rank RANK --main_process_ip ADDRESS --main_process_port 29500": _NEEDS_GPU,
    "trl-dapo train --config gsm8k_qwen2.5_0.5b --per_device_train_batch_size 4 --gradient_accumulation_steps 16 "
    "--steps_per_generation 64": _NEEDS_GPU,
    "trl-dapo train --config dapo_math_qwen2.5_7b --use_peft true "
    "--lora_r 32 --learning_rate 1e-5 --generation_batch_size 512 --gradient_accumulation_steps 16": _NEEDS_GPU,
    "accelerate launch --cpu --num_processes 2": "named as what does not work",
    "torchrun --nproc_per_node 2": "the beginning of a command; tests/two_ranks.py runs two processes",
    "python benchmarks/dynamic_sampling.py": _IS_MINUTES,
    "python benchmarks/hidden_rates.py": _IS_MINUTES,
    "python benchmarks/many_passes.py": _IS_MINUTES,
    "python benchmarks/tools.py": _IS_MINUTES,
    "python benchmarks/split_invariance.py": _IS_MINUTES,
    "python benchmarks/scaling.py": _IS_MINUTES,
    "python benchmarks/resume.py": _IS_MINUTES,
    "python benchmarks/memory.py": _IS_MINUTES,
    "python benchmarks/ablation.py": _IS_MINUTES,
    "python benchmarks/overlap.py": _IS_MINUTES,
    "python benchmarks/adapter_sync.py": _IS_MINUTES,
    "python benchmarks/engine_precision.py": _IS_MINUTES,
    "python benchmarks/host_cost.py": _IS_MINUTES,
    "python benchmarks/overlap_accuracy.py": _IS_MINUTES,
    "python benchmarks/speculation.py": _IS_MINUTES,
    "make bench-full": _IS_MINUTES,
    "python benchmarks/grading.py --gsm8k FILE": "FILE stands for GSM8K",
}
# Metrics that a run logs only with vLLM; `make test-vllm` sees them.
WITH_VLLM = {
    "dapo/vllm/logp_gap",
    "dapo/vllm/logp_gap_max",
    "dapo/vllm/preemptions",
    "dapo/vllm/kv_cache_use_max",
    "dapo/vllm/tokens_per_pass",
    "dapo/vllm/frac_drafts_accepted",
    "dapo/vllm/server_logp_gap",
    "dapo/stream/groups_suspended",
    "dapo/overlap/hidden",
    "dapo/overlap/wait_seconds",
    "dapo/overlap/idle_seconds",
    "dapo/overlap/staleness_mean",
    "dapo/overlap/staleness_max",
    "dapo/overlap/frac_truncated",
    "dapo/stream/grading_hidden",
}
# Metrics that are logged only with an option, when they have a value, or when something is wrong.
SELDOM = WITH_VLLM | {
    "dapo/selection/calibration_error",
    "dapo/selection/completions_of_blind",
    "dapo/selection/rare_of_blind",
    "dapo/selection/frac_solved",
    "dapo/selection/frac_unsolved",
    "dapo/selection/evicted",
    "dapo/clip_high/token_prob_mean",
    "dapo/clip_high/token_prob_max",
    "dapo/clip_low/token_prob_mean",
    "dapo/frac_non_finite_steps",
    "dapo/turns/mean",
    "dapo/environments/<name>/acceptance_rate",
    "dapo/environments/<name>/sampled_accuracy",
    "dapo/environments/<name>/mean_length",
    "dapo/environments/<name>/turns/mean",
    "dapo/environments/<name>/frac_env_failed",
    "dapo/frac_env_failed",
    "dapo/frac_env_failed/raised",
    "dapo/frac_env_failed/timed_out",
    "dapo/frac_env_failed/not_reset",
}
# What Python blocks print.
PRINTED = {
    "docs/batch.md": "8 0.0\n20 0.58\n28 0.93\ninformative\nall_correct",
    "docs/grading.md": "Grade.CORRECT",
    "docs/data.md": "1 x empty prompt\n    row 1: ",
}


def parse_script(options):
    if "--config" not in options:
        options = ["--config", str(DEFAULT_RECIPE), *options]
    options = [str(ROOT / word) if word.startswith("examples/") else word for word in options]
    options = [word for word in options if not word.startswith("--help")]
    options = with_path([str(find("quickstart")) if word == "my_recipe.yaml" else word for word in options])
    parser = TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig, LaunchArguments, CheckArguments))
    return parser.parse_args_and_config([*options, "--use_cpu", "true"])


def check_accelerate(words):
    is_whole = "examples/dapo_gsm8k.py" in words or "-m" in words
    args = launch_command_parser().parse_args(words[2:] if is_whole else [*words[2:], "x.py"])
    assert words[1] == "launch"
    assert args.config_file is None or (ROOT / args.config_file).exists()
    if args.module:
        assert args.training_script == "trl_dapo"
    elif args.training_script != "x.py":
        assert (ROOT / args.training_script).exists()
        parse_script(args.training_script_args)


def check_make(words):
    assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words[2:]:
        name, _, options = word.partition("=")
        if name in ("RUNS", "TRL_REPO"):
            continue
        assert name == "ARGS"
        vllm = ["--use_vllm", "true"] if words[1] == "quickstart-vllm" else []
        parse_script(["--config", "examples/recipes/quickstart.yaml", *vllm, *options.split()])


def check_pip(words):
    if words[1:] == ["install", "deepspeed"]:
        return
    pins = {word for word in words if "==" in word}
    if pins:
        assert pins <= set((ROOT / "constraints-vllm.txt").read_text().splitlines())
        return
    (extras,) = re.fullmatch(r"install -e \.\[([\w,]+)\]", " ".join(words[1:])).groups()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= known.keys()


def check_python(words):
    source = (ROOT / words[1]).read_text()
    assert all(
        f'add_argument("{word}"' in source or f'sys.argv[1:] != ["{word}"]' in source
        for word in words[2:]
        if word.startswith("--")
    )


def check_torchrun(words):
    torchrun_parser().parse_args([*words[1:], "x.py"])


def check_trl_dapo(words):
    assert words[1] in COMMANDS
    if words[2:] and words[1] in ("train", "check"):
        parse_script(["0" if word == "RANK" else word for word in words[2:]])
    elif words[2:] and words[1] == "push":
        TrlParser((PushArguments,)).parse_args_and_config(words[2:])
    elif words[2:] and words[1] == "grade":
        TrlParser((GradeArguments,)).parse_args_and_config(words[2:])
    elif words[1] == "recipes":
        assert not words[2:] or words[2] in names() + names(ACCELERATE)
    elif words[2:] and words[1] == "serve":
        server_command(words[2:], {}, has_gpu=False)
    elif words[2:] and words[1] == "migrate":
        assert words[2:4] == ["--from", "verl"]
    elif words[2:]:
        assert words[1] == "eval", f"write here how the options of `trl-dapo {words[1]}` are parsed"
        TrlParser((EvaluationArguments, ModelConfig)).parse_args_and_config(words[2:])


CHECKS = {
    "accelerate": check_accelerate,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "torchrun": check_torchrun,
    "trl-dapo": check_trl_dapo,
}


def test_every_command_is_tested_or_listed_with_the_reason():
    assert set(PROGRAMS) == CHECKS.keys()
    assert set(commands()) == TESTED_BY.keys() | NOT_RUN.keys()
    assert not TESTED_BY.keys() & NOT_RUN.keys()
    for test in TESTED_BY.values():
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text()


@pytest.mark.parametrize("command", commands(), ids=str)
def test_command_parses(command):
    words = commands()[command]
    CHECKS[words[0]](words)


# Python blocks


def write_counting_model(folder):
    """Saves a model that says one of eight words, five of them numbers."""
    words = ["<pad>", "<bos>", "<eos>", "1", "2", "3", "4", "5"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    fast.save_pretrained(folder)
    tiny_model(vocab_size=len(words)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run_blocks(tmp_path_factory):
    """
    Runs the Python blocks as they are, and returns their names and what the trainers logged.

    The model and the data from the Hub are replaced by local ones, and the upload by a note that it was called. The
    configurations also get a CPU, two steps and completions of one token.
    """
    folder = tmp_path_factory.mktemp("blocks")
    model = write_counting_model(folder / "model")
    rows = Dataset.from_list([{"question": "4 5", "answer": f"#### {row % 3 + 1}"} for row in range(40)])
    small = {"output_dir": str(folder / "out"), "use_cpu": True, "max_steps": 2, "max_completion_length": 1}
    small |= {"soft_punish_cache": 1, "logging_steps": 1, "report_to": "none", "save_strategy": "no"}
    pushed = []

    class Trainer(DAPOTrainer):
        def __init__(self, **arguments):
            super().__init__(**arguments | {"model": model})

        def push_to_hub(self, *args, **kwargs):
            pushed.append(self)

    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
        patch.setattr(trl_dapo, "DAPOTrainer", Trainer)
        patch.setattr(trl_dapo, "DAPOConfig", lambda **arguments: DAPOConfig(**arguments | small))
        for block in blocks("python"):
            scope: dict = {}
            printed: list = []
            scope["print"] = lambda *values, into=printed: into.append(" ".join(map(str, values)))
            exec(compile(block.text, str(block), "exec"), scope)
            results[str(block)] = scope, "\n".join(printed)
    assert len(pushed) == 1
    return results


def test_python_blocks_run(run_blocks):
    pages = {place.partition(":")[0]: printed for place, (_, printed) in run_blocks.items()}
    assert {"README.md", "docs/agents.md", "docs/rollouts.md", "docs/vllm.md", *PRINTED} == pages.keys()
    for page, text in PRINTED.items():
        assert text in pages[page]
    streaming = [scope["args"] for place, (scope, _) in run_blocks.items() if place.startswith("docs/vllm.md")]
    assert [args.refill for args in streaming] == ["rounds"] * 4 + ["stream"] * 2


def test_program_of_the_readme_is_a_good_first_run(run_blocks):
    (trainer,) = (scope["trainer"] for scope, _ in run_blocks.values() if "trainer" in scope)
    args = trainer.args
    # Many groups a batch, and a ratio that moves.
    assert (args.num_groups_per_batch, args.num_generations, args.num_updates_per_batch) == (32, 8, 4)
    assert args.use_vllm == torch.cuda.is_available()
    config = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none"}
    fields = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "max_steps")
    config |= {name: getattr(args, name) for name in fields} | {"vllm_importance_sampling_mode": "token_truncate"}
    for use_vllm in (False, True):
        assert departures(DAPOConfig(**config | {"use_vllm": use_vllm})) == []
    evaluations = [entry["step"] for entry in trainer.state.log_history if "eval_avg@4" in entry]
    assert evaluations[0] == 0
    assert args.eval_strategy == "steps"
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        assert "\\boxed{}" in dataset[0]["prompt"][0]["content"]


def metrics_of_run(run_blocks):
    """Returns the metrics that the run of the README logged, and those that it left out because they would be 0."""
    (trainer,) = (scope["trainer"] for scope, _ in run_blocks.values() if "trainer" in scope)
    assert trainer.state.global_step == 2
    logged = {name for entry in trainer.state.log_history for name in entry}
    return logged, set(always_zero_metrics(trainer.args, num_ranks=1))


def test_every_metric_named_is_logged_by_a_run_and_every_dapo_metric_is_named(run_blocks):
    logged, always_zero = metrics_of_run(run_blocks)
    named = {
        name
        for page in PAGES
        for name in names_in_backticks(page)
        if re.match(r"(dapo|grading|completions|rewards)/(?!.*\.py)[\w<]", name)
    }
    for name in named - SELDOM - always_zero:
        pattern = re.escape(name).replace(r"\.\.\.", ".+")
        pattern = re.sub("<(name|fate)>", r"\\w+", pattern)
        assert any(re.fullmatch(pattern, metric) for metric in logged), name
    source = "".join(path.read_text() for path in (ROOT / "trl_dapo").rglob("*.py"))
    assert all(f'"{name.removeprefix("dapo/")}"' in source for name in WITH_VLLM)
    assert all(name.rpartition("/")[2] in source for name in SELDOM)
    fates = {f"dapo/seconds/{name.rpartition('/')[2]}" for name in named if name.startswith("dapo/tokens/")}
    assert {name for name in logged if name.startswith("dapo/")} <= named | fates


def test_every_field_is_explained_and_every_setting_named_is_a_field():
    fields = {field.name for field in dataclasses.fields(DAPOConfig)}
    new = fields - {field.name for field in dataclasses.fields(GRPOConfig)}
    text = " ".join(name for page in PAGES for name in names_in_backticks(page))
    assert {name for name in new if not re.search(rf"\b{name}\b", text)} == set()
    settings = {
        name for page in PAGES for code in names_in_backticks(page) for name in re.findall(r"(\w+)=(?!=)", code)
    }
    # Of rewards and data, environment variables, make, and the options of vLLM's engine.
    assert settings - fields <= {
        "wrong",
        "k",
        "output_dir",
        "drop_duplicates",
        "HF_HUB_OFFLINE",
        "NUMBA_NUM_THREADS",
        "ARGS",
        "RUNS",
        "TRL_REPO",
        "NUM_BATCHES",
        "tools",
    }


def test_every_option_named_in_the_text_exists():
    types = (TrainingScriptArguments, DAPOConfig, ModelConfig, LaunchArguments, EvaluationArguments, PushArguments)
    types += (CheckArguments,)
    options = {field.name for arguments in types for field in dataclasses.fields(arguments)} | {"help", "version"}
    options |= {name.lstrip("-") for name in launch_command_parser()._option_string_actions}
    named = {
        name
        for page in PAGES
        for code in names_in_backticks(page)
        if code.startswith("--")
        for name in re.findall(r"--(\w+)", code)
    }
    assert "num_shots" in named
    assert named <= options


@pytest.mark.parametrize("page", LINKED_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_exist(page):
    for text, target in links(page):
        if target.startswith("https://"):
            thread = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+)/(?:issues|pull)/(\d+)", target)
            if thread:  # the text is `owner/repository#number`, or without the owner
                owner, repository, number = thread.groups()
                assert text in (f"{owner}/{repository}#{number}", f"{repository}#{number}")
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target
    for name in names_in_backticks(page):
        if re.fullmatch(r"[\w./-]+(\.(py|yaml|md|txt)|/)", name) and not name.startswith(("out/", ".")):
            places = (ROOT, ROOT / "trl_dapo", ROOT / "examples" / "recipes", page.parent)
            made_by_runs = {"settings.json", "results.json", "config.json", "run_facts.json"}
            assert name in made_by_runs or any(os.path.exists(place / name) for place in places), name


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_tree_of_the_readme_has_the_rooms_in_their_order():
    (tree,) = blocks("text")
    listed = re.findall(r"^  (\w+)(?:/|\.py) ", tree.text, re.MULTILINE)
    assert listed == [room for room in ROOMS if not room.startswith("__")]


def test_every_page_is_in_the_index_and_in_the_readme():
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == {target for _, target in links(ROOT / "docs" / "README.md") if "/" not in target}
    targets = {target.partition("#")[0] for _, target in links(ROOT / "README.md")}
    assert {f"docs/{name}" for name in pages} <= targets


def test_example_script_is_short_and_shows_the_trainer():
    script = (ROOT / "examples" / "dapo_gsm8k.py").read_text()
    assert len(script.splitlines()) <= 80
    assert "trainer = DAPOTrainer(\n" in script


def test_glossary_has_every_word_of_a_batch():
    rows = re.findall(r"^\| ([a-z ]+) \| ", section(ROOT / "CONTRIBUTING.md", "Glossary"), re.MULTILINE)
    assert rows[0] == "word"
    assert {"group", "round", "informative", "surplus", "carry", "fate", "verdict", "grade", "ledger"} <= set(rows)
