"""The folder of an evaluation that is running: its settings and its completions, from which a killed evaluation goes on."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from trl_dapo.atomic_write import atomic_write


SETTINGS_FILE = "settings.json"
COMPLETIONS_FILE = "completions.jsonl"
# The operating system releases the lock when the process ends, however it ends. The file itself stays.
LOCK_FILE = ".evaluation.lock"


class CompletionRecord(TypedDict):
    """
    One completion: a line of `completions.jsonl`.

    Attributes:
        problem (`int`):
            Number of the problem in the dataset, from 0.
        sample (`int`):
            Number of the completion among those of its problem, 0 to k - 1.
        grade (`str`):
            Value of the `Grade` of its answer.
        answer (`str`, *optional*):
            The answer that was read from the completion. `None`: it has none.
        num_tokens (`int`):
            Tokens of the completion, the end token included.
        is_truncated (`bool`):
            Whether it reached the limit of tokens before its end.
        completion (`str`):
            Its text.
    """

    problem: int
    sample: int
    grade: str
    answer: str | None
    num_tokens: int
    is_truncated: bool
    completion: str


class CompletionLog:
    """
    Completions on disk, one JSON object per line. A context manager; one process at a time can open a folder.

    When `add` returns, its completions are on disk. If a process was killed while it wrote a line, the next one removes the
    incomplete line.

    Args:
        folder (`Path`):
            The folder. It is created if it does not exist.
        settings (`Mapping[str, Any]`):
            Everything that the completions depend on, as JSON.

    Attributes:
        records (`list[CompletionRecord]`):
            The completions so far, in the order of the lines.

    Raises:
        `ValueError`: when the folder holds an evaluation with other settings, completions without settings, or a line that is
            not a completion.
        `BlockingIOError`: when another process is evaluating into the folder.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / COMPLETIONS_FILE
        with ExitStack() as resources:
            resources.callback(_lock(folder).release)
            self._file = resources.enter_context(self.path.open("ab+"))
            _check_settings(folder, settings, has_completions=self.path.stat().st_size > 0)
            self.records = self._read()
            # Without an error they stay open until `__exit__`.
            self._resources = resources.pop_all()

    def __enter__(self) -> "CompletionLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def add(self, records: Sequence[CompletionRecord]) -> None:
        """Writes the completions of a batch, and waits until they are on disk."""
        self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.extend(records)

    def _read(self) -> list[CompletionRecord]:
        self._file.seek(0)
        content = self._file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            self._file.truncate(end)
        records = []
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                record: CompletionRecord = json.loads(line)
                record["problem"], record["sample"], record["grade"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"Line {number} of {self.path} is {line[:80]!r}, but must be a completion. Delete the line: its "
                    "completion is then sampled again."
                ) from error
            records.append(record)
        return records


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"Another process is evaluating into {folder}. Wait until it has finished, or choose another output_dir."
        ) from error
    return lock


def _check_settings(folder: Path, settings: Mapping[str, Any], has_completions: bool) -> None:
    """Writes the settings into a new folder. Refuses a folder with other settings."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        if has_completions:
            raise ValueError(
                f"{folder} holds {COMPLETIONS_FILE} but no {SETTINGS_FILE}, so the settings of its completions are unknown. "
                f"Choose another output_dir, or delete {COMPLETIONS_FILE}."
            )
        atomic_write(path, json.dumps(settings, indent=2) + "\n")
        return
    old = json.loads(path.read_text())
    new = json.loads(json.dumps(settings))
    differences = [
        f"{name} is {new.get(name)!r} (in the folder: {old.get(name)!r})"
        for name in sorted(new.keys() | old.keys())
        if new.get(name) != old.get(name)
    ]
    if differences:
        raise ValueError(
            f"output_dir is {str(folder)!r}, which holds an evaluation with other settings: {'; '.join(differences)}. "
            "Choose another output_dir, use the settings of the folder, or delete the folder."
        )
