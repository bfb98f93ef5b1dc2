"""`trl-dapo train` on several processes: the command starts itself again through accelerate's launcher."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from trl_dapo.recipes import ACCELERATE, find


# Set for the processes that this launcher starts, and for those of the short run of `trl-dapo check`.
_MARK = "TRL_DAPO_LAUNCHED"
TRIAL_MARK = "TRL_DAPO_CHECK_TRIAL"


@dataclass
class LaunchArguments:
    """Options of `trl-dapo train` that say on how many processes it runs."""

    num_processes: int | None = field(
        default=None,
        metadata={"help": "Processes on all machines together, one a GPU. Unset: 1, or as accelerate_config says."},
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={
            "help": "Configuration of accelerate: a file, or ddp, fsdp2, deepspeed_zero3 of `trl-dapo recipes`."
        },
    )
    num_machines: int | None = field(
        default=None, metadata={"help": "Machines. The command is run on each of them. Unset: 1."}
    )
    machine_rank: int | None = field(default=None, metadata={"help": "Number of this machine, from 0."})
    main_process_ip: str | None = field(default=None, metadata={"help": "Address of machine 0."})
    main_process_port: int | None = field(
        default=None, metadata={"help": "Port of machine 0. Unset: 29500, or with one machine any that is free."}
    )


_NAMES = tuple(item.name for item in fields(LaunchArguments))


def num_processes(values: Mapping[str, Any]) -> int:
    """
    Returns the number of processes that train.

    Args:
        values (`Mapping[str, Any]`):
            The options of the run, of the command line and of the recipe.

    >>> num_processes({"accelerate_config": "ddp"}), num_processes({"num_processes": "2"})
    (8, 2)
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if values.get("num_processes") is not None:
        return int(values["num_processes"])
    name = values.get("accelerate_config")
    return 1 if name is None else int(_read_config(name).get("num_processes", 1))


def is_to_be_launched(values: Mapping[str, Any]) -> bool:
    """
    Returns whether the command has to start several processes.

    Args:
        values (`Mapping[str, Any]`):
            The options of the run.

    Raises:
        `ValueError`: when another launcher has started this process, or the numbers do not fit each other.
        `FileNotFoundError`: when there is no such configuration.
    """
    given = [name for name in _NAMES if values.get(name) is not None]
    if not given or _MARK in os.environ:
        return False
    if "LOCAL_RANK" in os.environ:
        raise ValueError(
            f"--{given[0]} is set, but a launcher (accelerate launch, torchrun) has started this process already. Leave it out, "
            "or run trl-dapo train without a launcher."
        )
    count, machines = num_processes(values), int(values.get("num_machines") or 1)
    if count < 1:
        raise ValueError(f"--num_processes is {count}, but must be 1 or more.")
    if machines < 1 or count % machines:
        raise ValueError(
            f"--num_machines is {machines}, but must be 1 or more and divide the number of processes on all machines, {count}."
        )
    needed = ("machine_rank", "main_process_ip", "main_process_port") if machines > 1 else ()
    missing = [f"--{name}" for name in needed if values.get(name) is None]
    if missing:
        raise ValueError(f"--num_machines is {machines}, which needs {', '.join(missing)} too.")
    return count > 1 or "accelerate_config" in given


def launch(arguments: Sequence[str], values: Mapping[str, Any], command: str = "train") -> None:
    """
    Runs a command on several processes, and returns when all have ended.

    Args:
        arguments (`Sequence[str]`):
            The options of the command.
        values (`Mapping[str, Any]`):
            Their values, with those of the recipe.
        command (`str`, *optional*, defaults to `"train"`):
            The command.

    Raises:
        `SystemExit`: with the status of the process that failed first.
    """
    import subprocess

    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    is_cpu = (
        str(values.get("use_cpu")).lower() in ("true", "1", "yes", "y", "t") or not torch.accelerator.is_available()
    )
    os.environ[_MARK] = "1"
    if is_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    options = launcher_options(values, is_cpu)
    parsed = launch_command_parser().parse_args([*options, "--module", "trl_dapo", command, *arguments])
    try:
        launch_command(parsed)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"trl-dapo {command}: process {rank} failed first. Its error is above.", file=sys.stderr)
        # A process that a signal ended has the negative number of the signal.
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    finally:
        del os.environ[_MARK]


def is_sharded(values: Mapping[str, Any]) -> bool:
    """
    Returns whether weights, gradients and optimizer state are split over the processes: FSDP, or ZeRO-3.

    Args:
        values (`Mapping[str, Any]`):
            The options of the run.

    >>> is_sharded({"accelerate_config": "fsdp2"}), is_sharded({"accelerate_config": "ddp"})
    (True, False)
    """
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        return True
    if values.get("fsdp") or values.get("deepspeed"):
        return True
    name = values.get("accelerate_config")
    config = {} if name is None else _read_config(str(name))
    stage = (config.get("deepspeed_config") or {}).get("zero_stage")
    return config.get("distributed_type") == "FSDP" or str(stage) == "3"


def launcher_options(values: Mapping[str, Any], is_cpu: bool) -> list[str]:
    """
    Returns the options of `accelerate launch`.

    Args:
        values (`Mapping[str, Any]`):
            The options of the run.
        is_cpu (`bool`):
            Whether it trains on the CPU.

    >>> launcher_options({"num_processes": 2}, is_cpu=False)[:4]
    ['--num_processes', '2', '--num_machines', '1']
    """
    name = values.get("accelerate_config")
    given = {key: str(values[key]) for key in _NAMES if key != "accelerate_config" and values.get(key) is not None}
    if name is None:
        # Precision is that of the trainer's own options. Port 0: any that is free, so that two runs do not meet.
        defaults = {"num_machines": "1", "mixed_precision": "no", "dynamo_backend": "no"}
        if given.get("num_machines", "1") == "1":
            defaults["main_process_port"] = "0"
        given |= {key: value for key, value in defaults.items() if key not in given}
    else:
        given["config_file"] = str(find(str(name), "--accelerate_config", ACCELERATE))
    options = [word for key, value in given.items() for word in (f"--{key}", value)]
    # On the CPU, `accelerate launch --cpu --num_processes 2` would start one process.
    is_plain = name is None or _read_config(name).get("distributed_type") in ("NO", "MULTI_CPU")
    if is_plain and is_cpu:
        options.append("--multi_gpu")
    return options


def _read_config(name: str) -> dict[str, Any]:
    path = Path(find(str(name), "--accelerate_config", ACCELERATE))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--accelerate_config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--accelerate_config {path} must be a YAML mapping, as `accelerate config` writes it.")
    return content
