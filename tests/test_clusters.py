"""The commands of docs/clusters.md pass the checks, and their batches are those that the page says."""

import re
import shlex

import pytest
from accelerate.commands.launch import launch_command_parser
from documentation import PAGES, blocks

from trl_dapo.command_line.launcher import is_to_be_launched, launcher_options, num_processes
from trl_dapo.command_line.option_check import check_options
from trl_dapo.command_line.option_sources import read_options
from trl_dapo.recipes import with_path


VALUES = {"SLURM_NNODES": "8", "SLURM_NODEID": "3", "MAIN_IP": "node0", "OUT": "out", "RESUME": "false"}


def train_commands():
    text = "\n".join(block.text for block in blocks("sh")).replace("\\\n", " ")
    text = text.replace("$((8 * SLURM_NNODES))", "64")
    for name, value in VALUES.items():
        text = text.replace(f"${name}", value)
    return re.findall(r"(?:trl-dapo|-m trl_dapo) train ([^'\n]*)", text)


@pytest.fixture(autouse=True)
def _machine_of_the_page(monkeypatch):
    """No launcher has started the process, and vLLM is installed."""
    monkeypatch.setattr("trl_dapo.command_line.option_check._has_vllm", lambda: True)
    for name in ("WORLD_SIZE", "LOCAL_RANK", "TRL_DAPO_LAUNCHED"):
        monkeypatch.delenv(name, raising=False)


def test_every_command_of_the_page_is_here():
    (page,) = (page for page in PAGES if page.name == "clusters.md")
    assert (
        len(train_commands())
        == len(re.findall(r"^(?!`).*(?:trl-dapo|-m trl_dapo) train -", page.read_text(), re.MULTILINE))
        == 7
    )


@pytest.mark.parametrize("command", train_commands())
def test_command_is_accepted_and_reaches_the_launcher(command):
    values = check_options("train", with_path(shlex.split(command)))
    if is_to_be_launched(values):
        launch_command_parser().parse_args([*launcher_options(values, False), "x.py"])
    assert is_to_be_launched(values) == ("num_processes" in command or "accelerate_config" in command)


@pytest.mark.parametrize(
    ("recipe", "completions", "samples_per_step"),
    [("gsm8k_qwen2.5_0.5b", 256, 64), ("dapo_math_qwen2.5_7b", 2048, 128), ("dapo_qwen2.5_32b_paper", 8192, 512)],
)
def test_batch_of_a_recipe_is_the_same_on_every_number_of_gpus(recipe, completions, samples_per_step):
    found = 0
    for command in train_commands():
        if recipe not in command:
            continue
        defaults = {name: option.default for name, option in read_options("train").items()}
        values = defaults | check_options("train", with_path(shlex.split(command)))
        ranks = num_processes(values)
        if ranks == 1:
            continue
        rows = int(values["per_device_train_batch_size"]) * ranks
        assert rows * int(values["gradient_accumulation_steps"]) == samples_per_step
        assert int(values["generation_batch_size"] or rows * int(values["steps_per_generation"])) == completions
        found += 1
    assert found


def test_script_asks_slurm_for_the_machines_that_it_starts():
    (script,) = (block.text for block in blocks("sh") if "#SBATCH" in block.text)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE))
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("8", "1", "8")
