# /// script
# requires-python = ">=3.11"
# dependencies = ["trl-dapo[curves]"]
# ///
"""
DAPO on math word problems: one script from a laptop to a cluster; recipes say which.

    accelerate launch examples/dapo_gsm8k.py                                             # GSM8K recipe, from the Hub
    accelerate launch examples/dapo_gsm8k.py --model_name_or_path DIR --dataset_name DIR # local model and data
    python examples/dapo_gsm8k.py --config examples/recipes/quickstart.yaml              # no Hub, no GPU, minutes
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig, TrlParser
from word_problems import make_problems, prepare_tiny_model

from trl_dapo import DAPOConfig, HubPushError, HubUnreachableError
from trl_dapo.command_line.training_run import TrainingScriptArguments, run_training


DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "gsm8k_qwen2.5_0.5b.yaml"


@dataclass
class DAPOScriptArguments(TrainingScriptArguments):
    """The options of `trl-dapo train`, and a task that needs no data."""

    tiny_task: bool = field(
        default=False, metadata={"help": "Build a tiny model and its word problems instead of loading any."}
    )
    tiny_num_heads: int | None = field(
        default=None,
        metadata={"help": "Attention heads of the tiny model. Unset: 4, or 3 with vLLM, whose CPU wants 32 each."},
    )


def main(script_args, args, model_args):
    """Trains, evaluates before and after, and saves the model, its card, the curves and the results."""
    if not script_args.tiny_task:
        run_training(script_args, args, model_args)
        return

    def make_model():
        folder = str(Path(args.output_dir) / "tiny-model")
        with args.main_process_first(desc="warming up the tiny model"):
            if args.process_index == 0:
                num_heads = script_args.tiny_num_heads or (3 if args.use_vllm else 4)
                prepare_tiny_model(folder, seed=args.seed, num_heads=num_heads)
        return folder

    problems = make_problems(4000, seed=args.seed), make_problems(script_args.num_eval_problems, seed=args.seed + 1)
    run_training(script_args, args, model_args, problems, make_model)


if __name__ == "__main__":
    if "--config" not in sys.argv:
        sys.argv += ["--config", str(DEFAULT_RECIPE)]
    try:
        main(*TrlParser((DAPOScriptArguments, DAPOConfig, ModelConfig)).parse_args_and_config())
    except (HubPushError, HubUnreachableError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
