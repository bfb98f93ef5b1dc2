"""Loads checkpoints whose weights have other names than in the model, as for some vision-language models of transformers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)


_ADAPTER_FILES = (ADAPTER_WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME)
_MODEL_FILES = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)


def unloaded(model: torch.nn.Module, missing_names: Iterable[str]) -> list[str]:
    """
    Returns the missing names whose weights were not loaded under another name either. Tied weights have several names.

    Args:
        model (`torch.nn.Module`):
            The model, after a state was loaded into it.
        missing_names (`Iterable[str]`):
            Names in the model that were not in the state.

    Example:

    >>> tied = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    >>> tied["b"].weight = tied["a"].weight
    >>> unloaded(tied, ["b.weight", "b.bias"])
    ['b.bias']
    """
    state, missing = model.state_dict(), set(missing_names)
    loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
    return [name for name in state if name in missing and state[name].data_ptr() not in loaded]


def load_renamed(model: torch.nn.Module, folder: str | Path) -> None:
    """
    Loads the weights in a folder with `from_pretrained`, which knows the names that transformers gives them in a file.

    Args:
        model (`PreTrainedModel`):
            The model to load into.
        folder (`str` or `Path`):
            A folder that `save_pretrained` wrote.

    Raises:
        `ValueError`: when the folder does not hold all weights of the model.
    """
    model_class: Any = type(model)
    read, report = model_class.from_pretrained(
        folder, dtype=model.dtype, output_loading_info=True, trust_remote_code=False
    )
    if report["missing_keys"]:
        raise ValueError(
            f"{folder} does not hold all weights of the model: {sorted(report['missing_keys'])} are missing. Resume from "
            "a checkpoint of this model that has them."
        )
    model.load_state_dict(read.state_dict())


def check_kind_of_weights(folder: str | Path, is_adapter: bool) -> None:
    """
    Checks that a checkpoint holds an adapter if one is trained, and a whole model otherwise.

    Args:
        folder (`str` or `Path`):
            The checkpoint. Where it has neither in a known file, as with FSDP, nothing is checked.
        is_adapter (`bool`):
            Whether the run trains an adapter.

    Raises:
        `ValueError`: when it holds the other kind.
    """
    # With several adapters, each has a folder of its own.
    has_adapter = any(any(Path(folder).glob(pattern + name)) for name in _ADAPTER_FILES for pattern in ("", "*/"))
    has_model = any(Path(folder, name).is_file() for name in _MODEL_FILES)
    if has_adapter and not is_adapter:
        raise ValueError(
            f"{folder} holds an adapter (LoRA), but the model of this run has none. Pass the peft_config of the saved run, "
            "or merge the adapter into its base model, and train the merged model from the beginning."
        )
    if has_model and not has_adapter and is_adapter:
        raise ValueError(
            f"{folder} holds the weights of a whole model, but this run trains an adapter. Leave peft_config away, or pass "
            "the folder as model and train the adapter from the beginning, without resume_from_checkpoint."
        )
