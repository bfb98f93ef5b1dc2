"""Log-probabilities of the policy that sampled a rollout, for rollouts that train after it has moved on."""

from collections.abc import Callable, Sequence

import torch
from trl.trainer.utils import pad

from .rollouts import Rollout


def compute_logps(
    forward: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    rollouts: Sequence[Rollout],
    batch_size: int,
    pad_token_id: int,
    device: torch.device,
) -> list[torch.Tensor]:
    """
    Computes the log-probability of every completion token.

    Args:
        forward (`Callable`):
            Maps token ids `(B, P + C)`, their attention mask `(B, P + C)` and C to log-probabilities `(B, C)`.
        rollouts (`Sequence[Rollout]`):
            The rollouts.
        batch_size (`int`):
            Rollouts per forward pass.
        pad_token_id (`int`):
            Fills prompts on the left and completions on the right, as in TRL.
        device (`torch.device`):
            Device of the model.

    Returns:
        `list[torch.Tensor]`: for each rollout, shape `(C,)`, float32, on the CPU.
    """
    logps = []
    for start in range(0, len(rollouts), batch_size):
        part = rollouts[start : start + batch_size]
        prompts = [rollout.prompt_ids.long() for rollout in part]
        # A forward pass needs a token even where every completion is empty.
        completions = [
            rollout.completion_ids.long() if len(rollout.completion_ids) else torch.tensor([pad_token_id])
            for rollout in part
        ]
        sides = ((prompts, "left"), (completions, "right"))
        ids = [pad(rows, padding_value=pad_token_id, padding_side=side) for rows, side in sides]
        masks = [
            pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side=side) for rows, side in sides
        ]
        width = ids[1].shape[1]
        values = forward(torch.cat(ids, dim=1).to(device), torch.cat(masks, dim=1).to(device), width)
        values = values.float().cpu()
        logps += [row[: len(rollout.completion_ids)].clone() for row, rollout in zip(values, part, strict=True)]
    return logps


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
