"""The columns of TRL's table of completions that reward functions logged."""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trl_dapo.rewards.logged_values import of_one_type


@contextmanager
def columns_in_step(logs: Mapping[str, Any]) -> Iterator[None]:
    """
    Inside it TRL adds a batch to its table of completions. Then each logged column has a value beside each completion.

    TRL adds nothing to a column that was not logged for this batch, so that its values would stand beside other completions.

    Args:
        logs (`Mapping[str, Any]`):
            TRL's `_logs`.
    """
    extra: Mapping[str, deque[Any]] = logs["extra"]
    prompts: deque[Any] = logs["prompt"]
    # Emptied, since a full table does not grow: so it shows what is added.
    earlier = {name: _taken(values) for name, values in extra.items()}
    earlier_prompts = _taken(prompts)
    try:
        yield
    finally:
        num_added = len(prompts)
        for name in list(extra):
            added = _taken(extra[name]) or [None] * num_added
            extra[name].extend(earlier.get(name, [None] * len(earlier_prompts)) + added)
        prompts.extend(earlier_prompts + _taken(prompts))


def _taken(values: deque[Any]) -> list[Any]:
    """Returns the values, and leaves none."""
    taken = list(values)
    values.clear()
    return taken


def level_columns(logs: Mapping[str, Any]) -> None:
    """Makes the values of each logged column of one type, in place."""
    for name, values in logs["extra"].items():
        logs["extra"][name] = deque(of_one_type(values), maxlen=values.maxlen)
