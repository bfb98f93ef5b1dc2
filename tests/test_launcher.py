"""`trl-dapo train` on several processes, through accelerate's launcher."""

import os
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from checkout import ROOT

from trl_dapo.command_line import main
from trl_dapo.command_line.launcher import is_to_be_launched, launcher_options, num_processes
from trl_dapo.command_line.option_check import check_options
from trl_dapo.recipes import ACCELERATE, RECIPES, names


@pytest.fixture(autouse=True)
def _without_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "TRL_DAPO_LAUNCHED"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", names(ACCELERATE))
def test_configurations_come_by_name_and_say_how_many_processes_there_are(name):
    config = yaml.safe_load((ACCELERATE / f"{name}.yaml").read_text())
    assert num_processes({"accelerate_config": name}) == config["num_processes"] == 8
    args = launch_command_parser().parse_args([*launcher_options({"accelerate_config": name}, False), "x.py"])
    assert args.config_file == str(ACCELERATE / f"{name}.yaml")
    assert not args.multi_gpu
    # A number of the command line wins.
    assert num_processes({"accelerate_config": name, "num_processes": "4"}) == 4


def test_options_of_several_machines_reach_the_launcher():
    values = {
        "accelerate_config": "deepspeed_zero3", "num_processes": "64", "num_machines": "8", "machine_rank": 3,
        "main_process_ip": "node0", "main_process_port": 1234, "learning_rate": 1e-6,
    }  # fmt: skip
    assert is_to_be_launched(values)
    args = launch_command_parser().parse_args([*launcher_options(values, False), "x.py"])
    assert (args.num_processes, args.num_machines, args.machine_rank) == (64, 8, 3)
    assert (args.main_process_ip, args.main_process_port) == ("node0", 1234)


def test_cpu_processes_are_started_in_the_way_that_really_starts_several():
    args = launch_command_parser().parse_args([*launcher_options({"num_processes": 2}, True), "x.py"])
    assert args.multi_gpu
    assert not args.cpu
    assert (args.num_processes, args.main_process_port) == (2, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_processes": "0"}, "--num_processes is 0, but must be 1 or more"),
        (
            {"num_processes": 6, "num_machines": 4},
            "must be 1 or more and divide the number of processes on all machines, 6",
        ),
        (
            {"num_processes": 8, "num_machines": 2, "machine_rank": 0},
            "needs --main_process_ip, --main_process_port too",
        ),
        ({"accelerate_config": "fsdp"}, r"--accelerate_config is 'fsdp', .* \(did you mean fsdp2\?\)"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(values, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        is_to_be_launched(values)


def test_one_process_needs_no_launcher_and_another_launcher_is_not_nested(monkeypatch):
    assert not is_to_be_launched({"seed": 1})
    assert not is_to_be_launched({"num_processes": "1"})
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(
        ValueError, match=r"--num_processes is set, but a launcher \(accelerate launch, torchrun\) has"
    ):
        is_to_be_launched({"num_processes": "2"})
    monkeypatch.setenv("TRL_DAPO_LAUNCHED", "1")
    assert not is_to_be_launched({"num_processes": "2"})


def test_groups_are_checked_for_the_processes_of_the_run():
    options = ["--config", str(RECIPES / "quickstart.yaml"), "--per_device_train_batch_size", "2"]
    options += ["--steps_per_generation", "1", "--num_processes"]
    check_options("train", [*options, "4"])
    with pytest.raises(ValueError, match="a generation batch has 6 completions"):
        check_options("train", [*options, "3"])


def test_several_processes_may_be_written_in_a_recipe(tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((RECIPES / "quickstart.yaml").read_text() + "num_processes: 2\n")
    started = []
    monkeypatch.setattr(
        "trl_dapo.command_line.launch", lambda options, values, command: started.append((options, values))
    )
    main(["train", "--config", str(recipe), "--seed", "3"])
    ((options, values),) = started
    assert options == ["--config", str(recipe), "--seed", "3"]
    assert (values["num_processes"], values["seed"], values["use_cpu"]) == (2, "3", True)


SMALL = [
    "--max_steps",
    "1",
    "--num_eval_problems",
    "4",
    "--per_device_train_batch_size",
    "8",
    "--per_device_eval_batch_size",
    "4",
    "--max_completion_length",
    "8",
    "--soft_punish_cache",
    "2",
    "--max_generation_rounds",
    "1",
]


def train(tmp_path, *options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": "1"}
    return subprocess.run(
        [sys.executable, "-m", "trl_dapo", "train", "--config", "quickstart", "--num_processes", "2", *SMALL, *options],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


@pytest.mark.slow
def test_quickstart_trains_on_two_processes(tmp_path):
    finished = train(tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "'dapo/moved_bytes'" in finished.stdout  # logged with several ranks only
    assert (tmp_path / "out" / "quickstart" / "model.safetensors").exists()


@pytest.mark.slow
def test_error_of_a_process_is_the_error_of_the_command(tmp_path):
    # What can be seen before processes start is said by the command itself.
    finished = train(tmp_path, "--resume_from_checkpoint", "nowhere")
    assert finished.returncode == 1
    assert "Error: " in finished.stderr
    assert "failed first. Its error is above." in finished.stderr
    assert "Traceback" not in finished.stderr
