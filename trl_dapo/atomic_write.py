"""Writes a file so that other processes see its old content or its new content, and nothing in between."""

import os
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: str | Path, content: str | bytes | Callable[[Path], object], is_flushed: bool = True) -> None:
    """
    Writes a file in one step: into a temporary file in the same folder, which is renamed when it is on disk.

    When `atomic_write` returns, the file is on disk under its name. If it fails, or the process is killed, the file has its
    old content. After a failure the temporary file is removed; a killed process leaves it behind, and the next write of the
    same path replaces it. So two processes must not write the same path at the same time.

    Args:
        path (`str` or `Path`):
            The file. Its folder must exist. It gets the permissions that `open` gives to a new file.
        content (`str`, `bytes` or `Callable[[Path], object]`):
            A text (written as UTF-8, line ends unchanged), bytes, or a function that writes the file whose path it gets.
        is_flushed (`bool`, *optional*, defaults to `True`):
            `False`: file and folder are not on disk yet. A machine that loses its power may leave any content, or none.

    Raises:
        `OSError`: when the file cannot be written, for example on a full disk.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atomic_write(Path(folder, "a.txt"), "text")
    ...     atomic_write(Path(folder, "b.txt"), lambda path: path.write_bytes(b"bytes"))
    ...     sorted((path.name, path.read_bytes()) for path in Path(folder).iterdir())
    [('a.txt', b'text'), ('b.txt', b'bytes')]
    """
    path = Path(path)
    # Readers of a folder pass over names that begin with a dot.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        mode = _mode_of_new_file(temporary)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        # Some libraries create files that only their owner can read (safetensors does).
        temporary.chmod(mode)
        if is_flushed:
            sync_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # The new name is an entry of the folder, which has to be on disk too.
    if is_flushed:
        sync_to_disk(path.parent)


def sync_to_disk(path: str | Path) -> None:
    """
    Waits until a file, or the list of files in a folder, is on disk.

    Args:
        path (`str` or `Path`):
            The file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode_of_new_file(path: Path) -> int:
    """Returns the mode that the umask gives to a new file. The umask itself can only be read by changing it."""
    path.unlink(missing_ok=True)
    path.touch()
    try:
        return path.stat().st_mode
    finally:
        path.unlink()
