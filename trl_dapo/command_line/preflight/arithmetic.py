"""
What a recipe takes, by arithmetic alone: bytes of a GPU or of the host, and seconds of a rollout step.

docs/recipes.md explains the formulas; `tests/test_recipes.py` computes its tables with them. GB are 10^9 bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trl_dapo.command_line.option_check import is_set


# Activations that a layer keeps for the backward pass, in bytes for a token and a hidden unit, computed in bfloat16; and what
# gradient checkpointing keeps of a layer.
_LAYER_BYTES, _CHECKPOINT_BYTES = 34, 2
# What a round holds on the host for a sampled token, with vLLM in the same process: measured 95 where all completions of a rank
# are decoded at once, 40 where a quarter is (benchmarks/host_cost.py).
HOST_BYTES_PER_TOKEN = 100
# Prompts of a round over those of a batch, at an acceptance of one half.
_ROUND = 2
# Speeds that are assumed before anything is measured: FLOP a second of a GPU in training, and of one and of a CPU core when
# tokens are sampled and trained in the short run.
TRAINING_FLOPS, _SHORT_RUN_FLOPS, _CORE_FLOPS = 4e14, 4e13, 5e9


@dataclass(frozen=True)
class ModelSize:
    """
    The numbers of a model that its memory follows from.

    Attributes:
        num_parameters (`float`):
            Parameters; tied ones count once.
        num_layers (`int`), hidden_size (`int`), num_kv_heads (`int`), head_size (`int`):
            Its shape.
    """

    num_parameters: float
    num_layers: int
    hidden_size: int
    num_kv_heads: int
    head_size: int

    def cache_bytes(self, number_bytes: int = 2) -> int:
        """Returns the bytes of the KV cache of a token: keys and values of each layer."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * number_bytes


# The models of the recipes, for a machine that cannot ask the Hub.
KNOWN_SIZES = {
    "Qwen/Qwen2.5-0.5B-Instruct": ModelSize(0.494e9, 24, 896, 2, 64),
    "Qwen/Qwen2.5-7B": ModelSize(7.616e9, 28, 3584, 4, 128),
    "Qwen/Qwen2.5-32B": ModelSize(32.76e9, 64, 5120, 8, 128),
}


@dataclass(frozen=True)
class BatchPlan:
    """
    How large the batches of a recipe are.

    Attributes:
        num_generations (`int`):
            Completions of a group.
        rows (`int`):
            Completions of a micro-batch of one process.
        accumulation (`int`), slices (`int`):
            Micro-batches of an optimizer step, and of a generation batch.
        world (`int`):
            Processes.
        length (`int`):
            Most tokens of a completion.
        iterations (`int`):
            How often a generation batch is trained.
    """

    num_generations: int
    rows: int
    accumulation: int
    slices: int
    world: int
    length: int
    iterations: int = 1

    @classmethod
    def of(cls, values: Mapping[str, Any], world: int) -> "BatchPlan":
        """Returns the batches of a run with these options."""
        rows, accumulation = (
            int(values["per_device_train_batch_size"]),
            int(values["gradient_accumulation_steps"] or 1),
        )
        slices = int(values["steps_per_generation"] or accumulation)
        if values["generation_batch_size"]:
            slices = max(1, int(values["generation_batch_size"]) // max(1, rows * world))
        length = int(values["max_completion_length"] or 256)
        return cls(
            int(values["num_generations"]),
            rows,
            accumulation,
            slices,
            world,
            length,
            int(values["num_iterations"] or 1),
        )

    @property
    def num_completions(self) -> int:
        """Completions of a generation batch."""
        return self.rows * self.slices * self.world

    @property
    def num_updates(self) -> int:
        """Optimizer steps on a generation batch."""
        return max(1, self.slices * self.iterations // self.accumulation)

    def smallest(self) -> "BatchPlan":
        """
        Returns the smallest batch of at least two groups with the same micro-batch: one optimizer step on it.

        >>> BatchPlan(16, rows=2, accumulation=8, slices=128, world=8, length=8192).smallest().num_completions
        32
        """
        whole = self.num_generations // math.gcd(self.num_generations, self.rows * self.world)
        if self.rows * self.world * whole < 2 * self.num_generations:
            whole *= 2
        if whole >= self.slices:
            return self
        return replace(self, slices=whole, accumulation=whole, iterations=1)


@dataclass(frozen=True)
class MemoryPlan:
    """
    What one device holds.

    Attributes:
        size (`ModelSize`):
            The model.
        num_trained (`float`):
            Parameters with gradient and optimizer state: all, or those of LoRA.
        weight_bytes (`float`), gradient_bytes (`float`), moment_bytes (`float`):
            Bytes a parameter: of the weights, and of each trained one's gradient and optimizer state.
        shards (`int`):
            Devices over which these are split.
        rows (`int`), tokens (`int`):
            Completions of a micro-batch, and tokens of each with its prompt.
        checkpoints (`bool`):
            Whether activations are computed again in the backward pass.
        number_bytes (`int`):
            Bytes of a number of the activations.
        engine_bytes (`float`):
            What vLLM takes. 0: transformers samples, with a KV cache for `cached_rows` rows.
        sleeps (`bool`):
            Whether vLLM gives its share back while the model trains.
        cached_rows (`int`):
            Rows that `generate` holds at once.
        engine_shards (`int`):
            Devices over which vLLM splits the model.
        engine_number_bytes (`int`):
            Bytes of a number of vLLM's weights and KV cache.
    """

    size: ModelSize
    num_trained: float
    weight_bytes: float
    gradient_bytes: float
    moment_bytes: float
    shards: int
    rows: int
    tokens: int
    checkpoints: bool
    number_bytes: int = 2
    engine_bytes: float = 0.0
    sleeps: bool = False
    cached_rows: int = 0
    engine_shards: int = 1
    engine_number_bytes: int = 2

    @property
    def state_bytes(self) -> float:
        """Weights, gradients and optimizer state."""
        trained = self.num_trained * (self.gradient_bytes + self.moment_bytes)
        adapter = 4 * self.num_trained if self.num_trained < self.size.num_parameters else 0
        return (self.weight_bytes * self.size.num_parameters + adapter + trained) / self.shards

    @property
    def activation_bytes(self) -> float:
        """What the forward pass of a micro-batch keeps. TRL computes logits in tiles, so they do not count."""
        numbers = self.rows * self.tokens * self.size.hidden_size * self.number_bytes / 2
        if self.checkpoints:
            return numbers * (_CHECKPOINT_BYTES * self.size.num_layers + _LAYER_BYTES)
        return numbers * _LAYER_BYTES * self.size.num_layers

    @property
    def sampler_bytes(self) -> float:
        """vLLM's share, or the KV cache of `generate`."""
        if self.engine_bytes:
            return self.engine_bytes
        return self.cached_rows * self.tokens * self.size.cache_bytes(self.number_bytes)

    @property
    def peak_bytes(self) -> float:
        """The most that is held at once."""
        is_apart = self.sleeps or not self.engine_bytes  # sampling and training do not overlap
        both = (self.activation_bytes, self.sampler_bytes)
        return self.state_bytes + (max(both) if is_apart else sum(both))

    @property
    def cached_tokens(self) -> float:
        """Tokens that vLLM's share holds beside the weights, over all devices of the engine."""
        weights = self.engine_number_bytes * self.size.num_parameters
        return (self.engine_bytes * self.engine_shards - weights) / self.size.cache_bytes(self.engine_number_bytes)

    def lines(self) -> list[str]:
        """Returns the arithmetic, one part a line."""
        size, trained = self.size, self.num_trained
        split = f" / {self.shards} devices" if self.shards > 1 else ""
        lora = f" + {trained:.4g} of LoRA x 4" if trained < size.num_parameters else ""
        passes = f"({_CHECKPOINT_BYTES} x {size.num_layers} + {_LAYER_BYTES})"
        passes = passes if self.checkpoints else f"{_LAYER_BYTES} x {size.num_layers} layers"
        lines = [
            f"{gb((self.weight_bytes * size.num_parameters + (4 * trained if lora else 0)) / self.shards)}  weights: "
            f"{size.num_parameters:.4g} parameters x {self.weight_bytes:g} bytes{lora}{split}",
            f"{gb(trained * self.gradient_bytes / self.shards)}  gradients: {trained:.4g} x {self.gradient_bytes:g} bytes{split}",
            f"{gb(trained * self.moment_bytes / self.shards)}  optimizer: {trained:.4g} x {self.moment_bytes:g} bytes{split}",
            f"{gb(self.activation_bytes)}  activations: {self.rows} rows x {self.tokens:,} tokens x {size.hidden_size} x {passes}"
            f"{' x 2 (float32)' if self.number_bytes == 4 else ''}",
        ]
        if self.engine_bytes:
            lines.append(
                f"{gb(self.engine_bytes)}  vLLM: of it {gb(self.engine_number_bytes * size.num_parameters / self.engine_shards).strip()} of weights and a KV cache "
                f"of {max(0, self.cached_tokens):,.0f} tokens, {max(0, self.cached_tokens) / self.tokens:,.0f} completions at full length"
            )
        elif self.cached_rows:
            lines.append(
                f"{gb(self.sampler_bytes)}  KV cache of generate: {self.cached_rows} rows x {self.tokens:,} tokens x "
                f"{size.cache_bytes(self.number_bytes):,} bytes"
            )
        apart = ", the larger of the last two: not at the same time" if self.sleeps or not self.engine_bytes else ""
        return [*lines, f"{gb(self.peak_bytes)}  together{apart}"]


def gb(count: float) -> str:
    """
    Returns bytes as GB, in eight columns.

    >>> gb(121.86e9)
    '121.9 GB'
    """
    return f"{count / 1e9:5.1f} GB" if count >= 5e7 else f"{count / 1e6:5.1f} MB"


def host_bytes(batch: BatchPlan, local_world: int) -> float:
    """Returns what a round holds on the host of `local_world` processes, when no completion ends before the limit."""
    return _ROUND * batch.num_completions / batch.world * local_world * batch.length * HOST_BYTES_PER_TOKEN


def sampling_seconds(num_completions: float, mean_length: float, efficiency: float, tokens_a_second: float) -> float:
    """Returns the seconds in which all engines sample a batch."""
    return num_completions * mean_length / efficiency / tokens_a_second


def training_seconds(size: float, num_tokens: float, num_gpus: int, flops: float = TRAINING_FLOPS) -> float:
    """Returns the seconds that a batch trains: 2 FLOP a parameter for old log-probabilities, 6 to train, 2 computed again."""
    return 10 * size * num_tokens / (num_gpus * flops)


def short_run_seconds(size: float, batch: BatchPlan, cores: int | None) -> float:
    """
    Returns a rough guess of the seconds of a generation batch at full length, before anything is measured.

    Args:
        size (`float`):
            Parameters.
        batch (`BatchPlan`):
            The batch.
        cores (`int`, *optional*):
            CPU cores of a run without GPUs.
    """
    speed = batch.world * _SHORT_RUN_FLOPS if cores is None else cores * _CORE_FLOPS
    return 12 * size * _ROUND * batch.num_completions * batch.length / speed


def run_hours(
    batch: BatchPlan,
    trial: BatchPlan,
    num_steps: float,
    seconds_sampling: float,
    seconds_training: float,
    overlap: bool = False,
) -> float:
    """
    Returns the hours of a recipe, from a batch and an optimizer step of a short run whose batches may be smaller.

    Args:
        batch (`BatchPlan`), trial (`BatchPlan`):
            Batches of the recipe and of the short run.
        num_steps (`float`):
            Optimizer steps of the recipe.
        seconds_sampling (`float`), seconds_training (`float`):
            Seconds of the short run to sample a batch, and for an optimizer step.
        overlap (`bool`, *optional*, defaults to `False`):
            Whether a batch is sampled while the one before it trains.

    >>> full = BatchPlan(8, rows=16, accumulation=4, slices=16, world=1, length=512)
    >>> round(run_hours(full, full, num_steps=400, seconds_sampling=20, seconds_training=4), 2)
    1.0
    >>> round(run_hours(full, full, num_steps=400, seconds_sampling=20, seconds_training=4, overlap=True), 2)
    0.56
    """
    sampling = num_steps / batch.num_updates * seconds_sampling * batch.num_completions / trial.num_completions
    training = num_steps * seconds_training * batch.accumulation / trial.accumulation
    return (max(sampling, training) if overlap else sampling + training) / 3600


def memory_plan(
    values: Mapping[str, Any],
    batch: BatchPlan,
    size: ModelSize,
    num_trained: float,
    shards: int,
    device_bytes: float,
    prompt_length: int = 300,
) -> MemoryPlan:
    """
    Returns what a device will hold.

    Args:
        values (`Mapping[str, Any]`):
            The options of the run, with their defaults.
        batch (`BatchPlan`), size (`ModelSize`):
            Its batches and its model.
        num_trained (`float`):
            Parameters that train.
        shards (`int`):
            Devices over which weights, gradients and optimizer state are split. 1: each has all.
        device_bytes (`float`):
            Memory of a GPU, of which vLLM takes a share. 0: vLLM is on the CPU.
        prompt_length (`int`, *optional*, defaults to 300):
            Tokens that are assumed for a prompt.
    """
    is_half = str(values["dtype"]) in ("bfloat16", "float16")
    is_whole = num_trained >= size.num_parameters
    weight: float = 2 if is_half else 4
    if shards > 1 and is_whole:
        weight = 4  # FSDP2 in mixed precision keeps float32 weights, ZeRO-3 a copy of them
    trained = weight if is_whole else 4  # LoRA's own weights are float32
    optimizer = str(values["optim"] or "adamw").lower()
    moments = 2.0 if "8bit" in optimizer else 2.0 * trained if "adam" in optimizer else float(trained)
    if "sgd" in optimizer or "adafactor" in optimizer:
        moments = 0
    if is_set(values["load_in_4bit"]):
        weight = 0.5
    elif is_set(values["load_in_8bit"]):
        weight = 1
    uses_engine = is_set(values["use_vllm"]) and str(values["vllm_mode"]) != "server"
    tensor_parallel = int(values["vllm_tensor_parallel_size"] or 1)
    engine = 0.0
    number = 4 if "float32" in str(values["vllm_engine_kwargs"]) else 2
    if uses_engine and device_bytes:
        engine = float(values["vllm_gpu_memory_utilization"]) * device_bytes
    elif uses_engine:
        engine = number * size.num_parameters + float(values.get("cpu_cache_gib") or 4) * 2**30
    computes_half = is_half or is_set(values["bf16"]) or is_set(values["fp16"])
    return MemoryPlan(
        size,
        num_trained,
        weight,
        trained,
        moments,
        shards,
        batch.rows,
        batch.length + prompt_length,
        is_set(values["gradient_checkpointing"]),
        number_bytes=2 if computes_half else 4,
        engine_bytes=engine,
        sleeps=bool(device_bytes) and uses_engine and is_set(values["vllm_enable_sleep_mode"]),
        cached_rows=0 if is_set(values["use_vllm"]) else batch.rows * batch.slices,
        engine_shards=tensor_parallel,
        engine_number_bytes=number,
    )


def proposals(plan: MemoryPlan, available: float, has_gpu: bool) -> list[str]:
    """
    Returns changes of the options, each of which makes the run fit; else what else would help.

    Args:
        plan (`MemoryPlan`):
            What does not fit.
        available (`float`):
            Bytes of the device.
        has_gpu (`bool`):
            Whether the device is a GPU.
    """
    size = plan.size
    changes: dict[str, MemoryPlan] = {}
    if not plan.checkpoints:
        changes["--gradient_checkpointing true"] = replace(plan, checkpoints=True)
    if plan.rows > 1:
        changes["--per_device_train_batch_size 1, and gradient_accumulation_steps as many times larger"] = replace(
            plan, rows=1
        )
    if plan.num_trained >= size.num_parameters:
        changes["--use_peft true --lora_r 32 (and a learning rate of 1e-5)"] = replace(
            plan, num_trained=0.01 * size.num_parameters, weight_bytes=2, moment_bytes=8, gradient_bytes=4, shards=1
        )
    if has_gpu and plan.engine_bytes and not plan.sleeps:
        changes["--vllm_enable_sleep_mode true"] = replace(plan, sleeps=True)
    if has_gpu:
        for shards in (2, 4, 8, 16, 32, 64):
            spread = replace(plan, shards=shards, weight_bytes=4, gradient_bytes=4, moment_bytes=8)
            if shards > plan.shards and spread.peak_bytes <= available:
                changes[f"--accelerate_config fsdp2 --num_processes {shards}, on so many GPUs"] = spread
                break
    fitting = [change for change, other in changes.items() if other.peak_bytes <= available]
    return fitting or ["a smaller model" + (", or more GPUs" if has_gpu else ", or a machine with GPUs")]
