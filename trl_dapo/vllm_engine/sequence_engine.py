"""What samples sequences one by one: the protocol that streaming asks for."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from trl_dapo.sampling.prompt_stream import SequenceKey


class Decoded(NamedTuple):
    """
    Tokens that an engine decoded for a sequence since it was submitted.

    Attributes:
        token_ids (`list[int]`):
            The tokens.
        logps (`list[float | None]`):
            The log-probability of each when it was sampled, in nats; `None` where the engine gave none.
        is_finished (`bool`):
            Whether the sequence ends here.
    """

    token_ids: list[int]
    logps: list[float | None]
    is_finished: bool = False


class SequenceEngine(Protocol):
    """What decodes many sequences side by side, each submitted and withdrawn by itself. Every rank has its own."""

    @property
    def num_slots(self) -> int:
        """Sequences that it decodes at once; more wait in line."""

    @property
    def num_unfinished(self) -> int:
        """Sequences submitted and neither finished nor withdrawn."""

    def begin(self) -> None:
        """Makes it ready for a batch, with the weights as they are now. A collective."""

    def submit(self, key: SequenceKey, prompt_ids: list[int], prefix: list[int]) -> None:
        """Puts a sequence at the end of the line; `prefix` are the tokens of its completion that there are already."""

    def step(self) -> Mapping[SequenceKey, Decoded]:
        """Decodes a little, if there is anything to decode, and returns the sequences that finished."""

    def withdraw(self, keys: Collection[SequenceKey]) -> Mapping[SequenceKey, Decoded]:
        """
        Stops those of the sequences that it has, and returns what was decoded of each.

        One that finished meanwhile, in an engine that decodes by itself, says so.
        """
