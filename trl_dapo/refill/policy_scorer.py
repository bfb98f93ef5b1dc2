"""Log-probabilities of rollouts under the policy that is trained."""

from collections.abc import Sequence

import torch
from trl.trainer.utils import pad

from trl_dapo.ranks.rollout import Rollout
from trl_dapo.trl_seams import TrainerSeams


class PolicyScorer:
    """
    Scores completions with the model under training, in parts of `batch_size` rows.

    With some wrappers a forward pass is a collective, so all ranks score equally many rows.

    Args:
        seams (`TrainerSeams`):
            Owns the model, which it may yet wrap, and TRL's forward pass.
        batch_size (`int`):
            Rows of one forward pass.
    """

    def __init__(self, seams: TrainerSeams, batch_size: int):
        self.seams = seams
        self.batch_size = batch_size

    def score(self, rollouts: Sequence[Rollout]) -> list[torch.Tensor]:
        """Returns the log-probability of each token of each completion: shape `(C,)`, float32, on the CPU."""
        pad_token_id = self.seams.tokenizer.pad_token_id
        scored = []
        for start in range(0, len(rollouts), self.batch_size):
            part = rollouts[start : start + self.batch_size]
            prompts = [rollout.prompt_ids.long() for rollout in part]
            # A forward pass needs a token even where every completion is empty.
            completions = [
                rollout.completion_ids.long() if len(rollout.completion_ids) else torch.tensor([pad_token_id])
                for rollout in part
            ]
            batch = _padded("prompt", prompts, "left", pad_token_id)
            batch |= _padded("completion", completions, "right", pad_token_id)
            logps = self.seams.score({name: value.to(self.seams.device) for name, value in batch.items()})
            scored += [
                row[: len(rollout.completion_ids)].clone()
                for row, rollout in zip(logps.float().cpu(), part, strict=True)
            ]
        return scored


def _padded(name: str, rows: list[torch.Tensor], side: str, pad_token_id: int) -> dict[str, torch.Tensor]:
    masks = [torch.ones_like(row) for row in rows]
    return {
        f"{name}_ids": pad(rows, padding_value=pad_token_id, padding_side=side),
        f"{name}_mask": pad(masks, padding_value=0, padding_side=side),
    }


def restore_old_logps(logps: torch.Tensor, rollouts: Sequence[Rollout]) -> torch.Tensor:
    """
    Replaces the rows of carried rollouts by what was computed when they were sampled.

    Args:
        logps (`torch.Tensor`):
            Log-probabilities under the present policy, shape `(B, C)`, padded on the right.
        rollouts (`Sequence[Rollout]`):
            The B rollouts.

    Returns:
        `torch.Tensor`: the log-probabilities of each row under the policy that sampled it, shape `(B, C)`.
    """
    restored = logps.clone()
    for row, rollout in zip(restored, rollouts, strict=True):
        if rollout.old_logps is not None:
            row[: len(rollout.old_logps)] = rollout.old_logps.to(row)
    return restored
