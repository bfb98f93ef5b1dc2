"""Weights on their way to servers: as safetensors in a folder that trainer and servers see."""

import json
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from trl_dapo.atomic_write import sync_to_disk

from .weight_loader import INDEX_FILE


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A file is held in memory until it is full.
_BYTES_PER_FILE = 2**31
_SHARED_MEMORY = "/dev/shm"
_PREFIX = "trl-dapo-weights-"
_LOCK = "lock"


class Weights(NamedTuple):
    """
    Weights that servers can load.

    Attributes:
        run (`str`):
            Names the run.
        version (`str`):
            Names the weights. No other run, and no other step of this one, has the same.
        folder (`str`, *optional*):
            Where they are. `None`: they came on another way.
    """

    run: str
    version: str
    folder: str | None


class WeightFolder:
    """
    Writes the weights of a run, those of the last sync at a time.

    A version appears as a whole under its name, and never changes: a server reads it or does not find it.

    Args:
        base (`str`, *optional*):
            A folder on a disk that trainer and servers share. `None`: shared memory, for servers on this machine.
    """

    def __init__(self, base: str | None = None):
        if base is None:
            base = _SHARED_MEMORY if os.path.isdir(_SHARED_MEMORY) else tempfile.gettempdir()
            _remove_abandoned(base)
            self.is_shared_memory = True
        else:
            Path(base).mkdir(parents=True, exist_ok=True)
            self.is_shared_memory = False
        self.run = uuid.uuid4().hex[:12]
        # Only this user can read it, as with the files of `tempfile`.
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
        if not self.is_shared_memory:
            # A server on another machine may run as another user: who may read it, the folder above decides.
            self.path.chmod(0o755)
        self._lock = _locked(self.path)
        self._num_written = 0
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def write(self, named_weights: Iterable[tuple[str, torch.Tensor]]) -> Weights:
        """
        Writes weights, and removes those before.

        Args:
            named_weights (`Iterable[tuple[str, torch.Tensor]]`):
                Names and values. All are read, also after a failure: gathering the next one is a collective.

        Raises:
            `OSError`: they do not fit, or the folder cannot be written.
        """
        self._num_written += 1
        version = f"{self.run}/{self._num_written}"
        place = self.path / str(self._num_written)
        partial = place.with_suffix(".partial")
        failure: Exception | None = None
        files: list[str] = []
        held: dict[str, torch.Tensor] = {}
        try:
            partial.mkdir()
        except OSError as error:
            failure = error
        for name, weight in named_weights:
            if failure is None:
                try:
                    held[name] = weight.detach().to("cpu", copy=True).contiguous()
                    if sum(tensor.nbytes for tensor in held.values()) >= _BYTES_PER_FILE:
                        files.append(self._write_file(partial, len(files), held))
                        held = {}
                except Exception as error:
                    failure = error
        if failure is not None:
            shutil.rmtree(partial, ignore_errors=True)
            raise failure
        if held:
            files.append(self._write_file(partial, len(files), held))
        (partial / INDEX_FILE).write_text(json.dumps({"version": version, "files": files}), encoding="utf-8")
        if not self.is_shared_memory:
            sync_to_disk(partial / INDEX_FILE)
            sync_to_disk(partial)
        partial.rename(place)
        return Weights(self.run, version, str(place))

    def remove_older(self) -> None:
        """Removes all but the last weights. A server that is restarted may need those."""
        for path in self.path.iterdir():
            if path.is_dir() and path.name != str(self._num_written):
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Removes the folder."""
        self._remove()

    def _write_file(self, folder: Path, number: int, weights: dict[str, torch.Tensor]) -> str:
        path = folder / f"weights-{number:05}.safetensors"
        save_file(weights, path)
        if not self.is_shared_memory:
            path.chmod(0o644)
            sync_to_disk(path)
        return path.name


def _locked(folder: Path) -> Any:
    """Returns a file in a folder that is locked as long as this process lives; it appears under its name when it is."""
    if fcntl is None:
        return None
    new = folder / f"{_LOCK}.new"
    file = new.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    new.rename(folder / _LOCK)
    return file


def _remove_abandoned(base: str) -> None:
    """Removes what runs left that were killed. Numbers of processes would not tell: another container has the same ones."""
    if fcntl is None:
        return
    for folder in Path(base).glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / _LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
