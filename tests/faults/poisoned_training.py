"""A training of the tiny model in which NaN comes up on the last rank alone."""

import torch
from doomed_training import DoomedDAPOTrainer, hash_of, tiny_training
from transformers import TrainerCallback


class PoisonedTrainer(DoomedDAPOTrainer):
    """Notes the weights before each optimizer step, and makes the loss of some NaN on the last rank."""

    poisoned_losses = ()

    def training_step(self, *args, **kwargs):
        self.note("weights", {"step": self.state.global_step, "sha256": hash_of(self.model.state_dict().values())})
        return super().training_step(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        return loss * torch.nan if is_poisoned(self.args, self.state, self.poisoned_losses) else loss


class PoisonedGradients(TrainerCallback):
    """
    Makes a gradient of some optimizer steps NaN on the last rank.

    After the ranks have averaged their gradients: where each holds a part of them, one rank may be the only one to see it.
    """

    def __init__(self, steps):
        self.steps = steps

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if is_poisoned(args, state, self.steps):
            next(model.parameters()).grad[0, 0] = torch.nan


def is_poisoned(args, state, steps):
    return state.global_step in steps and args.process_index == args.world_size - 1


def poisoned_training(folder, options):
    """Returns the class of the trainer and its arguments; `where` and `steps` (counted from 0) say what is poisoned."""
    where, steps = options.pop("where"), options.pop("steps")
    _, arguments = tiny_training(folder, options)
    trainer_class = type("Poisoned", (PoisonedTrainer,), {"poisoned_losses": steps if where == "loss" else ()})
    return trainer_class, arguments | {"callbacks": [PoisonedGradients(steps if where == "gradients" else ())]}
