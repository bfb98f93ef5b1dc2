"""Log-probabilities of the policy under training, and of the ones that sampled carried rollouts."""

from collections.abc import Mapping, Sequence

import torch
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad

from trl_dapo.ranks.rollout import Rollout


class PolicyScorer:
    """
    Scores completions with the model under training, in parts of `per_device_train_batch_size` rows.

    As when TRL computes old log-probabilities: no gradients, no checkpointing. With some wrappers a forward pass is a
    collective, so all ranks score equally many rows.

    Args:
        trainer (`GRPOTrainer`):
            Owns the model, which it may yet wrap, and TRL's forward pass.
    """

    def __init__(self, trainer: GRPOTrainer):
        self.trainer = trainer

    def score_rollouts(self, rollouts: Sequence[Rollout]) -> list[torch.Tensor]:
        """Returns the log-probability of each token of each completion: shape `(C,)`, float32, on the CPU."""
        size, pad_token_id = self.trainer.args.per_device_train_batch_size, self.trainer._tokenizer.pad_token_id
        scored = []
        for start in range(0, len(rollouts), size):
            part = rollouts[start : start + size]
            prompts = [rollout.prompt_ids.long() for rollout in part]
            # A forward pass needs a token even where every completion is empty.
            completions = [
                rollout.completion_ids.long() if len(rollout.completion_ids) else torch.tensor([pad_token_id])
                for rollout in part
            ]
            batch = {}
            for name, rows, side in (("prompt", prompts, "left"), ("completion", completions, "right")):
                masks = [torch.ones_like(row) for row in rows]
                batch[f"{name}_ids"] = pad(rows, padding_value=pad_token_id, padding_side=side)
                batch[f"{name}_mask"] = pad(masks, padding_value=0, padding_side=side)
            device = self.trainer.accelerator.device
            logps = self.score_batch({name: value.to(device) for name, value in batch.items()}).float().cpu()
            scored += [row[: len(rollout.completion_ids)].clone() for row, rollout in zip(logps, part, strict=True)]
        return scored

    def score_batch(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the log-probabilities of the completions of a generation batch, shape `(B, C)`."""
        trainer = self.trainer
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs),  # type: ignore[arg-type]
        ):
            # TRL's own, and not what a subclass makes of it.
            logps: torch.Tensor = GRPOTrainer._get_per_token_logps_and_entropies(
                trainer,
                trainer.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].size(1),
                batch_size=trainer.args.per_device_train_batch_size,
            )[0]
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
