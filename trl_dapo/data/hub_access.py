"""Asks once, and briefly, whether the Hugging Face Hub can be reached, before a library retries for a minute."""

import os
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from trl_dapo.errors import HubUnreachableError


_TIMEOUT_SECONDS = 5.0


def require_local_or_hub(name: str, repo_type: str, option: str) -> None:
    """
    Checks that a model or dataset is a local path, or that the Hub answers for it.

    With `HF_HUB_OFFLINE=1` nothing is asked: what is in the cache loads at once, and what is not fails at once.

    Args:
        name (`str`):
            Local path or Hub id.
        repo_type (`str`):
            `"model"` or `"dataset"`.
        option (`str`):
            The option in which the user gave `name`, for the message.

    Raises:
        `FileNotFoundError`: `name` is written like a path, but nothing is there.
        `HubUnreachableError`: there is no such path, and the Hub does not answer within 5 seconds.
        `huggingface_hub.errors.RepositoryNotFoundError`: the Hub answers that it has no such repository.
    """
    if Path(name).expanduser().exists():
        return
    is_path_like = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or Path(name).suffix in _DATA_SUFFIXES
    if is_path_like:
        raise FileNotFoundError(f"{option} is {name!r}, but there is no such file or folder.")
    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().repo_info(name, repo_type=repo_type, timeout=_TIMEOUT_SECONDS)
    except HfHubHTTPError:
        raise  # the Hub answered: there is no such repository, or no access to it
    except Exception as error:
        # Which class the failed connection has depends on the HTTP library that huggingface_hub was built on.
        raise HubUnreachableError(
            f"{option} is {name!r}, which is no local path, and the Hugging Face Hub does not answer. Pass a local file "
            f"or folder with `{option}`, set HF_HUB_OFFLINE=1 to use your cache, or run `make quickstart`, which needs "
            "no Hub."
        ) from error


_DATA_SUFFIXES = frozenset({".jsonl", ".json", ".parquet"})
