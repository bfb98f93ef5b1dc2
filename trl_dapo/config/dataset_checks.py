"""Refuses what cannot work with dynamic sampling, before anything is loaded or generated."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset


# What TRL hands to every reward function beside the dataset's columns.
_REWARD_ARGUMENTS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)

# What `remove_unused_columns` leaves of a dataset.
_KEPT_COLUMNS = frozenset({"prompt", "image", "images"})


def find_filter_columns(filter_reward: str | Sequence[str] | None, reward_names: Sequence[str]) -> list[int]:
    """
    Returns the numbers of the reward functions that judge groups: each group by the first that scored it.

    Args:
        filter_reward (`str` or `Sequence[str]` or `None`):
            One name or several; `None`: all, in their order.
        reward_names (`Sequence[str]`):
            Names of the reward functions.

    Raises:
        `ValueError`: when there is none of a name, or a name twice.

    Example:

    >>> find_filter_columns("accuracy", ["format", "accuracy"])
    [1]
    >>> find_filter_columns(None, ["math", "code"])
    [0, 1]
    """
    if filter_reward is None:
        return list(range(len(reward_names)))
    names = [filter_reward] if isinstance(filter_reward, str) else list(filter_reward)
    for name in names:
        if name not in reward_names:
            known = ", ".join(map(repr, reward_names))
            raise ValueError(
                f"filter_reward is {filter_reward!r}, but must be one of the reward functions: {known}, or a list of them. "
                "Leave it None to judge each group by the first that scored it."
            )
    if len(set(names)) < max(1, len(names)):
        raise ValueError(
            f"filter_reward is {filter_reward!r}, but must name each reward function once, the first to ask first."
        )
    return [reward_names.index(name) for name in names]


def numbered_names(names: Sequence[str]) -> list[str]:
    """
    Returns the names of reward functions, with a number where one repeats an earlier one.

    >>> numbered_names(["accuracy", "<lambda>", "<lambda>", "accuracy"])
    ['accuracy', '<lambda>', '<lambda>_2', 'accuracy_2']
    """
    taken: set[str] = set()
    numbered = []
    for name in names:
        unique, number = name, 1
        while unique in taken or (number > 1 and unique in names):
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique)
        numbered.append(unique)
    return numbered


# Tasks after which an environment that invents them sees the seeds of the first ones again.
_NUM_SEEDED_TASKS = 10_000
_TURNS = ("tools", "environment_factory", "rollout_func")


def has_turns(trainer_arguments: Mapping[str, Any]) -> bool:
    """
    Returns whether completions may hold tokens that the model did not write.

    Args:
        trainer_arguments (`Mapping[str, Any]`):
            Keyword arguments of the trainer.

    >>> has_turns({"tools": [print]}), has_turns({"tools": []})
    (True, False)
    """
    return any(trainer_arguments.get(name) for name in _TURNS)


def check_turns(trainer_arguments: Mapping[str, Any], args: Any) -> None:
    """
    Checks that tools, environments and rollout functions are used in a way that dynamic sampling can sample.

    Args:
        trainer_arguments (`Mapping[str, Any]`):
            Keyword arguments of the trainer.
        args (`DAPOConfig`):
            The configuration.

    Raises:
        `ValueError`: naming the argument and the field.
    """
    given = [name for name in _TURNS if trainer_arguments.get(name)]
    if given and args.refill == "stream":
        raise ValueError(
            f'`{given[0]}` is set, but refill is "stream", which has no place for what comes between two turns of a completion: '
            'calls of tools beside the sampling, and environments that outlive a batch. Set refill="rounds".'
        )


def seeded_tasks(trainer_arguments: Mapping[str, Any], args: Any) -> Dataset:
    """
    Returns the dataset of an environment that invents its tasks: rows with a seed for each, and nothing else to say.

    Args:
        trainer_arguments (`Mapping[str, Any]`):
            Keyword arguments of the trainer.
        args (`DAPOConfig`):
            The configuration.

    Raises:
        `ValueError`: environments that are chosen by row have no dataset to choose by, or nothing says how long to train.
    """
    if isinstance(trainer_arguments["environment_factory"], Mapping):
        raise ValueError(
            "train_dataset is None, but `environment_factory` has several environments. Pass a dataset with a column "
            "'environment', which names that of each row."
        )
    if args.max_steps <= 0:
        raise ValueError(
            f"train_dataset is None and max_steps is {args.max_steps}, so that nothing says how long to train. Set max_steps."
        )
    num_tasks = max(_NUM_SEEDED_TASKS, args.num_groups_per_batch)
    return Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": ""}]] * num_tasks, "seed": list(range(num_tasks))}
    )


def check_evaluation_shape(args: Any, eval_dataset: Any) -> None:
    """
    Checks that evaluation batches hold whole groups, which TRL finds out in its first evaluation.

    Args:
        args (`DAPOConfig`):
            The configuration.
        eval_dataset (`Any`):
            The evaluation dataset or datasets. `None`: there is no evaluation.

    Raises:
        `ValueError`: naming the fields and what fits.
    """
    num_generations = args.num_generations_eval or args.num_generations
    num_completions = args.per_device_eval_batch_size * args.world_size
    if eval_dataset is not None and num_completions % num_generations:
        fitting = -(-num_completions // num_generations) * num_generations
        while fitting % args.world_size:
            fitting += num_generations
        raise ValueError(
            f"per_device_eval_batch_size is {args.per_device_eval_batch_size}, but an evaluation batch of "
            f"{num_completions} completions over {args.world_size} processes must be whole groups of {num_generations} "
            f"(num_generations_eval, or num_generations). Set per_device_eval_batch_size={fitting // args.world_size}, or "
            "num_generations_eval."
        )


def check_best_metric(args: Any, eval_dataset: Any) -> None:
    """
    Checks that the metric which chooses the best model is one that evaluation logs.

    Args:
        args (`DAPOConfig`):
            The configuration.
        eval_dataset (`Any`):
            The evaluation dataset or datasets.

    Raises:
        `ValueError`: of several datasets, none is named.
    """
    name = args.metric_for_best_model
    if not isinstance(eval_dataset, Mapping) or name is None:
        return
    if not (args.load_best_model_at_end or args.save_strategy == "best"):
        return
    metric = name.removeprefix("eval_")
    if not any(metric.startswith(f"{dataset}_") for dataset in eval_dataset):
        choices = ", ".join(f"'eval_{dataset}_{metric}'" for dataset in eval_dataset)
        raise ValueError(
            f"metric_for_best_model is {name!r}, but there are several evaluation datasets, whose metrics carry their name. "
            f"Set it to one of {choices}."
        )


def check_train_dataset(
    dataset: Dataset | IterableDataset | None,
    reward_funcs: Any,
    num_groups_per_batch: int,
    selective_rollout: bool = False,
    is_whole: bool = True,
    has_rewards: bool = False,
) -> None:
    """
    Checks the training dataset of a run with dynamic sampling.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            The training dataset.
        reward_funcs (`Callable` or `list[Callable]`):
            The reward functions, whose required arguments must be columns.
        num_groups_per_batch (`int`):
            Prompts of one generation batch.
        selective_rollout (`bool`, *optional*, defaults to `False`):
            Whether outcomes are remembered by row number.
        is_whole (`bool`, *optional*, defaults to `True`):
            Whether prompts and what rewards need are all in the dataset. `False`: an environment or a rollout function adds to
            it.
        has_rewards (`bool`, *optional*, defaults to `False`):
            Whether environments give rewards.

    Raises:
        `ValueError`: naming what is missing and what to do.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ValueError(
            f"train_dataset is {'None' if dataset is None else f'of type `{type(dataset).__name__}`'}, but must be a "
            "`datasets.Dataset` or `datasets.IterableDataset`."
        )
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError("train_dataset has no rows. Check the split and any filter applied to it.")
    if not reward_funcs and not has_rewards:
        raise ValueError(
            "reward_funcs is empty, but dynamic sampling filters by a reward. Pass at least one function."
        )
    if isinstance(dataset, Dataset) and len(dataset) < num_groups_per_batch:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows, but one generation batch needs {num_groups_per_batch} prompts "
            "(generation_batch_size / num_generations). Add rows, or lower per_device_train_batch_size, or "
            "gradient_accumulation_steps and steps_per_generation."
        )
    if selective_rollout and isinstance(dataset, IterableDataset):
        raise ValueError(
            "selective_rollout is True, but remembers outcomes by row number, which an IterableDataset has not. Pass a "
            "`datasets.Dataset`, or set selective_rollout=False."
        )
    if is_whole:
        check_columns("train_dataset", dataset, reward_funcs)


def check_columns(name: str, dataset: Any, reward_funcs: Any, removes_columns: bool = False) -> None:
    """
    Checks that a dataset has the columns which prompts and rewards are made of.

    Args:
        name (`str`):
            How messages call the dataset.
        dataset (`Dataset` or `IterableDataset`):
            The dataset. One that does not tell its columns before it is read is not checked.
        reward_funcs (`Callable` or `list[Callable]`):
            The reward functions, whose required arguments must be columns.
        removes_columns (`bool`, *optional*, defaults to `False`):
            Whether `remove_unused_columns` takes all columns but the prompt and its images away.

    Raises:
        `ValueError`: naming what is missing.
    """
    columns = getattr(dataset, "column_names", None)
    if columns is None or (isinstance(dataset, Dataset) and dataset.format["type"] == "custom"):
        return
    if "prompt" not in columns:
        raise ValueError(
            f"{name} has no column 'prompt', only {columns}. Rename the column that holds the "
            "question: dataset.rename_column(..., 'prompt')."
        )
    for function in reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]:
        reward = getattr(function, "__name__", function)
        needed = list(_required_columns(function))
        missing = [column for column in needed if column not in columns]
        if missing:
            raise ValueError(
                f"The reward function {reward!r} needs the columns {missing}, but "
                f"{name} has only {columns}. Add or rename the columns."
            )
        removed = [column for column in needed if column not in _KEPT_COLUMNS]
        if removes_columns and removed:
            raise ValueError(
                f"The reward function {reward!r} needs the columns {removed}, which remove_unused_columns=True takes out of "
                f"{name}. Set remove_unused_columns=False."
            )


def _required_columns(function: Any) -> Iterable[str]:
    if isinstance(function, str) or not callable(function) or hasattr(function, "forward"):
        return  # a reward model: it reads the conversation only
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return  # nobody can tell
    for parameter in parameters:
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and parameter.default is parameter.empty and parameter.name not in _REWARD_ARGUMENTS:
            yield parameter.name
