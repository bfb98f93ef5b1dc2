"""The steps of a training run that `trl-dapo train` and examples/dapo_gsm8k.py share: data, model, results, push."""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from trl import GRPOTrainer, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_dapo.atomic_write import atomic_write
from trl_dapo.checkpoints.files import last_whole_checkpoint
from trl_dapo.checkpoints.resume_choice import wanted_resume
from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.data.checks import check_problems
from trl_dapo.data.held_out import HeldOut, cut_held_out, prompt_key, without_prompts
from trl_dapo.data.hub_access import require_local_or_hub
from trl_dapo.data.problems import SplitNotFoundError, as_problems, has_splits, load_rows, questions_of
from trl_dapo.data.source import DataSource
from trl_dapo.errors import TrainingStoppedError
from trl_dapo.publishing.card import CURVES_FILE
from trl_dapo.publishing.push import PushOptions, push_run
from trl_dapo.recipes.word_problems import TinyTaskArguments, prepare_tiny_task
from trl_dapo.report.curves import plot_curves
from trl_dapo.report.reliability_plot import RELIABILITY_FILE, plot_reliability
from trl_dapo.rewards import get_reward
from trl_dapo.trainer import DAPOTrainer

from .option_check import refuse_without_effect


logger = logging.getLogger(__name__)

_DEFAULT_TEST_SPLIT: str = ScriptArguments.dataset_test_split


@dataclass
class TrainingScriptArguments(TinyTaskArguments, ScriptArguments):
    """Options of a training run that are in neither `DAPOConfig` nor TRL's `ModelConfig`."""

    reward_names: list[str] = field(
        default_factory=lambda: ["accuracy_reward"],
        metadata={
            "help": "Reward functions: names of ours, or module.function of your own, as my_rewards.brevity. The first one "
            "decides which groups are informative."
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "plain, dapo, boxed, or a text around {question}. Unset: conversations stay as they are."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "A system turn before the question."})
    num_shots: int = field(default=0, metadata={"help": "Training rows to show as worked examples in every prompt."})
    drop_duplicates: bool = field(
        default=False,
        metadata={"help": "Keep one row of those with the same question and gold (DAPO-Math-17k repeats them)."},
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Held-out data. Unset: `dataset_test_split` of `dataset_name`, or where there is none, problems that are "
            "cut off the training data."
        },
    )
    num_eval_problems: int = field(default=256, metadata={"help": "Held-out problems for accuracy before and after."})
    compare_grpo: bool = field(
        default=False, metadata={"help": "Also train TRL's GRPOTrainer with the same recipe, and draw both."}
    )

    def __post_init__(self) -> None:
        refuse_without_effect(vars(self))


class ProblemSets(NamedTuple):
    """
    The data of a run.

    Attributes:
        train (`Dataset`), held_out (`Dataset`):
            Problems to train on, and problems to measure. No prompt is in both.
        split (`HeldOut`):
            How they are kept apart.
    """

    train: Dataset
    held_out: Dataset
    split: HeldOut


# Not the seed of the run: runs with several seeds are measured on the same problems.
_SPLIT_SEED = 0


def load_problems(script_args: TrainingScriptArguments) -> ProblemSets:
    """
    Returns the problems to train on and the held-out problems. Both are checked, and no prompt is in both.

    The held-out problems are the first of `eval_dataset_name` or of the test split; training rows with the same prompts are
    left out. Where the data have no test split, some prompts are cut off the training data.

    Args:
        script_args (`TrainingScriptArguments`):
            Names of the data, and how a question becomes a prompt.

    Raises:
        `ValueError`: when rows are unusable (the message has their numbers), or no rows are left to train on.
        `FileNotFoundError`, `HubUnreachableError`: when the data do not exist or cannot be reached.
    """
    if script_args.dataset_name is None:
        raise ValueError("--dataset_name is not set. Give a file, a folder or a Hub id.")
    if script_args.num_eval_problems < 1:
        raise ValueError(f"--num_eval_problems is {script_args.num_eval_problems}, but must be 1 or more. Use 256.")
    rows = load_rows(script_args.dataset_name, script_args.dataset_train_split, script_args.dataset_config)
    num_shots = script_args.num_shots
    if not 0 <= num_shots < len(rows):
        raise ValueError(f"--num_shots is {num_shots}, but must be between 0 and {len(rows) - 1}: the rest trains.")
    shots = rows.select(range(num_shots))
    style: tuple[Any, ...] = (script_args.prompt_template, script_args.system_prompt, shots)
    train = as_problems(rows.select(range(num_shots, len(rows))), *style)
    check_problems(train, first_row=num_shots).refuse_unusable("The training dataset")
    questions = questions_of(rows)
    shown = {prompt_key(question) for question in questions[:num_shots]}
    other = _load_held_out(script_args)
    if other is None:
        chosen = cut_held_out(questions[num_shots:], script_args.num_eval_problems, _SPLIT_SEED, kept=shown)
        problems = train.select(chosen)
        keys = {prompt_key(questions[num_shots + number]) for number in chosen}
    else:
        other_questions = questions_of(other)
        # A worked example is in every prompt, with its answer.
        usable = [number for number, question in enumerate(other_questions) if prompt_key(question) not in shown]
        chosen = usable[: script_args.num_eval_problems]
        problems = as_problems(other.select(chosen), *style)
        check_problems(problems).refuse_unusable("The held-out dataset")
        keys = {prompt_key(other_questions[number]) for number in chosen}
    left = without_prompts(train, questions[num_shots:], keys)
    if len(left) == 0:
        raise ValueError(
            "All prompts of the training dataset are held out too, so nothing is left to train on. Give other held-out data "
            "with --eval_dataset_name, or leave it out: then some problems of the training data are held out."
        )
    split = HeldOut(len(problems), other is None, len(train) - len(left))
    if other is None:
        split = replace(split, rows=[num_shots + number for number in chosen], seed=_SPLIT_SEED)
    if script_args.drop_duplicates:
        # Dropped after the check, so that the check reports the row numbers of the file.
        left = as_problems(left, drop_duplicates=True)
    return ProblemSets(left, problems, split)


def _load_held_out(script_args: TrainingScriptArguments) -> Dataset | None:
    """Returns the rows of the held-out data; `None`: there are none beside the training data."""
    name: Any = script_args.dataset_name
    other, train_split, test_split = (
        script_args.eval_dataset_name or name,
        script_args.dataset_train_split,
        script_args.dataset_test_split,
    )
    if not _is_same_place(other, name):
        return load_rows(other, test_split)
    if not has_splits(name) or train_split == test_split:
        return None
    try:
        return load_rows(name, test_split, script_args.dataset_config)
    except SplitNotFoundError:
        if test_split != _DEFAULT_TEST_SPLIT:
            raise  # the user named it
        return None


def _is_same_place(name: str, other: str) -> bool:
    paths = Path(name).expanduser(), Path(other).expanduser()
    return name == other or (all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve())


def use_model(args: DAPOConfig, model_args: ModelConfig) -> str:
    """
    Returns the name of the model to train, and puts its revision, dtype and attention into `args.model_init_kwargs`.

    Args:
        args (`DAPOConfig`):
            Configuration of the trainer. Its own `model_init_kwargs` win.
        model_args (`ModelConfig`):
            The model that the user named.

    Raises:
        `ValueError`: when no model is named.
        `FileNotFoundError`, `HubUnreachableError`: when the model does not exist or cannot be reached.
    """
    model = model_args.model_name_or_path
    if model is None:
        raise ValueError("--model_name_or_path is not set. Give a local folder or a Hub id.")
    require_local_or_hub(model, "model", "--model_name_or_path")
    init: dict[str, Any] = {"revision": model_args.model_revision, "dtype": model_args.dtype}
    init |= {"attn_implementation": model_args.attn_implementation, **(args.model_init_kwargs or {})}  # type: ignore[dict-item]
    args.model_init_kwargs = init
    return model


def run_training(
    script_args: TrainingScriptArguments,
    args: DAPOConfig,
    model_args: ModelConfig,
    given: dict[str, Any] | None = None,
) -> None:
    """
    Trains a model, evaluates it before and after, and saves it with its card, `curves.png` and `results.json`.

    Args:
        script_args (`TrainingScriptArguments`):
            Data, prompts and rewards.
        args (`DAPOConfig`):
            Configuration of the trainer.
        model_args (`ModelConfig`):
            The model, its precision, and LoRA if any.
        given (`dict[str, Any]`, *optional*):
            The options of `trl-dapo train` that the user gave, for the model card.
    """
    trainer, model = build_trainer(script_args, args, model_args)
    trainer.card_options = given
    compare = (lambda: train_grpo(trainer, model, script_args, model_args)) if script_args.compare_grpo else None
    complete_run(trainer, compare)


def build_trainer(
    script_args: TrainingScriptArguments, args: DAPOConfig, model_args: ModelConfig, keeps_tiny_model: bool = False
) -> tuple[DAPOTrainer, str]:
    """
    Loads data and model of a run, and returns its trainer and the name of the model.

    Args:
        script_args (`TrainingScriptArguments`), args (`DAPOConfig`), model_args (`ModelConfig`):
            As in [`run_training`].
        keeps_tiny_model (`bool`, *optional*, defaults to `False`):
            Whether the model of `tiny_task` is taken from `output_dir` where an earlier process left it there.
    """
    # First of all: a misspelt name should not wait for data and model.
    reward_funcs: Any = [get_reward(name) for name in script_args.reward_names]
    split: HeldOut | None
    if script_args.tiny_task:
        model, train_dataset, eval_dataset = prepare_tiny_task(script_args, args, keeps_tiny_model)
        split = None
    else:
        train_dataset, eval_dataset, split = load_problems(script_args)
        model = use_model(args, model_args)
    trainer = DAPOTrainer(
        model=model,
        args=args,
        reward_funcs=reward_funcs,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    name_data(trainer, script_args, split)
    return trainer, model


def complete_run(trainer: DAPOTrainer, compare: Callable[[], GRPOTrainer] | None = None) -> None:
    """
    Trains a model and saves it; then evaluates it, and writes and pushes the results.

    Nothing that fails after the training loses the model or another step: each step is tried, and the first error is raised
    at the end. A run that a guard stopped is saved too, but neither evaluated nor pushed.

    Args:
        trainer (`DAPOTrainer`):
            A trainer that has not trained yet.
        compare (`Callable[[], GRPOTrainer]`, *optional*):
            Trains and evaluates another trainer, to draw both.

    Raises:
        `TrainingStoppedError`: a guard stopped the run, after model, card and results are saved.
        `Exception`: the first error after the training. Its notes name the step, and the other steps that failed.
    """
    aftermath = _Aftermath(str(trainer.args.output_dir))
    try:
        trainer.train()
    except TrainingStoppedError as stop:
        save_model(trainer)
        finish_run(trainer, aftermath=aftermath)
        raise stop
    save_model(trainer)
    grpo: GRPOTrainer | None = None
    with aftermath.step("the evaluation of the trained model"):
        trainer.evaluate()
        trainer.save_state()  # with the evaluation in its log
    if compare is not None:
        with aftermath.step("the comparison with GRPOTrainer"):
            grpo = compare()
    finish_run(trainer, grpo, aftermath)
    aftermath.raise_first()


class _Aftermath:
    """
    Runs the steps that follow training, so that none that fails loses another.

    Args:
        folder (`str`):
            Where the model is.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.failures: dict[str, Exception] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Inside it, an error is logged and kept."""
        try:
            yield
        except Exception as error:
            self.failures[name] = error
            logger.error(f"The model is saved in {self.folder}, but {name} failed.", exc_info=True)

    def raise_first(self) -> None:
        """Raises the first error, with notes that say what it was and what else failed."""
        for name, error in self.failures.items():
            others = [f"{other} ({type(cause).__name__})" for other, cause in self.failures.items() if other != name]
            error.add_note(f"This was {name}. The model is saved in {self.folder}.")
            if others:
                error.add_note(f"What failed too: {', '.join(others)}.")
            raise error


def name_data(trainer: DAPOTrainer, script_args: TrainingScriptArguments, split: HeldOut | None = None) -> None:
    """
    Tells the trainer where its data come from, for the model card.

    Args:
        trainer (`DAPOTrainer`):
            A trainer that has not trained yet.
        script_args (`TrainingScriptArguments`):
            Names of the data. Without a `dataset_name` nothing is set.
        split (`HeldOut`, *optional*):
            How the held-out problems are kept apart from the training problems.
    """
    name, config = script_args.dataset_name, script_args.dataset_config
    if not name:
        return
    trainer.card_data_source = DataSource.named(name, config, script_args.dataset_train_split)
    trainer.card_held_out = split
    if split is not None:
        if trainer.is_world_process_zero():
            print(split.describe())
        if split.is_cut_from_training:
            trainer.card_eval_source = trainer.card_data_source
            return
    held_out = (script_args.eval_dataset_name, None) if script_args.eval_dataset_name else (name, config)
    trainer.card_eval_source = DataSource.named(*held_out, script_args.dataset_test_split)


def save_model(trainer: GRPOTrainer) -> None:
    """
    Saves model and trainer state in `output_dir`. Pushes nothing: [`finish_run`] pushes the model with its results.

    Args:
        trainer (`GRPOTrainer`):
            A trainer that has trained.
    """
    trainer.save_state()
    trainer.save_model(trainer.args.output_dir, _internal_call=True)


def train_grpo(
    trainer: DAPOTrainer, model: str, script_args: TrainingScriptArguments, model_args: ModelConfig
) -> GRPOTrainer:
    """
    Trains and evaluates TRL's `GRPOTrainer` on the data and settings of a `DAPOTrainer`, in `output_dir`/grpo.

    It is GRPO as TRL has it by default: symmetric clipping, no dynamic sampling, no length penalty.

    Args:
        trainer (`DAPOTrainer`):
            A trainer that has trained.
        model (`str`):
            Name of the model that both start from.
        script_args (`TrainingScriptArguments`), model_args (`ModelConfig`):
            Names of the rewards, and LoRA or quantization if any.
    """
    args: Any = copy.copy(trainer.args)
    args.output_dir, args.epsilon_high = str(Path(args.output_dir) / "grpo"), None
    args.push_to_hub = False  # its repository would be that of the `DAPOTrainer`
    grpo = GRPOTrainer(
        model=model,
        args=args,
        reward_funcs=[get_reward(name) for name in script_args.reward_names],
        train_dataset=trainer.train_dataset,
        eval_dataset=trainer.eval_dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    # Only its own checkpoints fit it.
    newest = last_whole_checkpoint(args.output_dir)[0] if wanted_resume(None, args.resume_from_checkpoint) else None
    grpo.train(resume_from_checkpoint=None if newest is None else str(newest))
    grpo.evaluate()
    grpo.save_state()
    return grpo


def finish_run(trainer: DAPOTrainer, grpo: GRPOTrainer | None = None, aftermath: _Aftermath | None = None) -> None:
    """
    Writes `results.json`, the model card and `curves.png`, prints the results, and pushes with `push_to_hub`.

    Args:
        trainer (`DAPOTrainer`):
            A trainer that has trained, with its model saved. One that a guard stopped is not pushed.
        grpo (`GRPOTrainer`, *optional*):
            The trainer to compare it with.
        aftermath (`_Aftermath`, *optional*):
            Keeps the errors of the steps. `None`: the first one is raised at the end.

    Raises:
        `HubPushError`, `HubUnreachableError`: as in [`~trl_dapo.publishing.push.push_run`].
    """
    args: Any = trainer.args
    steps = aftermath or _Aftermath(args.output_dir)
    if trainer.is_world_process_zero():
        out = Path(args.output_dir)
        curves = out / CURVES_FILE
        with steps.step("writing results.json"):
            results = _results(trainer, grpo)
            atomic_write(out / "results.json", json.dumps(results, indent=2) + "\n")
            _print_results(results, len(trainer.eval_dataset))  # type: ignore[arg-type]
        with steps.step("writing the model card"):
            trainer.create_model_card()  # draws the curves too
        if grpo is not None and curves.exists():
            with steps.step("drawing the curves"):
                # One picture of both, instead of that of the `DAPOTrainer` alone.
                plot_curves({"DAPO": trainer.state.log_history, "GRPO": grpo.state.log_history}, curves, num_columns=2)
        sampler = trainer.dynamic_sampler
        if sampler is not None and sampler.source.selection is not None:
            with steps.step("drawing the reliability of predictions"):
                plot_reliability(sampler.source.selection.reliability.table(), out / RELIABILITY_FILE)
        print(f"  model: {out}\n  model card: {out / 'README.md'}")
        if curves.exists():
            print(f"  curves: {curves}")
        if args.push_to_hub and trainer.stop_reason is None:
            with steps.step("the push"):
                # The repository may hold the weights of an earlier step of this run: they are replaced.
                options = PushOptions(args.hub_private_repo, args.hub_revision, overwrite=True, token=args.hub_token)
                push_run(out, args.hub_model_id, options)
    trainer.accelerator.end_training()
    if aftermath is None:
        steps.raise_first()


def _print_results(results: dict[str, Any], num_problems: int) -> None:
    """Prints the results. What was not measured is not there."""
    measured = [
        f"{results[name]:.1%} {word}"
        for word, name in (("before", "accuracy_before"), ("after", "accuracy_after"))
        if name in results
    ]
    if measured:
        print(f"\nHeld-out accuracy (sampled, {num_problems} problems): {', '.join(measured)}.")
    else:
        print("\nHeld-out accuracy was not measured.")
    for name, value in results.items():
        shown = {key: part for key, part in value.items() if key != "rows"} if isinstance(value, dict) else value
        if not isinstance(value, list):  # a table is in the file
            print(f"  {name}: {shown}")


def _results(trainer: DAPOTrainer, grpo: GRPOTrainer | None) -> dict[str, Any]:
    """
    Returns the content of `results.json`: accuracies, wall times of training with its evaluations, efficiency, reliability.

    Accuracy before is there only if the model was evaluated before the first step (`eval_on_start`).
    """
    results: dict[str, Any] = {f"accuracy_{word}": accuracy for word, accuracy in _accuracies(trainer).items()}
    if trainer.stop_reason is not None:
        results["stopped"] = trainer.stop_reason
    results |= {"train_seconds": _train_seconds(trainer), "seed": trainer.args.seed}
    if trainer.card_held_out is not None:
        results["held_out"] = asdict(trainer.card_held_out)
    if trainer.dynamic_sampler is not None:
        results["rollout_efficiency"] = trainer.dynamic_sampler.rollout_efficiency
        selection = trainer.dynamic_sampler.source.selection
        if selection is not None:
            results["reliability"] = selection.reliability.table()
    if grpo is not None:
        results |= {f"grpo_accuracy_{word}": accuracy for word, accuracy in _accuracies(grpo).items()}
        results["grpo_train_seconds"] = _train_seconds(grpo)
    return results


def _accuracies(trainer: GRPOTrainer) -> dict[str, float]:
    """
    Returns held-out sampled accuracy by the first reward, before the first step and after training, as far as measured.

    Only an evaluation at step 0 is one before training, and only one after the end of training has the final weights.
    """
    metric = f"eval_rewards/{trainer.reward_func_names[0]}/mean"
    history = trainer.state.log_history
    end = max((number for number, entry in enumerate(history) if "train_runtime" in entry), default=len(history))
    before = [entry[metric] for entry in history[:end] if metric in entry and entry["step"] == 0]
    after = [entry[metric] for entry in history[end:] if metric in entry]
    return {word: logged[-1] for word, logged in (("before", before), ("after", after)) if logged}


def _train_seconds(trainer: GRPOTrainer) -> float:
    return [round(entry["train_runtime"], 1) for entry in trainer.state.log_history if "train_runtime" in entry][-1]
