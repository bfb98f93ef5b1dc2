"""Log-probabilities of the present policy, as TRL computes those of the old one: no gradient, no checkpointing."""

from collections.abc import Mapping

import torch
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from .carried_logps import compute_logps
from .rollouts import Rollout


class PolicyScorer:
    """
    Scores completions with the model under training, in parts of `per_device_train_batch_size` rows.

    With some wrappers a forward pass is a collective: all ranks score equally many rows.

    Args:
        trainer (`GRPOTrainer`):
            Owns the model, which it may yet wrap, and TRL's forward pass.
    """

    def __init__(self, trainer: GRPOTrainer):
        self.trainer = trainer

    def score_rollouts(self, rollouts: list[Rollout]) -> list[torch.Tensor]:
        """Returns the log-probability of each token of each completion: shape `(C,)`, float32, on the CPU."""
        size, pad_token_id = self.trainer.args.per_device_train_batch_size, self.trainer._tokenizer.pad_token_id
        return compute_logps(self._logps, rollouts, size, pad_token_id, self.trainer.accelerator.device)

    def score_batch(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the log-probabilities of the completions of a generation batch, shape `(B, C)`."""
        input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        return self._logps(input_ids, attention_mask, batch["completion_ids"].size(1))

    def _logps(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int) -> torch.Tensor:
        trainer = self.trainer
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs),  # type: ignore[arg-type]
        ):
            # TRL's own, and not what a subclass makes of it.
            logps: torch.Tensor = GRPOTrainer._get_per_token_logps_and_entropies(
                trainer,
                trainer.model,
                input_ids,
                attention_mask,
                width,
                batch_size=trainer.args.per_device_train_batch_size,
            )[0]
        return logps
