"""`trl-dapo --version`: the versions that a bug report needs."""

import importlib
import platform
from importlib.metadata import PackageNotFoundError, version


_SHOWN = ("trl", "transformers", "torch", "accelerate", "vllm")


def versions() -> str:
    """
    Returns the version of this package, and of those that it stands on where they are installed.

    >>> versions().startswith("trl-dapo 0.")
    True
    """
    found = [f"Python {platform.python_version()}"]
    for name in _SHOWN:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"trl-dapo {importlib.import_module('trl_dapo').__version__} ({', '.join(found)})"
