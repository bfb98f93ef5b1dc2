"""Secrets in a configuration do not go where the configuration is saved or logged."""

import copy
import re
from collections.abc import Mapping
from typing import Any


# Names under which libraries take secrets. Not `eos_token` and its kind.
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:api_?key|password|secret)$|^(?:hf_|hub_|auth_|use_auth_|access_)?token$", re.IGNORECASE
)
# User and password of an address.
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def without_secrets(value: Any, name: str = "") -> Any:
    """
    Returns a value without tokens, keys and passwords: those in mappings are `None`, addresses lose user and password.

    Args:
        value (`Any`):
            Texts, mappings, lists and tuples are looked through; anything else is returned as it is.
        name (`str`, *optional*):
            The name that it has.

    >>> without_secrets({"token": "hf_x", "eos_token": "</s>", "urls": ["http://me:x@host/"]})
    {'token': None, 'eos_token': '</s>', 'urls': ['http://host/']}
    """
    if isinstance(value, str):
        return None if _SECRET_NAME.search(name) else _CREDENTIALS.sub("", value)
    if type(value) is dict:
        return {key: without_secrets(part, str(key)) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_secrets(part) for part in value)
    return value


class PickledWithoutToken:
    """
    Mixed into a configuration, keeps secrets out of its pickles and of what trackers are told.

    `Trainer` saves its arguments as `training_args.bin` beside the weights, and pushes the file with them, to a public
    repository as well. A token in it (`hub_token`, or one in `model_init_kwargs`) could be used by everybody. Copies in
    the process keep the token.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: without_secrets(value, name) for name, value in vars(self).items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for trackers, as `TrainingArguments` does, without secrets in any of them."""
        fields: Mapping[str, Any] = super().to_dict()  # type: ignore[misc]
        # A token of the arguments themselves is there as `<HUB_TOKEN>`, as elsewhere.
        return {name: without_secrets(value) for name, value in fields.items()}

    def __copy__(self) -> Any:
        duplicate = object.__new__(type(self))
        vars(duplicate).update(vars(self))
        return duplicate

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        duplicate = object.__new__(type(self))
        memo[id(self)] = duplicate
        vars(duplicate).update(copy.deepcopy(vars(self), memo))
        return duplicate
