"""The last part of a checkpoint, which needs no trainer: files to disk, hashes, the manifest, older checkpoints."""

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from .files import FileRecord, checkpoints_of, is_unfinished, mark_whole


# Below it a checkpoint is on disk within a second, which is not worth a thread. And a small one is whole when the trainer goes
# on, as with transformers: whoever looks into its folder then, finds it so.
MIN_BYTES_BESIDE = 256 * 2**20
# Of several ranks, state below it is flushed and hashed at once: to agree on it in a thread, they need connections of their own.
MIN_STATE_BYTES_BESIDE = 64 * 2**20
# Callbacks of transformers that read a checkpoint when it is saved if this variable of the environment says so.
_ASKED_BY_VARIABLE = {"WandbCallback": "WANDB_LOG_MODEL", "MLflowCallback": "HF_MLFLOW_LOG_ARTIFACTS"}


@dataclass(frozen=True, slots=True)
class WrittenCheckpoint:
    """
    A checkpoint that all ranks have written, and that is not marked as whole yet.

    Attributes:
        folder (`str`):
            The checkpoint.
        save_total_limit (`int`, *optional*):
            Most checkpoints that are kept. `None` or 0: all.
        best_checkpoint (`str`, *optional*):
            One that is kept in any case.
        is_of_node (`bool`, *optional*, defaults to `False`):
            Whether each node has a folder of its own, with the files of its ranks alone.
    """

    folder: str
    save_total_limit: int | None = None
    best_checkpoint: str | None = None
    is_of_node: bool = False

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in Path(self.folder).rglob("*") if path.is_file())

    def finish(self, records: Sequence[FileRecord]) -> None:
        """
        Marks it as whole, and only then deletes the checkpoints beyond the limit, and those that were never finished.

        Args:
            records (`Sequence[FileRecord]`):
                The files of this package, of all ranks, which are on disk.
        """
        if self.is_of_node:
            records = [record for record in records if Path(self.folder, record.name).exists()]
        mark_whole(self.folder, records)
        run_dir, limit = str(Path(self.folder).parent), self.save_total_limit
        if limit is not None and limit > 0:
            for path in filter(is_unfinished, checkpoints_of(run_dir)):
                shutil.rmtree(path, ignore_errors=True)
            rotate_checkpoints(run_dir, limit, self.best_checkpoint, use_mtime=True)


def finish_together(
    flush: Callable[[], list[FileRecord]],
    gather: Callable[[list[Any]], list[Any]],
    written: WrittenCheckpoint | None,
) -> None:
    """
    Finishes a checkpoint when all ranks have their files on disk. On all ranks.

    If one of them fails, the checkpoint stays unfinished. What happened is raised there, and the other ranks are told where all
    wait for the end of this.

    Args:
        flush (`Callable[[], list[FileRecord]]`):
            Returns the records of this rank's files once they are on disk.
        gather (`Callable[[list], list]`):
            Returns the objects of all ranks. Called once on each rank, whatever happens.
        written (`WrittenCheckpoint`, *optional*):
            The checkpoint, on a rank that marks it as whole. `None`: another rank does.
    """
    records: list[FileRecord] | None = None
    failure: Exception | None = None
    try:
        records = flush()
    except Exception as error:
        failure = error
    of_ranks = gather([records])
    if failure is not None:
        raise failure
    if written is not None and all(of_rank is not None for of_rank in of_ranks):
        written.finish([record for of_rank in of_ranks for record in of_rank])


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
