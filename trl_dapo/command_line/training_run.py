"""One training run from its options to a saved model: what `trl-dapo train` and the example script share."""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOTrainer, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.data.checks import check_problems
from trl_dapo.data.hub_access import require_local_or_hub
from trl_dapo.data.problems import as_problems, load_rows
from trl_dapo.data.source import DataSource
from trl_dapo.publishing.card import CURVES_FILE
from trl_dapo.publishing.push import PushOptions, push_run
from trl_dapo.report.curves import plot_curves
from trl_dapo.rewards import get_reward
from trl_dapo.trainer import DAPOTrainer


@dataclass
class TrainingScriptArguments(ScriptArguments):
    """What a run needs beside `DAPOConfig` and TRL's `ModelConfig`."""

    reward_names: list[str] = field(
        default_factory=lambda: ["accuracy_reward"],
        metadata={"help": "Reward functions; the first decides the filter."},
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "plain, dapo, boxed, or a text around {question}. Unset: conversations stay as they are."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "A system turn before the question."})
    num_shots: int = field(default=0, metadata={"help": "Training rows to show as worked examples in every prompt."})
    drop_duplicates: bool = field(
        default=False, metadata={"help": "Train on each question and gold once (DAPO-Math-17k repeats them)."}
    )
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Held-out data, if from elsewhere."})
    num_eval_problems: int = field(default=256, metadata={"help": "Held-out problems for accuracy before and after."})
    compare_grpo: bool = field(
        default=False, metadata={"help": "Train TRL's GRPOTrainer on the same recipe too, and draw both."}
    )


def load_problems(script_args: TrainingScriptArguments) -> tuple[Dataset, Dataset]:
    """
    Returns problems to train on and problems to hold out, both checked.

    Raises:
        `ValueError`: when rows are unusable; the message has their numbers.
        `FileNotFoundError`, `HubUnreachableError`: when there are no such data.
    """
    if script_args.dataset_name is None:
        raise ValueError("--dataset_name is not set. Give a file, a folder or a Hub id.")
    rows = load_rows(script_args.dataset_name, script_args.dataset_train_split, script_args.dataset_config)
    if script_args.eval_dataset_name:
        held_out = load_rows(script_args.eval_dataset_name, script_args.dataset_test_split)
    else:
        held_out = load_rows(script_args.dataset_name, script_args.dataset_test_split, script_args.dataset_config)
    num_shots = script_args.num_shots
    if not 0 <= num_shots < len(rows):
        raise ValueError(f"--num_shots is {num_shots}, but must be between 0 and {len(rows) - 1}: the rest trains.")
    shots = rows.select(range(num_shots))
    held_out = held_out.select(range(min(script_args.num_eval_problems, len(held_out))))
    style: tuple[Any, ...] = (script_args.prompt_template, script_args.system_prompt, shots)
    train = as_problems(rows.select(range(num_shots, len(rows))), *style)
    check_problems(train, first_row=num_shots).refuse_unusable("The training dataset")
    if script_args.drop_duplicates:
        # After the check, so that it names rows of the file.
        train = as_problems(train, drop_duplicates=True)
    problems = as_problems(held_out, *style)
    check_problems(problems).refuse_unusable("The held-out dataset")
    return train, problems


def run_training(
    script_args: TrainingScriptArguments,
    args: DAPOConfig,
    model_args: ModelConfig,
    problems: tuple[Dataset, Dataset] | None = None,
    make_model: Callable[[], str] | None = None,
) -> None:
    """
    Trains, evaluates before and after, and saves the model, its card, the curves and `results.json`.

    Args:
        script_args (`TrainingScriptArguments`):
            Data, prompts and rewards.
        args (`DAPOConfig`):
            Configuration of the trainer.
        model_args (`ModelConfig`):
            The model, its precision, and LoRA if any.
        problems (`tuple[Dataset, Dataset]`, *optional*):
            Problems to train on and to hold out. `None`: those that `script_args` names.
        make_model (`Callable[[], str]`, *optional*):
            Makes the model and returns its folder. `None`: the model that `model_args` names.
    """
    train_dataset, eval_dataset = load_problems(script_args) if problems is None else problems
    out = Path(args.output_dir)  # type: ignore[arg-type]  # TRL's default is resolved by now
    if make_model is not None:
        model = make_model()
    else:
        if model_args.model_name_or_path is None:
            raise ValueError("--model_name_or_path is not set. Give a local folder or a Hub id.")
        model = model_args.model_name_or_path
        require_local_or_hub(model, "model", "--model_name_or_path")
        init: dict[str, Any] = {"revision": model_args.model_revision, "dtype": model_args.dtype}
        init |= {"attn_implementation": model_args.attn_implementation, **(args.model_init_kwargs or {})}  # type: ignore[dict-item]
        args.model_init_kwargs = init

    grpo_args = copy.copy(args)
    grpo_args.push_to_hub = False  # it would go where DAPO's model goes
    trainer, seconds = _train(DAPOTrainer, args, model_args, script_args, model, train_dataset, eval_dataset)
    # Not yet pushed, although `push_to_hub` is set: figures and curves go with it.
    trainer.save_model(args.output_dir, _internal_call=True)
    histories = {"DAPO": trainer.state.log_history}
    before, after = _accuracies(trainer)
    results = {
        "accuracy_before": before,
        "accuracy_after": after,
        "train_seconds": round(seconds, 1),
        "seed": args.seed,
    }
    if trainer.dynamic_sampler is not None:
        results["rollout_efficiency"] = trainer.dynamic_sampler.rollout_efficiency
    if script_args.compare_grpo:
        # GRPO as TRL ships it: symmetric clipping, no dynamic sampling, no length penalty; all else the same.
        grpo_args.output_dir, grpo_args.epsilon_high = str(out / "grpo"), None
        grpo, seconds = _train(GRPOTrainer, grpo_args, model_args, script_args, model, train_dataset, eval_dataset)
        histories["GRPO"] = grpo.state.log_history
        results["grpo_accuracy_after"] = _accuracies(grpo)[1]
        results["grpo_train_seconds"] = round(seconds, 1)

    if trainer.is_world_process_zero():
        trainer.create_model_card()
        curves = plot_curves(histories, out / CURVES_FILE, num_columns=2)
        (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        print(f"\nHeld-out accuracy (sampled, {len(eval_dataset)} problems): {before:.1%} before, {after:.1%} after.")
        for name, value in results.items():
            print(f"  {name}: {value}")
        print(f"  model: {out}\n  model card: {out / 'README.md'}\n  curves: {curves}")
        if args.push_to_hub:
            # What was pushed in training has other weights, so they are written over.
            options = PushOptions(args.hub_private_repo, args.hub_revision, overwrite=True, token=args.hub_token)
            push_run(out, args.hub_model_id, options)
    trainer.accelerator.end_training()


def _train(
    trainer_class: type[GRPOTrainer],
    args: Any,
    model_args: ModelConfig,
    script_args: TrainingScriptArguments,
    model: str,
    train_dataset: Dataset,
    eval_dataset: Dataset,
) -> tuple[Any, float]:
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
    if isinstance(trainer, DAPOTrainer) and script_args.dataset_name:
        name, config = script_args.dataset_name, script_args.dataset_config
        trainer.card_data_source = DataSource.named(name, config, script_args.dataset_train_split)
        held_out = (script_args.eval_dataset_name, None) if script_args.eval_dataset_name else (name, config)
        trainer.card_eval_source = DataSource.named(*held_out, script_args.dataset_test_split)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - start
    trainer.evaluate()
    trainer.save_state()
    return trainer, seconds


def _accuracies(trainer: Any) -> tuple[float, float]:
    """Returns held-out sampled accuracy before and after training, by the first reward."""
    metric = f"eval_rewards/{trainer.reward_func_names[0]}/mean"
    logged = [entry[metric] for entry in trainer.state.log_history if metric in entry]
    return logged[0], logged[-1]
