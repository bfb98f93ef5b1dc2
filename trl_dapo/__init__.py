"""DAPO for Hugging Face TRL: the `GRPOTrainer` that trains only on groups with a learning signal."""

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .config.dapo_config import DAPOConfig
    from .errors import (
        HubPushError,
        HubUnreachableError,
        NonFiniteGradientError,
        RankFailedError,
        RefillExhaustedError,
        RewardTimeoutError,
        StaleEngineError,
        TrainingStoppedError,
    )
    from .trainer import DAPOTrainer

__version__ = "0.1.0"

__all__ = [
    "DAPOConfig",
    "DAPOTrainer",
    "HubPushError",
    "HubUnreachableError",
    "NonFiniteGradientError",
    "RankFailedError",
    "RefillExhaustedError",
    "RewardTimeoutError",
    "StaleEngineError",
    "TrainingStoppedError",
    "__version__",
]

_MODULE_OF = {
    "DAPOConfig": "config.dapo_config",
    "DAPOTrainer": "trainer",
    "HubPushError": "errors",
    "HubUnreachableError": "errors",
    "NonFiniteGradientError": "errors",
    "RankFailedError": "errors",
    "RefillExhaustedError": "errors",
    "RewardTimeoutError": "errors",
    "StaleEngineError": "errors",
    "TrainingStoppedError": "errors",
}


# Resolved on first use, so that the pure modules of `trl_dapo.sampling` import without torch or TRL.
def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
