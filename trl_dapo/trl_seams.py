"""A name that means something else for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """
    Inside it, `owner.name` is another value. It is for seams that TRL has no argument for.

    Args:
        owner (`Any`):
            A module or an object.
        name (`str`):
            Name of the attribute. One that `owner` itself has not is taken away again.
        value (`Any`):
            What it is meanwhile.
    """
    before = vars(owner).copy()
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if name in before:
            setattr(owner, name, before[name])
