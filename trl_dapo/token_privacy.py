"""A Hub token in a configuration does not go where the configuration is saved."""

import copy
from typing import Any


class PickledWithoutToken:
    """
    Mixed into a configuration, keeps `hub_token` out of its pickles.

    `Trainer` saves its arguments as `training_args.bin` beside the weights, and pushes the file with them, to a public
    repository as well. A token in it could be used by everybody. Copies in the process keep the token.
    """

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"hub_token": None}

    def __copy__(self) -> Any:
        duplicate = object.__new__(type(self))
        vars(duplicate).update(vars(self))
        return duplicate

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        duplicate = object.__new__(type(self))
        memo[id(self)] = duplicate
        vars(duplicate).update(copy.deepcopy(vars(self), memo))
        return duplicate
