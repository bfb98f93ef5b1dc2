"""Loads checkpoints whose weights have other names than in the model, as for some vision-language models of transformers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


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
