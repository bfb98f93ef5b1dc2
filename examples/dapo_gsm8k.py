# /// script
# requires-python = ">=3.11"
# dependencies = ["trl-dapo[curves]"]
# ///
"""
Trains a model with DAPO on math word problems. A recipe has the settings; options after it replace them.

    accelerate launch examples/dapo_gsm8k.py                                             # GSM8K recipe, from the Hub
    accelerate launch examples/dapo_gsm8k.py --model_name_or_path DIR --dataset_name DIR # local model and data
    python examples/dapo_gsm8k.py --config quickstart                                    # no Hub, no GPU, minutes
"""

import sys

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from trl_dapo import DAPOConfig, DAPOTrainer, HubPushError, HubUnreachableError, TrainingStoppedError
from trl_dapo.command_line.option_check import check_options
from trl_dapo.command_line.training_run import (
    TrainingScriptArguments,
    complete_run,
    load_problems,
    name_data,
    train_grpo,
    use_model,
)
from trl_dapo.recipes import find, with_path
from trl_dapo.recipes.word_problems import prepare_tiny_task
from trl_dapo.rewards import get_reward


DEFAULT_RECIPE = find("gsm8k_qwen2.5_0.5b")


def main(script_args, args, model_args):
    """Trains a model, evaluates it before and after, and saves it with its card, curves and results."""
    if script_args.tiny_task:
        model, train_dataset, eval_dataset = prepare_tiny_task(script_args, args)
        split = None
    else:
        train_dataset, eval_dataset, split = load_problems(script_args)
        model = use_model(args, model_args)

    trainer = DAPOTrainer(
        model=model,
        args=args,
        reward_funcs=[get_reward(name) for name in script_args.reward_names],
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    name_data(trainer, script_args, split)

    # Trains and saves the model; then evaluates it, writes card, curves and results, and pushes all with `push_to_hub`.
    # With `eval_on_start`, which the recipes set, the model is also evaluated before the first step.
    compare = (lambda: train_grpo(trainer, model, script_args, model_args)) if script_args.compare_grpo else None
    complete_run(trainer, compare)


if __name__ == "__main__":
    if "--config" not in sys.argv:
        sys.argv += ["--config", str(DEFAULT_RECIPE)]
    options = with_path(sys.argv[1:])
    try:
        check_options("train", options)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    try:
        parser = TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig))
        main(*parser.parse_args_and_config(options))
    except (HubPushError, HubUnreachableError, TrainingStoppedError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
