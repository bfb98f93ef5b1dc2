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

import copy
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from trl import GRPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config
from word_problems import make_problems, prepare_tiny_model

from trl_dapo import DAPOConfig, DAPOTrainer, HubUnreachableError
from trl_dapo.curves import plot_curves
from trl_dapo.data import as_problems, load_rows
from trl_dapo.hub_access import require_local_or_hub
from trl_dapo.rewards import get_reward


DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "gsm8k_qwen2.5_0.5b.yaml"


@dataclass
class DAPOScriptArguments(ScriptArguments):
    """What the script needs beside `DAPOConfig` and TRL's `ModelConfig`."""

    tiny_task: bool = field(
        default=False, metadata={"help": "Build a tiny model and its word problems instead of loading any."}
    )
    reward_names: list[str] = field(
        default_factory=lambda: ["accuracy_reward"],
        metadata={"help": "Reward functions; the first decides the filter."},
    )
    prompt_template: str = field(default="{question}", metadata={"help": "The user's turn, around {question}."})
    system_prompt: str | None = field(default=None, metadata={"help": "A system turn before the question."})
    num_shots: int = field(default=0, metadata={"help": "Training rows to show as worked examples in every prompt."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Held-out data, if from elsewhere."})
    num_eval_problems: int = field(default=256, metadata={"help": "Held-out problems for accuracy before and after."})
    compare_grpo: bool = field(
        default=False, metadata={"help": "Train TRL's GRPOTrainer on the same recipe too, and draw both."}
    )


def load_problems(script_args, seed):
    """Returns problems to train on and problems to hold out."""
    if script_args.tiny_task:
        return make_problems(4000, seed=seed), make_problems(script_args.num_eval_problems, seed=seed + 1)
    rows = load_rows(script_args.dataset_name, script_args.dataset_train_split, script_args.dataset_config)
    if script_args.eval_dataset_name:
        held_out = load_rows(script_args.eval_dataset_name, script_args.dataset_test_split)
    else:
        held_out = load_rows(script_args.dataset_name, script_args.dataset_test_split, script_args.dataset_config)
    shots = rows.select(range(script_args.num_shots))
    train = rows.select(range(script_args.num_shots, len(rows)))
    held_out = held_out.select(range(min(script_args.num_eval_problems, len(held_out))))
    style = (script_args.prompt_template, script_args.system_prompt, shots)
    return as_problems(train, *style), as_problems(held_out, *style)


def train(trainer_class, args, model_args, script_args, model, train_dataset, eval_dataset):
    """Trains and evaluates; returns the trainer and its wall time in seconds, evaluation included."""
    trainer = trainer_class(
        model=model,
        args=args,
        reward_funcs=[get_reward(name) for name in script_args.reward_names],
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - start
    trainer.evaluate()
    return trainer, seconds


def accuracies(trainer):
    """Returns held-out sampled accuracy before and after training."""
    metric = "eval_rewards/accuracy_reward/mean"
    logged = [entry[metric] for entry in trainer.state.log_history if metric in entry]
    return logged[0], logged[-1]


def main(script_args, args, model_args):
    """Trains, evaluates before and after, and saves the model, its card, the curves and the results."""
    train_dataset, eval_dataset = load_problems(script_args, args.seed)
    out = Path(args.output_dir)
    model = model_args.model_name_or_path
    if script_args.tiny_task:
        with args.main_process_first(desc="warming up the tiny model"):
            model = str(out / "tiny-model")
            if args.process_index == 0:
                prepare_tiny_model(model, seed=args.seed, num_heads=3 if args.use_vllm else 4)
    else:
        require_local_or_hub(model, "model", "--model_name_or_path")
        init = {"revision": model_args.model_revision, "dtype": model_args.dtype}
        init |= {"attn_implementation": model_args.attn_implementation, **(args.model_init_kwargs or {})}
        args.model_init_kwargs = init

    grpo_args = copy.copy(args)
    trainer, seconds = train(DAPOTrainer, args, model_args, script_args, model, train_dataset, eval_dataset)
    trainer.save_model(args.output_dir)
    histories = {"DAPO": trainer.state.log_history}
    before, after = accuracies(trainer)
    results = {
        "accuracy_before": before,
        "accuracy_after": after,
        "train_seconds": round(seconds, 1),
        "seed": args.seed,
    }
    if trainer.dynamic_sampler is not None:
        results["rollout_efficiency"] = trainer.dynamic_sampler.rollout_efficiency
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)

    if script_args.compare_grpo:
        # GRPO as TRL ships it: symmetric clipping, no dynamic sampling, no length penalty; all else the same.
        grpo_args.output_dir, grpo_args.epsilon_high = str(out / "grpo"), None
        grpo, seconds = train(GRPOTrainer, grpo_args, model_args, script_args, model, train_dataset, eval_dataset)
        histories["GRPO"] = grpo.state.log_history
        results["grpo_accuracy_after"] = accuracies(grpo)[1]
        results["grpo_train_seconds"] = round(seconds, 1)

    if trainer.is_world_process_zero():
        trainer.create_model_card(model_name=out.name, dataset_name=script_args.dataset_name)
        curves = plot_curves(histories, out / "curves.png")
        (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        print(f"\nHeld-out accuracy (sampled, {len(eval_dataset)} problems): {before:.1%} before, {after:.1%} after.")
        for name, value in results.items():
            print(f"  {name}: {value}")
        print(f"  model: {out}\n  model card: {out / 'README.md'}\n  curves: {curves}")
    trainer.end()


if __name__ == "__main__":
    if "--config" not in sys.argv:
        sys.argv += ["--config", str(DEFAULT_RECIPE)]
    try:
        main(*TrlParser((DAPOScriptArguments, DAPOConfig, ModelConfig)).parse_args_and_config())
    except (HubUnreachableError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
