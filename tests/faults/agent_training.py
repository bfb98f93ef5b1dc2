"""The training of the tiny chat model with an environment, for runs that are killed."""

from doomed_training import Doomed
from tiny_tools import (
    Counted,
    ScriptedDAPO,
    chat_arguments,
    chat_model,
    chat_tokenizer,
    problems,
    scripted_turn,
    solved,
)
from trl import GRPOTrainer

from trl_dapo import DAPOConfig


class DoomedChatTrainer(Doomed, ScriptedDAPO):
    pass


def agent_training(folder, options):
    """Returns the class of a trainer of the tiny chat model, and its arguments."""
    GRPOTrainer._generate_single_turn = scripted_turn
    return DoomedChatTrainer, {
        "model": chat_model(),
        "reward_funcs": solved,
        "args": DAPOConfig(**chat_arguments(folder, **{"soft_punish_cache": 0} | options)),
        "train_dataset": problems(24),
        "processing_class": chat_tokenizer(),
        "environment_factory": Counted,
    }
