"""Loads checkpoints whose weights have other names than in the model, as for some vision-language models of transformers."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)


_ADAPTER_FILES = (ADAPTER_WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME)
# What decides how the weights of an adapter are used.
_ADAPTER_SETTINGS = (
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
)
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


def check_adapter(folder: str | Path, configs: Mapping[str, Any]) -> None:
    """
    Checks that the adapters of a checkpoint were made with the settings of those that train.

    With another `lora_alpha` the weights would fit, and mean something else.

    Args:
        folder (`str` or `Path`):
            The checkpoint.
        configs (`Mapping[str, PeftConfig]`):
            The adapters of this run by their names.

    Raises:
        `ValueError`: naming the settings that differ.
    """
    for name, config in configs.items():
        path = Path(folder, "" if name == "default" else name, CONFIG_NAME)
        if not path.is_file():
            continue
        saved, mine = json.loads(path.read_text()), config.to_dict()
        differing = [
            f"{field} is {_plain(mine.get(field))!r}, but was {_plain(saved.get(field))!r}"
            for field in _ADAPTER_SETTINGS
            if _plain(mine.get(field)) != _plain(saved.get(field))
        ]
        if differing:
            raise ValueError(
                f"The adapter in {folder} had other settings: {'; '.join(differing)}. Resume with its own peft_config, or begin "
                "without resume_from_checkpoint."
            )


def _plain(value: Any) -> Any:
    """Returns a setting as JSON has it: sets have no order, and enumerations are their values."""
    if isinstance(value, (set, list, tuple)):
        return sorted(value)
    return getattr(value, "value", value)
