"""What samples sequences one by one: the protocol that streaming asks for."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from trl_dapo.ranks.rollout import Logps
from trl_dapo.sampling.judge import Tokens
from trl_dapo.sampling.prompt_stream import SequenceKey


class Decoded(NamedTuple):
    """
    Tokens that an engine decoded for a sequence since it was submitted.

    Attributes:
        token_ids (`np.ndarray`):
            The tokens, shape `(C,)`, int32.
        logps (`np.ndarray`):
            The log-probability of each when it was sampled, in nats, shape `(C,)`, float32; NaN where the engine gave none.
        is_finished (`bool`):
            Whether the sequence ends here.
    """

    token_ids: np.ndarray
    logps: np.ndarray
    is_finished: bool = False

    @classmethod
    def of(cls, token_ids: Tokens, logps: Logps, is_finished: bool = False) -> "Decoded":
        """
        Returns tokens and log-probabilities as arrays, `None` as NaN.

        >>> Decoded.of([7, 8], [-1.0, None]).logps
        array([-1., nan], dtype=float32)
        """
        return cls(np.array(token_ids, np.int32), np.array(logps, np.float32), is_finished)


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
