"""DAPO's soft overlong punishment (Eq. 13 of https://arxiv.org/abs/2503.14476)."""

import functools
from collections.abc import Sequence
from typing import Any


# Of the functions that punish in this way: ours, and TRL's `get_soft_overlong_punishment`.
_NAMES = ("soft_overlong_punishment", "soft_overlong_punishment_reward")


class SoftOverlongPunishment:
    r"""
    Reward function that punishes completions softly as they approach the length limit.

    DAPO Eq. 13 (https://arxiv.org/abs/2503.14476), times `factor`:

    $$
    R_{\text{length}}(y) = \begin{cases}
    0, & |y| \le L_{\max} - L_{\text{cache}} \\
    \dfrac{(L_{\max} - L_{\text{cache}}) - |y|}{L_{\text{cache}}}, & L_{\max} - L_{\text{cache}} < |y| \le L_{\max} \\
    -1, & L_{\max} < |y|
    \end{cases}
    $$

    The length \( |y| \) counts the generated tokens, the end-of-sequence token included. A class and not a closure, so
    that the reward can be pickled.

    Args:
        max_completion_length (`int`):
            \( L_{\max} \), in tokens; at least 1.
        cache (`int`):
            \( L_{\text{cache}} \), in tokens: the punishment grows over the last `cache` tokens. From 1 to
            `max_completion_length`.
        factor (`float`, *optional*, defaults to `1.0`):
            Scale of the punishment, which lies in `[-factor, 0]`; at least 0. The paper has 1.

    Raises:
        `ValueError`: If an argument is outside its range.

    Example:

    >>> punishment = SoftOverlongPunishment(max_completion_length=100, cache=20)
    >>> punishment(completion_ids=[[1] * 80, [1] * 90, [1] * 100])
    [0.0, -0.5, -1.0]
    """

    __name__ = "soft_overlong_punishment"

    def __init__(self, max_completion_length: int, cache: int, factor: float = 1.0) -> None:
        if max_completion_length < 1:
            raise ValueError(
                f"`max_completion_length` is {max_completion_length}, but must be at least 1. Pass the trainer's "
                "`max_completion_length`, in tokens."
            )
        if not 1 <= cache <= max_completion_length:
            raise ValueError(
                f"`cache` is {cache}, but must be from 1 to `max_completion_length` ({max_completion_length}). DAPO's "
                f"is 20 % of it: {max(1, max_completion_length // 5)}. For no punishment leave this reward out."
            )
        # Written so that NaN is refused too.
        if not 0 <= factor < float("inf"):
            raise ValueError(
                f"`factor` is {factor}, but must be finite and at least 0. The paper's is 1.0; a negative factor "
                "would reward overlong completions."
            )
        self.max_completion_length = max_completion_length
        self.cache = cache
        self.factor = factor

    def __repr__(self) -> str:
        return (
            f"SoftOverlongPunishment(max_completion_length={self.max_completion_length}, cache={self.cache}, "
            f"factor={self.factor})"
        )

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        """
        Punish each completion by its length.

        Args:
            completion_ids (`list[list[int]]`):
                The generated tokens of each completion, without padding.
            **kwargs:
                The trainer's other columns, not used.

        Returns:
            `list[float]`: One punishment in `[-factor, 0]` per completion.
        """
        return [self.factor * self._punishment(len(ids)) for ids in completion_ids]

    def _punishment(self, num_tokens: int) -> float:
        num_tokens_over = num_tokens - (self.max_completion_length - self.cache)
        if num_tokens_over <= 0:
            return 0.0
        return max(-num_tokens_over / self.cache, -1.0)


def check_single_length_punishment(reward_funcs: Any, soft_punish_cache: int | None) -> None:
    """
    Checks that long completions are not punished twice.

    Args:
        reward_funcs (`Callable` or `list[Callable]`):
            The reward functions of the user.
        soft_punish_cache (`int`, *optional*):
            With it, the trainer adds the punishment itself.

    Raises:
        `ValueError`: naming the function that does the same.
    """
    if not soft_punish_cache:
        return
    for function in reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]:
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        if getattr(inner, "__name__", None) in _NAMES:
            raise ValueError(
                f"soft_punish_cache is {soft_punish_cache}, so that the trainer adds the soft overlong punishment, but "
                f"reward_funcs has one too ({inner.__name__}): long completions would be punished twice. Take it out "
                "of reward_funcs, or set soft_punish_cache=0 to use yours."
            )
