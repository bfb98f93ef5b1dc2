"""What is told of a generation batch while it is sampled."""

from typing import NamedTuple


class BatchSoFar(NamedTuple):
    """
    How far the sampling of a generation batch is.

    Attributes:
        num_found (`int`):
            Informative groups found, carried ones included.
        num_wanted (`int`):
            Groups of a full batch.
        num_prompts (`int`):
            Prompts sampled for this batch.
        seconds (`float`):
            Seconds of sampling.
        round_number (`int`, *optional*):
            Rounds so far. `None`: sampling has no rounds.
    """

    num_found: int
    num_wanted: int
    num_prompts: int
    seconds: float
    round_number: int | None = None


class SamplingProgress:
    """Is told how far a batch is. This one says nothing."""

    def begin(self, step: int, num_wanted: int) -> None:
        """
        A batch begins.

        Args:
            step (`int`):
                The optimizer step that it is sampled for, counted from 1.
            num_wanted (`int`):
                Groups of a full batch.
        """

    def update(self, so_far: BatchSoFar) -> None:
        """A round is done, or a few groups are."""

    def end(self) -> None:
        """The batch is sampled, or sampling failed."""
