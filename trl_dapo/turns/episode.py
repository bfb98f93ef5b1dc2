"""What is known of a completion of several turns: a conversation in which the model, tools and an environment take part."""

from collections.abc import Mapping, Sequence
from typing import Any


def is_unanswered(completion: Any) -> bool:
    """
    Returns whether a conversation ends with a call of a tool: a limit, of tokens or of calls, has cut it off.

    >>> is_unanswered([{"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}])
    True
    >>> is_unanswered("a text"), is_unanswered([{"role": "assistant", "content": "4"}])
    (False, False)
    """
    return isinstance(completion, list) and bool(completion) and bool(completion[-1].get("tool_calls"))


def add_fields(inputs: Sequence[dict[str, Any]], fields: Mapping[str, Any]) -> None:
    """
    Adds what a rollout function returned to the rows that reward functions see, as TRL does it.

    Args:
        inputs (`Sequence[dict]`):
            Dataset rows. Changed in place.
        fields (`Mapping[str, Any]`):
            A list has a value for each row; anything else is for all of them.

    >>> rows = [{"prompt": "a"}, {"prompt": "b"}]
    >>> add_fields(rows, {"score": [0.5, 1.0], "game": "chess"})
    >>> rows[1]
    {'prompt': 'b', 'score': 1.0, 'game': 'chess'}
    """
    for number, row in enumerate(inputs):
        for name, values in fields.items():
            if not isinstance(values, list):
                row[name] = values
            elif number < len(values):
                row[name] = values[number]
