"""The quickstart's recipe, with its model, task and reward, as a training that may be killed."""

import sys
from dataclasses import fields
from pathlib import Path

import yaml
from doomed_training import DoomedDAPOTrainer, DoomedGRPOTrainer
from trl import GRPOConfig

from trl_dapo import DAPOConfig
from trl_dapo.rewards import accuracy_reward


EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from trl_dapo.recipes.word_problems import build_model, build_tokenizer, make_problems, prepare_tiny_model, warm_up  # noqa: E402


RECIPE = EXAMPLES / "recipes" / "quickstart.yaml"
CLASSES = {"DAPOTrainer": (DoomedDAPOTrainer, DAPOConfig), "GRPOTrainer": (DoomedGRPOTrainer, GRPOConfig)}

# A trial in seconds: 4 generation batches of 8 groups of 8 and not 15 of 64 groups, and no evaluation. A generation batch
# trains for 4 optimizer steps, so that most checkpoints fall into the midst of one.
SHORT = {
    "per_device_train_batch_size": 16, "max_steps": 16, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2,
    "eval_on_start": False, "logging_steps": 1, "disable_tqdm": True,
}  # fmt: skip
CARRY = {"surplus": "carry", "refill_confidence": 0.99, "selective_rollout": True}


def warmed_up_model(folder, is_hasty=False):
    """
    Makes the recipe's model, and returns its folder.

    With `is_hasty` in a few seconds, by a quarter of the warm-up's steps on half of its batch: one prompt in six has
    correct and wrong completions among eight.
    """
    if is_hasty:
        tokenizer = build_tokenizer()
        model = build_model(tokenizer, seed=0)
        warm_up(model, tokenizer, seed=0, num_steps=120, batch_size=32)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        prepare_tiny_model(folder, seed=0)
    return str(folder)


def recipe_training(folder, options):
    """
    Returns the class of a trainer of the quickstart's recipe, and its arguments.

    Args:
        folder: where it trains.
        options: `model` (a warmed-up one), `trainer` (ours or TRL's) and `num_problems` to train on; all others are
            fields of the configuration, over those of the recipe.
    """
    trainer_class, config_class = CLASSES[options.pop("trainer", "DAPOTrainer")]
    model, num_problems = options.pop("model"), options.pop("num_problems", 4000)
    names = {field.name for field in fields(config_class)}
    values = {name: value for name, value in yaml.safe_load(RECIPE.read_text()).items() if name in names}
    args = config_class(**values | SHORT | {"output_dir": str(folder)} | options)
    return trainer_class, {
        "model": model,
        "reward_funcs": accuracy_reward,
        "args": args,
        "train_dataset": make_problems(num_problems, seed=args.seed),
    }
