"""Positions of padded prompts, for models that learn an embedding of each position."""

import inspect
from typing import Any

import torch


def number_from_first_token(model: torch.nn.Module) -> None:
    """
    Has the positions of a padded sequence begin at its first token, in GPT-2, GPT-Neo and GPT-BigCode.

    `generate` numbers tokens so. TRL's forward pass leaves positions out, and these models then count the padding on the
    left too: they would score other positions than they sampled. With rotary positions only distances count.

    Args:
        model (`torch.nn.Module`):
            The model. Changed in place, where it has such an embedding.

    Example:

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=4, n_layer=1, n_head=1)).eval()
    >>> number_from_first_token(model)
    >>> padded = model(input_ids=torch.tensor([[0, 5, 6]]), attention_mask=torch.tensor([[0, 1, 1]])).logits[0, 1:]
    >>> torch.allclose(padded, model(input_ids=torch.tensor([[5, 6]])).logits[0], atol=1e-6)
    True
    """
    for module in model.modules():
        has_embedding = isinstance(getattr(module, "wpe", None), torch.nn.Embedding)
        if has_embedding and "position_ids" in inspect.signature(module.forward).parameters:
            module.register_forward_pre_hook(_add_positions, with_kwargs=True)


def _add_positions(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    # While tokens are generated, `generate` numbers them.
    is_numbered = kwargs.get("position_ids") is not None or bool(kwargs.get("past_key_values"))
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not is_numbered:
        kwargs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return args, kwargs
