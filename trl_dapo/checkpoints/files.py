"""
The manifest of a checkpoint, which says whether it is complete, and the files with the state of this package.

The manifest is the first file of a checkpoint, and then says "unfinished". It is also the last file: then it lists the files
that a resumed run reads, with their sizes and SHA-256. Each file of this package gets its name when it is complete, and all files
are on disk before the last manifest is written. So a checkpoint is either complete, or `find_fault` says what is wrong with it,
whatever ended the process. The format is JSON and safetensors, never pickle.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trl_dapo.atomic_write import atomic_write, sync_to_disk


MANIFEST = "dapo_manifest.json"
STATE_FOLDER = "dapo_state"
TRAINER_STATE = "trainer_state.json"
CUT_OFF = "it was cut off while it was written"
_MANIFEST_VERSION = 1
# Files of other libraries that a resumed run reads. All others (model card, tokenizer) may change later.
_LISTED_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".distcp", ".metadata")
# Larger files of other libraries are not hashed, because it would take seconds: only their size is compared.
_MAX_HASHED_BYTES = 64 * 2**20
_TENSOR = "__tensor__"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """
    One file in the manifest.

    Attributes:
        name (`str`):
            Path relative to the checkpoint folder, with forward slashes.
        num_bytes (`int`):
            Size.
        sha256 (`str`, *optional*):
            Hash of the content, hexadecimal. `None`: not hashed.
    """

    name: str
    num_bytes: int
    sha256: str | None = None

    @classmethod
    def of(cls, folder: str | Path, name: str, is_hashed: bool = True) -> "FileRecord":
        """Returns the record of a file in the checkpoint `folder`, with its hash if `is_hashed`."""
        path = Path(folder, name)
        digest = None
        if is_hashed:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(name, path.stat().st_size, digest)

    def find_fault(self, folder: str | Path) -> str | None:
        """Returns how the file on disk differs from the record; `None`: it does not differ."""
        path = Path(folder, self.name)
        if not path.is_file():
            return f"{self.name} is missing"
        if path.stat().st_size != self.num_bytes:
            return f"{self.name} has {path.stat().st_size} bytes instead of {self.num_bytes}"
        if self.sha256 is not None and FileRecord.of(folder, self.name).sha256 != self.sha256:
            return f"{self.name} has changed since it was written (its SHA-256 differs)"
        return None


# Whether a checkpoint is complete


def mark_unfinished(folder: str | Path) -> None:
    """
    Marks a checkpoint as unfinished. Call it before any file of the checkpoint is written.

    Args:
        folder (`str` or `Path`):
            The checkpoint. It is created if it does not exist.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    _write_json(Path(folder, MANIFEST), {"version": _MANIFEST_VERSION, "is_whole": False})


def mark_whole(folder: str | Path, records: Iterable[FileRecord]) -> None:
    """
    Marks a checkpoint as complete. Call it when every process has written its files.

    Args:
        folder (`str` or `Path`):
            The checkpoint.
        records (`Iterable[FileRecord]`):
            The files of this package, from all processes that write into this folder. The files of other libraries are found
            in the folder, and flushed to disk.
    """
    own = {record.name: record for record in records}
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    for path in paths:
        name = path.relative_to(folder).as_posix()
        # `endswith`, not `suffix`: the index of a sharded checkpoint is named `.metadata`, which has no suffix.
        if name not in own and (path.name == TRAINER_STATE or path.name.endswith(_LISTED_SUFFIXES)):
            sync_to_disk(path)
            own[name] = FileRecord.of(folder, name, is_hashed=path.stat().st_size <= _MAX_HASHED_BYTES)
    files = [asdict(record) for record in own.values()]
    _write_json(Path(folder, MANIFEST), {"version": _MANIFEST_VERSION, "is_whole": True, "files": files})


def find_fault(folder: str | Path) -> str | None:
    """
    Returns what is wrong with a checkpoint; `None`: it is complete.

    A checkpoint without a manifest, such as one of `GRPOTrainer`, counts as complete if it has a `trainer_state.json`.

    Args:
        folder (`str` or `Path`):
            The checkpoint.
    """
    if not Path(folder).is_dir():
        return "there is no such folder"
    if not Path(folder, MANIFEST).exists():
        return None if Path(folder, TRAINER_STATE).exists() else CUT_OFF
    try:
        manifest = json.loads(Path(folder, MANIFEST).read_text())
        is_whole, files = manifest["is_whole"], manifest.get("files", [])
        records = [FileRecord(**record) for record in files]
    except (ValueError, TypeError, KeyError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    if not is_whole:
        return CUT_OFF
    return next((fault for record in records if (fault := record.find_fault(folder))), None)


def is_unfinished(folder: str | Path) -> bool:
    """Returns whether the manifest of a checkpoint says that it was never finished."""
    try:
        return not json.loads(Path(folder, MANIFEST).read_text())["is_whole"]
    except (OSError, ValueError, TypeError, KeyError):
        return False


def checkpoints_of(output_dir: str | Path) -> list[Path]:
    """Returns the checkpoint folders of a run, the newest first."""
    numbered = [
        (int(match[1]), path)
        for path in (Path(output_dir).iterdir() if Path(output_dir).is_dir() else [])
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def last_whole_checkpoint(output_dir: str | Path) -> tuple[Path | None, dict[str, str]]:
    """Returns the newest complete checkpoint of a run (`None`: there is none), and the faults of the newer ones by path."""
    faults: dict[str, str] = {}
    for path in checkpoints_of(output_dir):
        fault = find_fault(path)
        if fault is None:
            return path, faults
        faults[str(path)] = fault
    return None, faults


# State files


def write_state(folder: str | Path, name: str, state: Mapping[str, Any]) -> list[FileRecord]:
    """
    Writes a state into a checkpoint: values into `<name>.json`, tensors at any depth into `<name>.safetensors`.

    Args:
        folder (`str` or `Path`):
            The checkpoint.
        name (`str`):
            Name of the files in the state folder, without suffix.
        state (`Mapping[str, Any]`):
            Mappings with text keys, lists, numbers (NaN included), texts, `None` and tensors. A tuple is read back as a
            list. Any other value is stored as a number if it has an `item()`, else as text.

    Returns:
        `list[FileRecord]`: The files.
    """
    return flushed_records(folder, write_state_unflushed(folder, name, state))


def flushed_records(folder: str | Path, names: Sequence[str]) -> list[FileRecord]:
    """
    Waits until state files are on disk, and returns their records.

    Args:
        folder (`str` or `Path`):
            The checkpoint.
        names (`Sequence[str]`):
            What `write_state_unflushed` returned.
    """
    for name in names:
        sync_to_disk(Path(folder, name))
    # Their names are entries of the folder, which has to be on disk too.
    sync_to_disk(Path(folder, STATE_FOLDER))
    return [FileRecord.of(folder, name) for name in names]


def write_state_unflushed(folder: str | Path, name: str, state: Mapping[str, Any]) -> list[str]:
    """As `write_state`, but the files need not be on disk yet. Returns their names relative to the checkpoint."""
    Path(folder, STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    values = _without_tensors(state, tensors)
    names = [f"{STATE_FOLDER}/{name}.json"]
    _write_json(Path(folder, names[0]), values, is_flushed=False)
    if tensors:
        names.append(f"{STATE_FOLDER}/{name}.safetensors")
        atomic_write(Path(folder, names[1]), lambda path: save_file(tensors, path), is_flushed=False)
    return names


def read_state(folder: str | Path, name: str) -> dict[str, Any] | None:
    """Returns a state that `write_state` wrote, with its tensors on the CPU; `None`: there is no state of this name."""
    path = Path(folder, STATE_FOLDER, f"{name}.json")
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    tensors_path = path.with_suffix(".safetensors")
    state: dict[str, Any] = _with_tensors(values, load_file(tensors_path) if tensors_path.exists() else {})
    return state


def _without_tensors(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        key = str(len(tensors))
        # A copy, because safetensors refuses tensors that share memory, as the parts of a batch do.
        tensors[key] = tree.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: key}
    if isinstance(tree, Mapping):
        return {str(key): _without_tensors(value, tensors) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_without_tensors(value, tensors) for value in tree]
    return tree


def _with_tensors(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, dict):
        if tree.keys() == {_TENSOR}:
            return tensors[tree[_TENSOR]]
        return {key: _with_tensors(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_tensors(value, tensors) for value in tree]
    return tree


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _write_json(path: Path, values: Any, is_flushed: bool = True) -> None:
    atomic_write(path, json.dumps(values, default=_plain), is_flushed)
