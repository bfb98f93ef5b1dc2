"""Fields of transformers that have two names: TRL sets the old one, and transformers warns of it in every run."""

from typing import Any


# The old name, and the one that newer releases have besides.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def rename_deprecated_fields(config: Any) -> None:
    """Gives the new name the value of the old one, as transformers would with a warning, if the new one has none."""
    for old, new in RENAMED.items():
        if getattr(config, new, False) is None:
            setattr(config, new, getattr(config, old))
