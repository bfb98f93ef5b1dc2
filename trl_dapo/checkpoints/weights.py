"""Weights of a checkpoint that do not have the names of the model: as transformers saves some vision-language models."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def unloaded(model: torch.nn.Module, missing_names: Iterable[str]) -> list[str]:
    """
    Returns those of the missing names whose weights are not those of another name, which was loaded.

    Args:
        model (`torch.nn.Module`):
            The model, after a state was loaded into it.
        missing_names (`Iterable[str]`):
            Names of the model that the state did not have.

    Example:

    >>> tied = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    >>> tied["b"].weight = tied["a"].weight
    >>> unloaded(tied, ["b.weight", "b.bias"])
    ['b.bias']
    """
    state, missing = model.state_dict(), set(missing_names)
    loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
    return [name for name in state if name in missing and state[name].data_ptr() not in loaded]


def load_renamed(model: Any, folder: str | Path) -> None:
    """
    Loads the weights of a folder by `from_pretrained`, which knows under which names transformers has saved them.

    Args:
        model (`PreTrainedModel`):
            The model that gets them.
        folder (`str` or `Path`):
            A folder that `save_pretrained` wrote.

    Raises:
        `ValueError`: it does not hold all weights of the model.
    """
    read, report = type(model).from_pretrained(
        folder, dtype=model.dtype, output_loading_info=True, trust_remote_code=False
    )
    if report["missing_keys"]:
        raise ValueError(
            f"{folder} does not hold all weights of the model: {sorted(report['missing_keys'])} are missing. Resume from "
            "another checkpoint, or from one of a model like this."
        )
    model.load_state_dict(read.state_dict())
