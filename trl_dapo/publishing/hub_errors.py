"""Explains errors of the Hub to a user who pushes a model, with the command to try again."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from trl_dapo.errors import HubPushError, HubUnreachableError


# The base class of failed connections in the HTTP library that huggingface_hub uses.
_HTTPError: type[Exception] = HfHubHTTPError.__mro__[1]
# Errors of an interrupted upload: by Xet, the client's default, or by LFS in a thread.
_BROKEN_OFF = (ConnectionError, TimeoutError, PermissionError, RuntimeError)
_NO_TOKEN = (
    "There is no Hub token. Create one with write access at https://huggingface.co/settings/tokens, and set it as "
    "HF_TOKEN or run `hf auth login`."
)


def push_command(folder: Path, repo_id: str | None) -> str:
    """
    Returns the command that pushes a folder.

    >>> push_command(Path("out/my run"), "me/model")
    "trl-dapo push --output_dir 'out/my run' --hub_model_id me/model"
    """
    command = ["trl-dapo", "push", "--output_dir", str(folder)]
    return shlex.join(command if repo_id is None else [*command, "--hub_model_id", repo_id])


@contextmanager
def explained(repo_id: str | None, folder: Path | None = None, command: str | None = None) -> Iterator[None]:
    """
    Turns an error of the Hub into a message that says what it means, where the model is, and how to try again.

    Args:
        repo_id (`str`, *optional*):
            Name of the repository, for the message.
        folder (`Path`, *optional*):
            Folder of the model. `None`: not saved yet.
        command (`str`, *optional*):
            The command that tries again. `None`: `trl-dapo push` of the folder.

    Raises:
        `HubPushError`: the Hub refused, or the upload was interrupted.
        `HubUnreachableError`: the Hub does not answer.
    """
    retry_hint = ""
    if folder is not None:
        retry_hint = (
            f"\nThe model is safe in {folder}. To try again (what the Hub has already is not sent again):\n"
            f"  {command or push_command(folder, repo_id)}"
        )
    try:
        yield
    except (HubPushError, HubUnreachableError) as error:
        if retry_hint in str(error):
            raise
        raise type(error)(f"{error}{retry_hint}") from error.__cause__
    except (HfHubHTTPError, _HTTPError, LocalTokenNotFoundError, *_BROKEN_OFF) as error:
        meaning, kind = _meaning(error, repo_id or "the repository")
        raise kind(f"{meaning}{retry_hint}") from error
    except ValueError as error:
        # The Hub checks the card before the client sends anything.
        if not str(error).startswith("Invalid metadata in README.md"):
            raise
        raise HubPushError(f"The Hub does not accept the card: {error}{retry_hint}") from error


def no_token() -> HubPushError:
    """Returns the error of a push without a token."""
    return HubPushError(_NO_TOKEN)


def _meaning(error: BaseException, repo_id: str) -> tuple[str, type[Exception]]:
    # An upload in a thread raises a RuntimeError with the error as its cause.
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return _refusal(cause, repo_id), HubPushError
        if isinstance(cause, LocalTokenNotFoundError):
            return _NO_TOKEN, HubPushError
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so nothing is sent to the Hub. Unset it.", HubUnreachableError
        if isinstance(cause, _HTTPError):
            return f"The Hub at {constants.ENDPOINT} does not answer ({type(cause).__name__}).", HubUnreachableError
    return f"The upload to {repo_id} broke off: {error}", HubPushError


def _refusal(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    said = f" The Hub says: {error.server_message}" if error.server_message else ""
    if status == 401 and get_token() is None:
        return _NO_TOKEN
    if status == 401:
        return (
            "The Hub does not accept the token: it is mistyped, expired or revoked. It comes from HF_TOKEN or, if that is "
            f"not set, from `hf auth login`. Create one at https://huggingface.co/settings/tokens.{said}"
        )
    if status == 403:
        return (
            f"The token has no right to write to {repo_id}: the name belongs to another account, or the token is read-only. "
            f"Choose a name in your own account with --hub_model_id, or a token with write access.{said}"
        )
    if status == 404:
        return f"The Hub has no {repo_id}, or the token has no access to it.{said}"
    if status == 409:
        return f"The name {repo_id} is taken. Choose another with --hub_model_id.{said}"
    if status == 429:
        return f"The Hub reports too many requests (429). Wait some minutes.{said}"
    if status >= 500:
        return f"The Hub has an internal error ({status}). Wait some minutes.{said}"
    return f"The Hub refused ({status}).{said}"
