"""Dropout, which makes the policy that trains another one than the policy that sampled."""

import torch


# Probabilities that models apply without a module of their own.
_ATTRIBUTES = ("attention_dropout", "dropout", "activation_dropout", "hidden_dropout")


def disable_attention_dropout(model: torch.nn.Module) -> None:
    """
    Turns off dropout that a model applies by a number, as most do in attention. TRL turns off the modules.

    Args:
        model (`torch.nn.Module`):
            The model. Changed in place.
    """
    for module in model.modules():
        for name in _probabilities(module):
            setattr(module, name, 0.0)


def has_dropout(model: torch.nn.Module) -> bool:
    """
    Returns whether a model drops anything in training.

    >>> has_dropout(torch.nn.Sequential(torch.nn.Dropout(0.0))), has_dropout(torch.nn.Dropout(0.1))
    (False, True)
    """
    return any(
        (isinstance(module, torch.nn.Dropout) and module.p > 0) or bool(_probabilities(module))
        for module in model.modules()
    )


def _probabilities(module: torch.nn.Module) -> list[str]:
    return [name for name in _ATTRIBUTES if isinstance(vars(module).get(name), float) and vars(module)[name] > 0]
