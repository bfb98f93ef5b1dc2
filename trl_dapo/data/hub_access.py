"""Checks within 5 seconds whether the Hugging Face Hub can be reached. Libraries try for a minute before they fail."""

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from trl_dapo.config.local_paths import require_existing
from trl_dapo.errors import HubUnreachableError


_TIMEOUT_SECONDS = 5.0


def require_local_or_hub(name: str, repo_type: str, option: str) -> None:
    """
    Checks that a model or dataset is a local path or exists on the Hub.

    With `HF_HUB_OFFLINE=1` the Hub is not asked: a model or dataset in the cache loads at once, any other fails at once.

    Args:
        name (`str`):
            Local path or Hub id.
        repo_type (`str`):
            `"model"` or `"dataset"`.
        option (`str`):
            The option with which the user gave `name`, for the error message.

    Raises:
        `FileNotFoundError`: `name` looks like a path, but there is no such file or folder.
        `HubUnreachableError`: `name` is not a local path, and the Hub does not answer within 5 seconds.
        `huggingface_hub.errors.RepositoryNotFoundError`: the Hub has no such repository, or the token may not read it.
    """
    if require_existing(name, option):
        return
    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().repo_info(name, repo_type=repo_type, timeout=_TIMEOUT_SECONDS)
    except HfHubHTTPError:
        raise  # the Hub answered: there is no such repository, or the token may not read it
    except Exception as error:
        # The class of the error depends on the HTTP library of huggingface_hub.
        raise HubUnreachableError(
            f"{option} is {name!r}, which is not a local path, and the Hugging Face Hub did not answer within "
            f"{_TIMEOUT_SECONDS:g} seconds. Pass a local file or folder with `{option}`, or set HF_HUB_OFFLINE=1 to use the "
            "files in your cache. `trl-dapo train --config quickstart` needs neither Hub nor data."
        ) from error
