"""Checks of `overlap`: the next batch is sampled while one trains."""

from typing import Any


# What `overlap` needs, and why.
_NEEDED = {
    "dynamic_sampling": (True, "what is sampled ahead is a batch of informative groups"),
    "use_vllm": (True, "something else than the trainer has to sample"),
    "vllm_mode": ("server", "an engine in this process waits while the model trains"),
    "refill": ("stream", "a round is a call of all ranks"),
}
# Weights of single tokens. That of a whole sequence grows or falls with its length, and here every token has one.
_MODES = ("token_truncate", "token_mask")


def check_overlap(config: Any) -> None:
    """
    Checks that a configuration can sample while it trains.

    Raises:
        `ValueError`: naming the field that is in the way, its value and what it must be.
    """
    if not config.overlap:
        return
    for name, (needed, reason) in _NEEDED.items():
        value = getattr(config, name)
        if value != needed:
            raise ValueError(
                f"overlap is True, but {name} is {value!r} and must be {needed!r}: {reason}. Set {name}={needed!r}, or "
                "overlap=False."
            )
    mode = config.vllm_importance_sampling_mode
    if config.vllm_importance_sampling_correction and mode not in _MODES:
        raise ValueError(
            f"overlap is True, but vllm_importance_sampling_mode is {mode!r} and must be one of {', '.join(map(repr, _MODES))}: "
            "the weight of a whole sequence that an older policy sampled is far from 1, and most long ones would be lost. Set "
            "vllm_importance_sampling_correction=False, which takes the ratio against the policy that sampled, or "
            'vllm_importance_sampling_mode="token_truncate", which weights single tokens; or overlap=False.'
        )
