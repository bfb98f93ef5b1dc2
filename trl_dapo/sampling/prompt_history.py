"""Which prompts to skip for now, because their past groups taught nothing."""

import base64
import zlib
from typing import Any

from .prompt_stream import keyed_hash


_MAX_STREAK = 255


class PromptHistory:
    """
    Skips prompts whose last groups were uninformative, in the manner of GRESO (https://huggingface.co/papers/2506.02177).

    A prompt with a streak of `z` uninformative groups is sampled with probability `explore ** z`, but never less than
    `min_explore`, so that nothing is banned for ever: a prompt that the policy has since learnt to solve, or has since
    become able to, is found again. One byte a prompt.

    The decision is a function of (seed, stream position, streak), so all ranks skip the same draws.

    Args:
        num_rows (`int`):
            Rows of the dataset.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the decisions.
        explore (`float`, *optional*, defaults to `0.5`):
            Factor by which each uninformative group in a row lowers the probability to be sampled.
        min_explore (`float`, *optional*, defaults to `0.05`):
            Lowest probability to be sampled.

    Example:

    >>> history = PromptHistory(num_rows=10)
    >>> for _ in range(2):
    ...     history.observe(index=3, is_informative=False)
    >>> history.skip_probability(3), history.skip_probability(4)
    (0.75, 0.0)
    """

    def __init__(self, num_rows: int, seed: int = 0, explore: float = 0.5, min_explore: float = 0.05):
        self.seed = seed
        self.explore = explore
        self.min_explore = min_explore
        self._streaks = bytearray(num_rows)

    def skip_probability(self, index: int) -> float:
        """Returns the probability with which the next draw of this row is skipped, in [0, 1 - min_explore]."""
        return 1.0 - max(self.min_explore, self.explore ** self._streaks[index])

    def skips(self, position: int, index: int) -> bool:
        """Decides whether the draw at this stream position, of this row, is skipped."""
        probability = self.skip_probability(index)
        if probability == 0.0:
            return False
        return keyed_hash(f"{self.seed}/skip/{position}") < probability * 2**64

    def observe(self, index: int, is_informative: bool) -> None:
        """Learns the outcome of one group of this row."""
        self._streaks[index] = 0 if is_informative else min(self._streaks[index] + 1, _MAX_STREAK)

    def state_dict(self) -> dict[str, Any]:
        """Returns the streaks, compressed."""
        return {
            "num_rows": len(self._streaks),
            "streaks": base64.b64encode(zlib.compress(bytes(self._streaks))).decode(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continues with saved streaks.

        Raises:
            `ValueError`: when they are of a dataset of another length.
        """
        if state["num_rows"] != len(self._streaks):
            raise ValueError(
                f"The saved prompt history is of {state['num_rows']} rows, but the dataset has {len(self._streaks)}. "
                "Resume with the dataset of the saved run."
            )
        self._streaks = bytearray(zlib.decompress(base64.b64decode(state["streaks"])))
