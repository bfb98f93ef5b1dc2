"""
A LoRA adapter as a colocated vLLM engine has it: beside the base weights, which do not train and come only once.

Each sync gives the engine the adapter as a new one with a name and a number of its own. vLLM's prefix cache tells adapters
apart by name, and what it computed for one number it does not take for another.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from trl_dapo.trl_seams import ignored_of_adapter, is_loading_under_adapters, model_runner_of, replaced


# The values of vLLM's `max_lora_rank`.
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Fields of a `LoraConfig` under which a layer still computes W x + scaling * B A x. Any other than its default makes something
# that vLLM does not compute, or trains more than A and B.
_PLAIN_FIELDS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "peft_type",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}


class EngineAdapter:
    """
    The adapter under training, and its copy in an engine.

    Args:
        model ([`~peft.PeftModel`]):
            The model under training.

    Attributes:
        request (`vllm.lora.request.LoRARequest` or `None`):
            What a request to the engine names the adapter by; `None` before the first `load`.
        has_base (`bool`):
            Whether the engine has the base weights of the model.

    Raises:
        `ValueError`: vLLM does not compute this adapter, or more than the adapter trains.
    """

    def __init__(self, model: Any):
        check_adapter(model)
        self.model: PeftModel = model
        self.request: Any = None
        self.has_base = False
        self._num_loads = 0
        self.max_rank = _engine_rank(max(a.size(0) for name, a in _matrices(model) if _is_a(name)))

    @property
    def engine_options(self) -> dict[str, Any]:
        """What the engine is built with."""
        return {"enable_lora": True, "max_loras": 1, "max_lora_rank": self.max_rank}

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside it, TRL reads the base weights as they are, not merged with the adapter."""
        with (
            replaced(self.model, "merge_adapter", lambda: None),
            replaced(self.model, "unmerge_adapter", lambda: None),
        ):
            yield

    def load(self, llm: Any) -> int:
        """
        Gives an engine the adapter as it is, in place of the one before.

        Args:
            llm (`vllm.LLM`):
                The engine, awake and without requests.

        Returns:
            `int`: bytes of the adapter.

        Raises:
            `ValueError`: more than the adapter trains, or the engine has no layer for a part of it.
        """
        from vllm.lora.request import LoRARequest

        _check_that_only_the_adapter_trains(self.model)
        engine = llm.llm_engine
        dtype = engine.vllm_config.lora_config.lora_dtype
        matrices = {name: matrix.to(dtype).contiguous() for name, matrix in _matrices(self.model)}
        self._num_loads += 1
        with tempfile.TemporaryDirectory(prefix="trl-dapo-adapter-") as folder:
            save_adapter(Path(folder), matrices)
            request = LoRARequest(f"policy-{self._num_loads}", self._num_loads, folder)
            if self.request is not None:
                engine.remove_lora(self.request.lora_int_id)
            engine.add_lora(request)
        ignored = ignored_of_adapter(model_runner_of(llm), request.lora_int_id)
        if ignored:
            raise ValueError(
                f"vllm_adapter_sync is 'adapter', but vLLM's model has no layer for {ignored[0]!r}, nor for "
                f"{len(ignored) - 1} others of the adapter: it would sample without them. Leave them out of the "
                'target_modules, or set vllm_adapter_sync="merged".'
            )
        self.request = request
        return sum(matrix.numel() * matrix.element_size() for matrix in matrices.values())


def check_adapter(model: Any) -> None:
    """
    Refuses a model whose adapter an engine cannot have beside the base weights.

    Args:
        model (`Any`):
            The model under training.

    Raises:
        `ValueError`: with the reason.
    """
    if not isinstance(model, PeftModel):
        raise _refused("the model has no adapter", "Pass a peft_config")
    if len(model.active_adapters) != 1:
        raise _refused(f"the adapters {model.active_adapters} are active at once", "Activate one with set_adapter")
    config = model.peft_config[model.active_adapter]
    if config.peft_type != PeftType.LORA:
        raise _refused(f"the adapter is of the kind {config.peft_type}, and vLLM only takes LoRA", "Use a LoraConfig")
    plain = LoraConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in _PLAIN_FIELDS and value != getattr(plain, field.name, None):
            raise _refused(
                f"the LoraConfig has {field.name}={value!r}: then a layer is more than W x + scaling * B A x, and vLLM "
                "computes only this",
                f"Leave {field.name} at {getattr(plain, field.name, None)!r}",
            )
    if getattr(model.get_base_model(), "is_quantized", False):
        raise _refused(
            "the base weights are quantized, and how they reach the engine is not tested", "Load the model unquantized"
        )
    if not is_loading_under_adapters():
        raise _refused(
            "this vLLM cannot load base weights into layers that have adapters", "Install vLLM 0.31 or newer"
        )
    _check_that_only_the_adapter_trains(model)


def save_adapter(folder: Path, matrices: dict[str, torch.Tensor]) -> None:
    """
    Writes an adapter as PEFT does, for vLLM to read.

    Args:
        folder (`Path`):
            Where to.
        matrices (`dict[str, torch.Tensor]`):
            By PEFT's names, the scaling in B.
    """
    save_file(matrices, folder / "adapter_model.safetensors")
    rank = max(matrix.size(0) for name, matrix in matrices.items() if _is_a(name))
    # A scaling of 1: the scaling of a layer may differ from that of others, and vLLM knows one for all.
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": []}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _matrices(model: PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields A and scaling * B of each layer, by PEFT's names."""
    adapter = model.active_adapter
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        layer: Any = module
        if adapter in layer.lora_A:
            yield f"{name}.lora_A.weight", layer.lora_A[adapter].weight.detach()
            yield f"{name}.lora_B.weight", layer.lora_B[adapter].weight.detach().float() * layer.scaling[adapter]
        elif adapter in layer.lora_embedding_A:
            yield f"{name}.lora_embedding_A", layer.lora_embedding_A[adapter].detach()
            yield f"{name}.lora_embedding_B", layer.lora_embedding_B[adapter].detach().float() * layer.scaling[adapter]


def _is_a(name: str) -> bool:
    return name.endswith(("lora_A.weight", "lora_embedding_A"))


def _engine_rank(rank: int) -> int:
    for at_most in ENGINE_RANKS:
        if rank <= at_most:
            return at_most
    raise _refused(f"the adapter has rank {rank}, and vLLM takes up to {ENGINE_RANKS[-1]}", "Lower r or rank_pattern")


def _check_that_only_the_adapter_trains(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and model.prefix not in name:
            raise _refused(
                f"{name} trains too, and only the adapter reaches the engine", "Freeze it with requires_grad_(False)"
            )


def _refused(reason: str, fix: str) -> ValueError:
    return ValueError(f"vllm_adapter_sync is 'adapter', but {reason}. {fix}, or set vllm_adapter_sync=\"merged\".")
