"""The last part of a checkpoint, which needs no trainer: files to disk, hashes, the manifest, older checkpoints."""

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from .files import FileRecord, checkpoints_of, is_unfinished, mark_whole


# Below it a checkpoint is on disk within a second, which is not worth a thread. And a small one is whole when the trainer goes
# on, as with transformers: whoever looks into its folder then, finds it so.
MIN_BYTES_BESIDE = 256 * 2**20
# Callbacks of transformers that read a checkpoint when it is saved if this variable of the environment says so.
_ASKED_BY_VARIABLE = {"WandbCallback": "WANDB_LOG_MODEL", "MLflowCallback": "HF_MLFLOW_LOG_ARTIFACTS"}


@dataclass(frozen=True, slots=True)
class WrittenCheckpoint:
    """
    A checkpoint that all ranks have written, and that is not marked as whole yet.

    Attributes:
        folder (`str`):
            The checkpoint.
        records (`Sequence[FileRecord]`):
            The files of this package, of all ranks that write into this folder.
        save_total_limit (`int`, *optional*):
            Most checkpoints that are kept. `None` or 0: all.
        best_checkpoint (`str`, *optional*):
            One that is kept in any case.
    """

    folder: str
    records: Sequence[FileRecord]
    save_total_limit: int | None = None
    best_checkpoint: str | None = None

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in Path(self.folder).rglob("*") if path.is_file())

    def finish(self) -> None:
        """Marks it as whole, and only then deletes the checkpoints beyond the limit, and those that were never finished."""
        mark_whole(self.folder, self.records)
        run_dir, limit = str(Path(self.folder).parent), self.save_total_limit
        if limit is not None and limit > 0:
            for path in filter(is_unfinished, checkpoints_of(run_dir)):
                shutil.rmtree(path, ignore_errors=True)
            rotate_checkpoints(run_dir, limit, self.best_checkpoint, use_mtime=True)


class AsyncFinalization:
    """
    Does the last part of a checkpoint in a thread, beside the next training step. One at a time.

    A process that is killed meanwhile leaves a checkpoint that says that it is unfinished, and the one before, which is not
    deleted earlier.

    Example:

    >>> finalization, done = AsyncFinalization(), []
    >>> finalization.begin(lambda: done.append("manifest"))
    >>> finalization.wait()
    >>> done
    ['manifest']
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, finish: Callable[[], object]) -> None:
        """Calls a function in a thread, when what began before has ended."""
        self.wait()

        def work() -> None:
            try:
                finish()
            except BaseException as error:
                self._error = error

        # Not a daemon: a process that ends by itself ends the checkpoint before.
        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits for what began last, and raises what it raised, once."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


def read_checkpoints(callbacks: Iterable[TrainerCallback]) -> bool:
    """
    Returns whether callbacks may read a checkpoint as soon as it is saved, so that it must be whole then.

    Args:
        callbacks (`Iterable[TrainerCallback]`):
            Those of the trainer.

    Example:

    >>> from transformers import PrinterCallback
    >>> class Upload(TrainerCallback):
    ...     def on_save(self, args, state, control, **kwargs): ...
    >>> read_checkpoints([PrinterCallback()]), read_checkpoints([PrinterCallback(), Upload()])
    (False, True)
    """
    return any(map(_reads_checkpoints, callbacks))


def _reads_checkpoints(callback: TrainerCallback) -> bool:
    cls = type(callback)
    if cls.on_save is TrainerCallback.on_save:
        return False
    variable = _ASKED_BY_VARIABLE.get(cls.__name__) if cls.__module__.startswith("transformers.") else None
    return variable is None or os.environ.get(variable, "").lower() not in ("", "0", "false")
