"""How TRL's computation of rewards is called: each function within its time, and the failure of one rank told to all."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from trl.extras.profiling import profiling_context
from trl.trainer import grpo_trainer

from trl_dapo.errors import naming_rewards
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.trl_seams import replaced

from .reward_watch import RewardWatch, timing_by


class RewardCalls:
    """
    Computes rewards with TRL's own method.

    Args:
        ranks (`Ranks`):
            The ranks of the run.
        timeout (`float`, *optional*):
            Most wall seconds of a call of a reward function. `None`: no limit.

    Attributes:
        watch (`RewardWatch`):
            Ends what takes longer.
        is_alone (`bool`):
            Whether this rank computes rewards by itself, for no other rank to know: nothing is gathered.
    """

    def __init__(self, ranks: Ranks, timeout: float | None):
        self.ranks = ranks
        self.watch = RewardWatch(timeout)
        self.is_alone = False

    def compute(self, compute: Callable[[], torch.Tensor], num_completions: int, trainer: Any) -> torch.Tensor:
        """
        Returns the rewards of all ranks; of this one, if it is alone. A collective, if not.

        Args:
            compute (`Callable[[], torch.Tensor]`):
                TRL's `_calculate_rewards`, which gathers nothing in here.
            num_completions (`int`):
                Completions R of this rank, equally many on each.
            trainer (`GRPOTrainer`):
                Whose reward functions they are.

        Returns:
            `torch.Tensor`: shape `(W * R, F)`, or `(R, F)` alone, float32. NaN: no reward.

        Raises:
            `RewardTimeoutError`: a function of this rank took longer than it may.
            `RankFailedError`: on another rank it did, or raised something.
        """
        names, step = trainer.reward_func_names, trainer.state.global_step
        where = f"the rewards of {num_completions} completions at optimizer step {step} on rank {self.ranks.rank}"
        failure, rewards = None, torch.zeros(num_completions, len(names), device=self.ranks.device)
        try:
            with ExitStack() as stack:
                stack.enter_context(naming_rewards(names, num_completions))
                stack.enter_context(self.watch.computation(where))
                # TRL opens this one around each call, whatever kind of function it is.
                timed = timing_by(self.watch, profiling_context)
                stack.enter_context(replaced(grpo_trainer, "profiling_context", timed))
                stack.enter_context(replaced(grpo_trainer, "gather", lambda rewards: rewards))
                rewards = compute()
            # What UTF-8 cannot hold (a completion that says \ud800, read as JSON) would end the run in TRL's log.
            for values in trainer._pending_extra_logs.values():
                values[:] = [_encodable(value) for value in values]
        except Exception as error:
            # The others wait for these rewards.
            failure = error
        if self.is_alone or self.ranks.num_ranks == 1:
            if failure is not None:
                raise failure
            return rewards
        return self.ranks.gather_unless_failed(rewards, failure)


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
