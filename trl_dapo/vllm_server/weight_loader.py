"""
What a vLLM server needs for a trainer: `--worker-extension-cls trl_dapo.vllm_server.weight_loader.WeightLoader`.

It runs in the workers of the server. vLLM adds its methods to theirs, and the trainer calls them by name.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from trl_dapo.trl_seams import worker_state, worker_weights_loaded_by


INDEX_FILE = "weights.json"


class WeightLoader:
    """Loads weights from a folder, and says which ones are loaded. It raises nothing: what goes wrong is in the answer."""

    def dapo_state(self) -> dict[str, Any]:
        """Returns which weights are loaded, and what a trainer has to know of the engine."""
        return worker_state(self) | {"version": getattr(self, "_dapo_version", None)}

    def dapo_load_weights(self, folder: str, version: str) -> dict[str, Any]:
        """
        Loads the weights of a folder.

        Args:
            folder (`str`):
                What [`WeightFolder`] wrote.
            version (`str`):
                Which weights they are. A folder that says something else is not loaded.
        """
        try:
            index = json.loads(Path(folder, INDEX_FILE).read_text(encoding="utf-8"))
            if index["version"] != version:
                return {"error": f"{folder} has the weights {index['version']}, not {version}"}
            # In between it is neither.
            self._dapo_version: str | None = None
            with torch.inference_mode():
                worker_weights_loaded_by(self, weights_of(folder, index["files"]))
            self._dapo_version = version
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"version": version}

    def dapo_note_version(self, version: str) -> dict[str, Any]:
        """Notes which weights are loaded, where they came on another way."""
        self._dapo_version = version
        return {"version": version}


def weights_of(folder: str | Path, files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """
    Yields names and values of the weights in a folder.

    Args:
        folder (`str` or `Path`):
            The folder.
        files (`list[str]`):
            Names of its safetensors files.

    Raises:
        `ValueError`: a name leads out of the folder.
    """
    for file in files:
        if Path(file).name != file:
            raise ValueError(f"{file!r} is no name of a file in {folder}")
        with safe_open(str(Path(folder, file)), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                yield name, tensors.get_tensor(name)
