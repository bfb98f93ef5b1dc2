"""Where data come from, in a form that can be published: a Hub id, or the name of a local file without its path."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


# The address under which `datasets` records a file from the Hub.
_HUB_FILE = re.compile(r"^hf://datasets/(?P<name>[^@]+)@(?P<revision>[0-9a-f]{40})/")


@dataclass(frozen=True, slots=True)
class DataSource:
    """
    Where a dataset comes from. It is published in model cards, so it never contains a local path.

    Args:
        name (`str`, *optional*):
            Hub id, or the last part of a local path. `None`: not known.
        is_on_hub (`bool`, *optional*, defaults to `False`):
            Whether `name` is a Hub id.
        config (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`, *optional*):
            Split of a folder or Hub dataset.
        revision (`str`, *optional*):
            Commit of a Hub dataset, 40 hexadecimal digits.
    """

    name: str | None = None
    is_on_hub: bool = False
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @classmethod
    def named(cls, name: str, config: str | None = None, split: str | None = None) -> "DataSource":
        """
        Returns the source of a dataset that the user named.

        Args:
            name (`str`):
                Local path or Hub id.
            config (`str`, *optional*):
                Configuration of a Hub dataset.
            split (`str`, *optional*):
                Split of a folder or Hub dataset. Ignored for a file, which has no splits.
        """
        path = Path(name).expanduser()
        if path.exists() or not is_hub_id(name):
            return cls(path.resolve().name, split=split if path.is_dir() else None)
        return cls(name, is_on_hub=True, config=config, split=split)

    @classmethod
    def of_dataset(cls, dataset: Any) -> "DataSource":
        """
        Returns the source that a dataset itself recorded when it was loaded from the Hub.

        Args:
            dataset (`Dataset` or `IterableDataset`):
                The dataset, possibly mapped and filtered. Any other object has no source.

        Returns:
            `DataSource`: The source. Its `name` is `None` if the dataset recorded none.
        """
        info = getattr(dataset, "info", None)
        for file in getattr(info, "download_checksums", None) or ():
            if found := _HUB_FILE.match(str(file)):
                split = None if dataset.split is None else str(dataset.split)
                return cls(found["name"], True, info.config_name, split, found["revision"])  # type: ignore[union-attr]
        return cls()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DataSource":
        """Returns the source from the output of `dataclasses.asdict`."""
        return cls(**content)


def is_hub_id(name: str) -> bool:
    """
    Returns whether a text has the form of a Hub id. It does not ask the Hub.

    >>> is_hub_id("openai/gsm8k"), is_hub_id("gsm8k"), is_hub_id("out/run/model"), is_hub_id("<b>")
    (True, True, False, False)
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
