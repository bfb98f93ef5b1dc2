"""The endless, seeded order in which prompts are drawn, and the hash of every seeded decision."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


WAYS_TO_GO_ON = (
    "Resume with the dataset and the fields of the saved run, or set restart_stream=True: then weights, optimizer, schedule "
    "and step stay, and the prompt stream begins anew."
)
_NUM_FEISTEL_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Draw:
    """
    One draw from the prompt stream.

    Attributes:
        position (`int`):
            Position in the stream, counted from 0 over all passes. It identifies the draw.
        index (`int`):
            Row of the dataset.
    """

    position: int
    index: int


class SequenceKey(NamedTuple):
    """
    Names one completion of a run.

    Attributes:
        position (`int`):
            Position of its prompt in the stream.
        sample (`int`):
            Its number in the group, 0 to G - 1.
    """

    position: int
    sample: int


class PromptStream:
    """
    Endless stream of dataset rows in which every pass over the data holds each row exactly once.

    A draw is a function of (seed, dataset length, position) alone: pass `k` is ordered by a permutation keyed by
    `(seed, k)`, a Feistel network over the smallest grid that holds the rows. So the state is one counter whatever the
    size of the dataset, seeking costs nothing, and all ranks agree for every world size.

    Args:
        num_rows (`int`):
            Rows of the dataset, at least 1.
        seed (`int`, *optional*, defaults to `0`):
            Key of the permutations.
        shuffle (`bool`, *optional*, defaults to `True`):
            `False` keeps every pass in the dataset's own order.

    Example:

    >>> stream = PromptStream(num_rows=3, shuffle=False)
    >>> [draw.index for draw in stream.peek(4)]
    [0, 1, 2, 0]
    >>> stream.seek(3)
    >>> stream.num_passes
    1.0
    """

    def __init__(self, num_rows: int, seed: int = 0, shuffle: bool = True):
        if num_rows < 1:
            raise ValueError(
                f"num_rows is {num_rows}, but a prompt stream needs at least 1 row. Pass a dataset with rows."
            )
        self.num_rows = num_rows
        self.seed = seed
        self.shuffle = shuffle
        self.position = 0
        # left * right is the smallest grid near a square that holds the rows, so hardly any value falls outside it.
        self._left_size = math.isqrt(num_rows - 1) + 1
        self._right_size = -(-num_rows // self._left_size)

    def peek(self, num_draws: int) -> list[Draw]:
        """Returns the next `num_draws` draws in stream order. The position does not move."""
        return [
            Draw(position, self._index_at(position)) for position in range(self.position, self.position + num_draws)
        ]

    def seek(self, position: int) -> None:
        """Continues the stream at `position`."""
        self.position = position

    @property
    def num_passes(self) -> float:
        """Passes over the dataset so far."""
        return self.position / self.num_rows

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """Returns what `load_state_dict` needs to continue the stream, from `position` or from where it stands."""
        return {
            "num_rows": self.num_rows,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "position": self.position if position is None else position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continues the stream that `state` was taken from.

        Raises:
            `ValueError`: when that stream had another kind or length of dataset, another seed or shuffling.
        """
        check_same_stream(state, self.state_dict())
        self.position = state["position"]

    def _index_at(self, position: int) -> int:
        pass_number, offset = divmod(position, self.num_rows)
        if not self.shuffle:
            return offset
        key = hashlib.blake2b(f"{self.seed}/{pass_number}".encode(), digest_size=32).digest()
        # The few grid cells beyond the last row are walked through: following the cycle keeps it a permutation.
        index = self._permute(offset, key)
        while index >= self.num_rows:
            index = self._permute(index, key)
        return index

    def _permute(self, value: int, key: bytes) -> int:
        left, right = divmod(value, self._right_size)
        for round_number in range(_NUM_FEISTEL_ROUNDS):
            if round_number % 2 == 0:
                left = (left + _round_value(key, round_number, right)) % self._left_size
            else:
                right = (right + _round_value(key, round_number, left)) % self._right_size
        return left * self._right_size + right


def check_same_stream(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """
    Checks that a saved prompt stream has the order of this one.

    Args:
        saved (`Mapping[str, Any]`):
            State of the saved stream. With `num_rows` it is one over a dataset with a length. What it does not hold is not
            compared.
        own (`Mapping[str, Any]`):
            State of this stream.

    Raises:
        `ValueError`: when they differ, with all that differs.

    Example:

    >>> check_same_stream({"num_rows": 9, "seed": 1, "position": 4}, {"num_rows": 9, "seed": 1, "position": 0})
    """
    kinds = ["a Dataset" if "num_rows" in state else "an IterableDataset" for state in (own, saved)]
    differences = [] if kinds[0] == kinds[1] else [f"train_dataset is {kinds[0]}, but was {kinds[1]}"]
    for key, now, before in (
        ("num_rows", "train_dataset has {} rows", "had {}"),
        ("seed", "seed is {}", "was {}"),
        ("shuffle", "shuffle_dataset is {}", "was {}"),
    ):
        if key in saved and key in own and saved[key] != own[key]:
            differences.append(f"{now.format(own[key])}, but {before.format(saved[key])}")
    if differences:
        raise ValueError(
            f"The prompt stream of the checkpoint has another order than that of this run: {'; '.join(differences)}. "
            f"{WAYS_TO_GO_ON}"
        )


def keyed_hash(message: str | bytes, num_bytes: int = 8, key: bytes = b"") -> int:
    """
    Returns a number in [0, 256 ** num_bytes) that depends on a message and a key alone: their BLAKE2b hash.

    For different messages the numbers are as good as uniform and independent.

    Args:
        message (`str` or `bytes`):
            Names the decision, such as `"<seed>/skip/<position>"`.
        num_bytes (`int`, *optional*, defaults to 8):
            Bytes of the hash, at most 64. They are read as a number with the lowest byte first. Fewer bytes give another
            number, not a part of the longer one.
        key (`bytes`, *optional*):
            Key of the hash, at most 64 bytes. Empty: no key.

    Example:

    >>> round(keyed_hash("7/skip/0") / 2**64, 3)
    0.559
    """
    message = message.encode() if isinstance(message, str) else message
    return int.from_bytes(hashlib.blake2b(message, key=key, digest_size=num_bytes).digest(), "little")


def _round_value(key: bytes, round_number: int, value: int) -> int:
    return keyed_hash(bytes([round_number]) + value.to_bytes(16, "little"), key=key)
