"""How the generation of a completion ended: by itself, or at a length limit."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from .judge import RowFacts


class EmptyCompletion(list[int]):
    """The one padding token that stands in for a completion without tokens."""


class TruncationRule:
    """
    Tells a completion that ended by itself from one that was cut off.

    An end-of-sequence token or a stop string ends a completion; the length limit, or the end of the context window, cuts
    it off. A completion that is shorter than every limit was stopped by something, whatever its last token is. So a stop
    string is not mistaken for a cut, nor a padding token for an end.

    Args:
        end_token_ids (`Collection[int]`):
            Tokens with which a completion ends.
        max_completion_length (`int` or `None`):
            Most tokens of a completion. `None`: no such limit.
        max_sequence_length (`int`, *optional*):
            Most tokens of prompt and completion together. `None`: no such limit.
        stop_strings (`Sequence[str]`, *optional*):
            Texts with which a completion ends.
        decode (`Callable[[list[int]], str]`, *optional*):
            Turns token ids into text. Needed with `stop_strings`.

    Example:

    >>> rule = TruncationRule(end_token_ids=[2], max_completion_length=3)
    >>> [rule.is_truncated(5, ids) for ids in ([7, 8, 9], [7, 8, 2], [7, 8], [])]
    [True, False, False, False]
    """

    def __init__(
        self,
        end_token_ids: Collection[int],
        max_completion_length: int | None,
        max_sequence_length: int | None = None,
        stop_strings: Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
    ):
        self.end_token_ids = frozenset(end_token_ids)
        self.max_completion_length = max_completion_length
        self.max_sequence_length = max_sequence_length
        self.stop_strings = tuple(stop_strings)
        self.decode = decode

    @classmethod
    def of_generation(
        cls,
        eos_token_ids: Sequence[int],
        max_completion_length: int | None,
        max_sequence_length: int | None,
        generation_kwargs: Mapping[str, Any] | None,
        decode: Callable[[list[int]], str],
    ) -> "TruncationRule":
        """
        Returns the rule for a trainer's settings.

        `generation_kwargs` are TRL's; of them `stop` or `stop_strings` (a text or several) and `stop_token_ids` are read.

        >>> rule = TruncationRule.of_generation([2], 3, None, {"stop": "!", "stop_token_ids": [5]}, lambda ids: "ab!")
        >>> sorted(rule.end_token_ids), rule.stop_strings
        ([2, 5], ('!',))
        """
        kwargs = generation_kwargs or {}
        stop = kwargs.get("stop") or kwargs.get("stop_strings") or ()
        stop_strings = [stop] if isinstance(stop, str) else stop
        end_token_ids = [*eos_token_ids, *(kwargs.get("stop_token_ids") or ())]
        return cls(end_token_ids, max_completion_length, max_sequence_length, stop_strings, decode)

    def facts(self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> list[RowFacts]:
        """
        Returns length and truncation of each completion.

        Args:
            prompt_ids (`Sequence[Sequence[int]]`), completion_ids (`Sequence[Sequence[int]]`):
                The tokens, without padding. An [`EmptyCompletion`] has none.

        >>> rule = TruncationRule(end_token_ids=[2], max_completion_length=3)
        >>> [tuple(row) for row in rule.facts([[5], [5, 6]], [[7, 8, 9], EmptyCompletion([0])])]
        [(1, 3, True), (2, 0, False)]
        """
        return [
            RowFacts(len(prompt), 0, False)
            if isinstance(ids, EmptyCompletion)
            else RowFacts(len(prompt), len(ids), self.is_truncated(len(prompt), ids))
            for prompt, ids in zip(prompt_ids, completion_ids, strict=True)
        ]

    def is_truncated(self, prompt_length: int, completion_ids: Sequence[int]) -> bool:
        """
        Args:
            prompt_length (`int`):
                Length of the prompt in tokens.
            completion_ids (`Sequence[int]`):
                The generated tokens, without padding. An empty completion is not truncated.
        """
        if not completion_ids or completion_ids[-1] in self.end_token_ids:
            return False
        limits = [(self.max_completion_length, len(completion_ids))]
        limits += [(self.max_sequence_length, prompt_length + len(completion_ids))]
        given = [(limit, length) for limit, length in limits if limit is not None]
        has_room = bool(given) and all(length < limit for limit, length in given)
        return not has_room and not self._ends_in_stop_string(completion_ids)

    def _ends_in_stop_string(self, completion_ids: Sequence[int]) -> bool:
        if not self.stop_strings or self.decode is None:
            return False
        # A token has at least one character, and an engine stops as soon as the string is there: it can only be here.
        num_tokens = max(map(len, self.stop_strings)) + 1
        tail = self.decode(list(completion_ids[-num_tokens:]))
        return any(stop in tail for stop in self.stop_strings)
