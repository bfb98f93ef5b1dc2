"""The facts of a run, in one file beside the model: the only source of the model card."""

import dataclasses
import json
import math
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from trl_dapo.atomic_write import atomic_write
from trl_dapo.config.dapo_config import GROUPS_TO_LOG, DAPOConfig
from trl_dapo.config.secrets import without_secrets
from trl_dapo.data.source import DataSource


FACTS_FILE = "run_facts.json"

# The fields of TrainingArguments that change the result. Of GRPOConfig and DAPOConfig all fields count, except those below.
_GENERAL_SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "seed"),
)
# Paths, secrets, options of the display, and fields that follow from other fields.
_LEFT_OUT = frozenset(
    {"model_init_kwargs", "generation_batch_size", "chat_template_path", "log_completions", "num_completions_to_print"}
    | {
        "log_completions_hub_repo",
        "log_unique_prompts",
        "vllm_server_base_url",
        "vllm_server_host",
        "vllm_server_port",
    }
    | {
        "vllm_server_timeout",
        "vllm_group_port",
        "vllm_weight_folder",
        "vllm_structured_outputs_regex",
        "pad_to_multiple_of",
    }
)
# Options that say where a run is written, shown and started. Another user has other places.
_OF_THE_PLACE = re.compile(
    r"output_dir|logging_dir|run_name|report_to|project|push_to_hub|hub_.*|trackio_.*|resume_from_checkpoint|machine_rank|"
    r"main_process_.*|vllm_server_.*|vllm_group_port|vllm_weight_folder|log_completions_hub_repo|compare_grpo"
)
# The default of fields that are `None` until `DAPOConfig` computes them from other fields.
_RESOLVED: dict[str, Callable[[DAPOConfig], Any]] = {
    "soft_punish_cache": lambda args: args.default_punish_cache,
    "max_prompts_per_round": lambda args: 4 * args.num_groups_per_batch,
    "max_off_policy_steps": lambda args: args.num_updates_per_batch,
    "loss_normalization": lambda args: "batch",
    "steps_per_generation": lambda args: args.gradient_accumulation_steps,
    "num_generations_eval": lambda args: args.num_generations,
    "num_groups_to_log": lambda args: GROUPS_TO_LOG if args.log_completions else 0,
}
_PACKAGES = ("trl-dapo", "trl", "transformers", "torch", "datasets", "accelerate", "peft", "math-verify", "vllm")


@dataclass(frozen=True)
class RunFacts:
    """
    The facts that a run recorded.

    Args:
        model_name (`str`):
            Name of the model.
        base_model (`str`, *optional*):
            Hub id of the model that was trained, or the last part of its local path.
        base_model_is_on_hub (`bool`):
            Whether it is a Hub id.
        license (`str`, *optional*):
            Licence of the trained model, as in the metadata of a card. `None`: unknown.
        adapter (`dict[str, Any]`, *optional*):
            LoRA's rank and other settings. `None`: all weights were trained.
        num_parameters, num_trained_parameters (`int`):
            Number of parameters of the model, and of those that were trained.
        train_data (`DataSource`):
            Where the prompts came from.
        num_train_rows (`int`, *optional*):
            Number of prompts to train on. `None`: an iterable dataset.
        eval_data (`DataSource`):
            Where the held-out problems came from, if there is a single dataset.
        num_eval_rows (`dict[str, int]`):
            Number of held-out prompts by the name of their dataset; the name of a single dataset is `""`.
        held_out (`dict[str, Any]`, *optional*):
            The fields of [`~trl_dapo.data.held_out.HeldOut`]. `None`: the script did not split the data.
        num_shared_prompts (`dict[str, int]`):
            Of each evaluation dataset with such prompts: how many of its prompts are in the training data too.
        is_conversational (`bool`):
            Whether the prompts are conversations.
        rewards (`dict[str, float]`):
            Weight of each reward function.
        method (`list[str]`), departures (`list[str]`):
            What the run did, and where it differs from DAPO in the paper, as in the first lines of the run.
        settings (`dict[str, list]`):
            Value and default of each setting that differs from its default.
        recipe (`dict[str, Any]`, *optional*):
            Options of `trl-dapo train` that train such a model again. `None`: another program trained it.
        sampling (`dict[str, Any]`):
            How completions were sampled: temperature, top-p, most tokens, seed.
        hardware (`dict[str, Any]`):
            Device, number of processes, precision.
        versions (`dict[str, str]`):
            Versions of Python and of the packages involved.
        step, num_steps (`int`):
            Optimizer step of the weights, and number of planned steps.
        stop_reason (`str`, *optional*):
            Why a guard stopped the training before its last step.
        log_history (`list[dict]`):
            All log lines, in order. Values that are not finite numbers are `None`.
        tags (`list[str]`), trackers (`dict[str, str]`):
            Tags of the model; addresses of the run in Weights & Biases, Trackio and Comet.
    """

    model_name: str
    base_model: str | None
    base_model_is_on_hub: bool
    license: str | None
    adapter: dict[str, Any] | None
    num_parameters: int
    num_trained_parameters: int
    train_data: DataSource
    num_train_rows: int | None
    eval_data: DataSource
    num_eval_rows: dict[str, int]
    held_out: dict[str, Any] | None
    num_shared_prompts: dict[str, int]
    is_conversational: bool
    rewards: dict[str, float]
    method: list[str]
    departures: list[str]
    settings: dict[str, list[Any]]
    recipe: dict[str, Any] | None
    sampling: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    step: int
    num_steps: int
    stop_reason: str | None
    log_history: list[dict[str, Any]]
    tags: list[str]
    trackers: dict[str, str]

    def write(self, folder: str | Path) -> None:
        """Writes the facts into a folder, all or nothing."""
        text = json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)
        atomic_write(Path(folder) / FACTS_FILE, text + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> "RunFacts":
        """
        Reads the facts from a folder.

        Raises:
            `FileNotFoundError`: the folder has no facts.
            `ValueError`: another version of this package wrote the file.
        """
        path = Path(folder) / FACTS_FILE
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in dataclasses.fields(cls)}
        if set(content) != names:
            raise ValueError(
                f"{path} has missing or unknown fields: {sorted(set(content) ^ names)}. Another version of trl-dapo "
                "wrote it. Push with that version."
            )
        sources = {name: DataSource.from_dict(content[name]) for name in ("train_data", "eval_data")}
        return cls(**content | sources)


def changed_settings(args: DAPOConfig) -> dict[str, list[Any]]:
    """
    Returns value and default of each setting of a configuration that differs from its default.

    Args:
        args (`DAPOConfig`):
            The configuration. Its paths, tokens and addresses are never returned.
    """
    own = {field.name for field in dataclasses.fields(DAPOConfig)}
    own -= {field.name for field in dataclasses.fields(TrainingArguments)} | _LEFT_OUT
    changed = {}
    for field in dataclasses.fields(DAPOConfig):
        if field.name not in own and field.name not in _GENERAL_SETTINGS:
            continue
        default = field.default if field.default is not dataclasses.MISSING else None
        value = getattr(args, field.name)
        if default is None and field.name in _RESOLVED:
            default = _RESOLVED[field.name](args)
        # Such a field does not apply if `DAPOConfig` leaves it `None`.
        is_unused = value is None and field.name in _RESOLVED
        if not is_unused and _plain(value) != _plain(default):
            changed[field.name] = [_plain(without_secrets(value, field.name)), _plain(default)]
    return changed


def published_recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Returns options of `trl-dapo train` as they can be published: without secrets, places, and the folders of local files.

    Args:
        options (`Mapping[str, Any]`):
            The options that a user gave.

    >>> published_recipe({"dataset_name": "/home/me/rows.jsonl", "max_steps": 40, "hub_token": "hf_x"})
    {'dataset_name': 'rows.jsonl', 'max_steps': 40}
    """
    recipe = {}
    for name, value in options.items():
        known = without_secrets(value, name)
        if known is None or _OF_THE_PLACE.fullmatch(name):
            continue
        is_local = isinstance(known, str) and os.sep in known and Path(known).exists()
        recipe[name] = Path(known).name if is_local else _plain(known)
    return recipe


def hardware_of(args: DAPOConfig) -> dict[str, Any]:
    """Returns device, number of processes, precision and sampler (vLLM or transformers) of a run."""
    device = args.device.type
    accelerator: Any = getattr(torch, device, None)
    if hasattr(accelerator, "get_device_name"):
        name = accelerator.get_device_name(args.device)
    else:
        name = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    sampler = f"vLLM, {args.vllm_mode}" if args.use_vllm else "transformers"
    return {"device": name, "num_processes": args.world_size, "precision": precision, "sampler": sampler}


def installed_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages among `_PACKAGES`."""
    numbers = ((name, _version(name)) for name in _PACKAGES)
    return {"python": platform.python_version()} | {name: number for name, number in numbers if number is not None}


@cache
def _version(package: str) -> str | None:
    # Asked at each save, and each search takes milliseconds.
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def finite_history(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns log lines for JSON: a value that is not a finite number becomes `None`."""
    return [{name: _plain(value) for name, value in entry.items()} for entry in log_history]


def _plain(value: Any) -> Any:
    """Returns a value for JSON, without paths of this machine."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return Path(value).name if value.startswith(("~", os.sep)) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if getattr(value, "ndim", None) == 0:
        return _plain(value.item())
    return str(value)
