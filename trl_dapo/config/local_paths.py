"""Tells a local path from the id of a repository on the Hub, without importing anything that takes time."""

import os
from pathlib import Path


# A name that ends with one of these is a file, even without a slash.
_DATA_SUFFIXES = frozenset({".jsonl", ".json", ".parquet"})


def require_existing(name: str, option: str) -> bool:
    """
    Returns whether a name is a local path, and refuses one that looks like a path but leads nowhere.

    Args:
        name (`str`):
            Local path or Hub id.
        option (`str`):
            The option with which the user gave it, for the error message.

    Raises:
        `FileNotFoundError`: `name` looks like a path, but there is no such file or folder.

    >>> require_existing("openai/gsm8k", "--dataset_name")
    False
    """
    if Path(name).expanduser().exists():
        return True
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or Path(name).suffix in _DATA_SUFFIXES:
        raise FileNotFoundError(
            f"{option} is {name!r}, which looks like a local path, but there is no such file or folder. Correct the path, or "
            "give the id of a Hub repository (`name` or `namespace/name`)."
        )
    return False
