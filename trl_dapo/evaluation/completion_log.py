"""The folder of an evaluation: its settings, and its completions as they come, so that a killed run can go on."""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


SETTINGS_FILE = "settings.json"
COMPLETIONS_FILE = "completions.jsonl"


class CompletionLog:
    """
    Completions on disk, one JSON object a line.

    What was added is on disk once `add` returns. A line that a killed process left unfinished is cut off. Use it as a
    context manager; one process at a time can.

    Args:
        folder (`Path`):
            The folder; it is made if it is not there.
        settings (`dict[str, Any]`):
            All that the completions depend on, as JSON.

    Attributes:
        records (`list[dict[str, Any]]`):
            The completions so far, in the order of their lines.

    Raises:
        `ValueError`: when the folder holds a run with other settings, completions without settings, or a line that is no
            completion.
        `BlockingIOError`: when another process evaluates into the folder.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / COMPLETIONS_FILE
        self._file = self.path.open("ab+")
        try:
            _lock(self._file.fileno(), folder)
            _check_settings(folder, settings, has_completions=self.path.stat().st_size > 0)
            self.records = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "CompletionLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Writes the completions of a batch, and waits until they are on disk."""
        self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.extend(records)

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            self._file.truncate(end)
        records = []
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                record = json.loads(line)
                record["problem"], record["sample"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"Line {number} of {self.path} is {line[:80]!r}, but must be a completion. Remove the line, and it is "
                    "sampled again."
                ) from error
            records.append(record)
        return records


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"Another process evaluates into {folder}. Wait for it, or choose another output_dir."
        ) from error


def _check_settings(folder: Path, settings: dict[str, Any], has_completions: bool) -> None:
    path = folder / SETTINGS_FILE
    if not path.exists():
        if has_completions:
            raise ValueError(
                f"{folder} has {COMPLETIONS_FILE} but no {SETTINGS_FILE}, so nobody knows how they were sampled. Choose "
                "another output_dir, or delete the file."
            )
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(settings, indent=2) + "\n")
        unfinished.replace(path)
        return
    there = json.loads(path.read_text())
    here = json.loads(json.dumps(settings))
    differences = [
        f"{name} is {here.get(name)!r} now and {there.get(name)!r} there"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]
    if differences:
        raise ValueError(
            f"output_dir is {str(folder)!r}, which holds an evaluation with other settings: {'; '.join(differences)}. "
            "Choose another output_dir, go on with the settings that are there, or delete the folder."
        )
