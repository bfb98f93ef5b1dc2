"""Log-probabilities of the present policy, as TRL computes those of the old one: no gradient, no checkpointing."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from trl.models.utils import disable_gradient_checkpointing

from .carried_logps import compute_logps
from .config import DAPOConfig
from .rollouts import Rollout


class PolicyScorer:
    """
    Scores completions with the model under training.

    Args:
        forward (`Callable`):
            TRL's forward pass: model, token ids `(B, P + C)`, their attention mask, C and `batch_size` to a tuple that
            begins with log-probabilities `(B, C)`. With some wrappers it is a collective: all ranks call it equally often.
        model (`torch.nn.Module`):
            The model under training.
        args (`DAPOConfig`):
            The trainer's configuration.
        pad_token_id (`int`):
            Fills what is shorter.
        device (`torch.device`):
            Device of the model.
    """

    def __init__(
        self, forward: Callable[..., Any], model: Any, args: DAPOConfig, pad_token_id: int, device: torch.device
    ):
        self.forward = forward
        self.model = model
        self.args = args
        self.pad_token_id = pad_token_id
        self.device = device

    def score_rollouts(self, rollouts: list[Rollout]) -> list[torch.Tensor]:
        """Returns the log-probability of each token of each completion: shape `(C,)`, float32, on the CPU."""
        return compute_logps(
            self._logps, rollouts, self.args.per_device_train_batch_size, self.pad_token_id, self.device
        )

    def score_batch(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the log-probabilities of the completions of a generation batch, shape `(B, C)`."""
        input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        return self._logps(input_ids, attention_mask, batch["completion_ids"].size(1))

    def _logps(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int) -> torch.Tensor:
        kwargs: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(self.model, kwargs):
            logps: torch.Tensor = self.forward(
                self.model, input_ids, attention_mask, width, batch_size=self.args.per_device_train_batch_size
            )[0]
        return logps
