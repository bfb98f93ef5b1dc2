"""How rewards are computed: by TRL, each function within its deadline, and the failure of one rank told to all."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trl_dapo.errors import naming_rewards
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.trl_seams import TrainerSeams

from .reward_watch import RewardWatch


class RewardCalls:
    """
    Computes rewards with TRL's own method.

    Args:
        seams (`TrainerSeams`):
            Owns the reward functions.
        ranks (`Ranks`):
            The ranks of the run.
        timeout (`float`, *optional*):
            Most wall seconds of a call of a reward function. `None`: no limit.
        penalty_column (`int`, *optional*):
            Column of the rewards that holds the soft overlong punishment. `None`: there is none.

    Attributes:
        watch (`RewardWatch`):
            Ends calls that take longer.
    """

    def __init__(self, seams: TrainerSeams, ranks: Ranks, timeout: float | None, penalty_column: int | None = None):
        self.seams = seams
        self.ranks = ranks
        self.watch = RewardWatch(timeout)
        self.penalty_column = penalty_column

    def compute(
        self,
        inputs: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        """
        Returns the rewards of all ranks. A collective.

        Args:
            inputs (`Sequence[Mapping]`), prompts (`Sequence`), completions (`Sequence`), completion_ids (`Sequence`):
                The R completions of this rank, equally many on each, as in `GRPOTrainer._calculate_rewards`.

        Returns:
            `torch.Tensor`: shape `(W * R, F)`, float32. NaN: no reward.

        Raises:
            `RewardTimeoutError`: a function of this rank took longer than it may.
            `RankFailedError`: on another rank a function did, or raised something.
        """
        failure: Exception | None = None
        try:
            rewards = self.compute_alone(inputs, prompts, completions, completion_ids)
        except Exception as error:
            if self.ranks.num_ranks == 1:
                raise
            # The others wait for these rewards.
            failure = error
            rewards = torch.zeros(len(prompts), len(self.seams.reward_names), device=self.ranks.device)
        return rewards if self.ranks.num_ranks == 1 else self.ranks.gather_unless_failed(rewards, failure)

    def compute_alone(
        self,
        inputs: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        """As `compute`, the rewards of this rank alone, shape `(R, F)`. No collective, from any thread."""
        names = self.seams.reward_names
        where = (
            f"the rewards of {len(prompts)} completions at optimizer step {self.seams.step} on rank {self.ranks.rank}"
        )
        with naming_rewards(names, len(prompts)), self.watch.computation(where):
            rewards = self.seams.compute_rewards(inputs, prompts, completions, completion_ids, self.watch.call)
        column = self.penalty_column
        if column is not None:
            # A completion that no function scored stays unscored, whatever its length; and evaluation is unshaped.
            is_unscored = rewards[:, :column].isnan().all(dim=1) | (not self.seams.is_training)
            rewards[is_unscored, column] = torch.nan
        return rewards
