"""What the record of a benchmark says of where it was made."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("torch", "transformers", "trl", "accelerate")


def git(*arguments: str) -> str:
    """Returns what git says of this repository; nothing where there is none."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def provenance(packages: tuple[str, ...] = TRAINING, num_cores: int | None = None) -> dict[str, Any]:
    """
    Returns commit, hardware and versions.

    Args:
        packages (`tuple[str, ...]`):
            Whose versions are told, with Python's.
        num_cores (`int`, *optional*):
            Cores used, where it is not all of them.
    """
    cores = f"{os.cpu_count()} CPU cores"
    return {
        "commit": git("rev-parse", "HEAD"),
        "hardware": f"{cores if num_cores is None else f'{num_cores} of {cores}'}, {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }
