"""
Everything private of TRL, transformers and vLLM that the package reads, calls or replaces: read this file when TRL moves.

Three kinds of seams:

- *Overridden methods*, listed in `OVERRIDDEN` with the reason. The overrides stand in `trainer.py`, `checkpoints/`,
  `publishing/` and `vllm_engine/`, and each calls `super()`.
- *Calls of private methods*, in [`TrainerSeams`]: the other rooms receive it instead of the trainer.
- *Replaced names*, for which TRL has no argument: [`replaced`] and [`rebound`].

`tests/test_trl_seams.py` compares them with the installed releases, and `TESTED` says with which ones they were compared.
"""

import asyncio
import copy
import functools
import inspect
import itertools
import types
import warnings
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import DistributedType
from packaging.version import Version
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context, profiling_decorator
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer import grpo_trainer
from trl.trainer.utils import RepeatSampler


# First and last minor release of each package that the tests ran with: docs/versions.md.
TESTED: dict[str, tuple[str, str]] = {
    "trl": ("1.14", "1.16"),
    "transformers": ("5.17", "5.24"),
    "accelerate": ("1.10", "1.15"),
    "peft": ("0.18", "0.21"),
    "vllm": ("0.27", "0.32"),
}


def is_tested(name: str, installed: Version) -> bool:
    """Returns whether a release of a package in [`TESTED`] lies within the tested range."""
    first, last = map(Version, TESTED[name])
    return first.release <= installed.release[:2] <= last.release


def warn_of_untested_releases() -> None:
    """Warns once, in one warning, of the installed packages whose private parts the package uses and was not tested with."""
    untested = []
    for name, (first, last) in TESTED.items():
        try:
            installed = Version(version(name))
        except PackageNotFoundError:
            continue
        if not is_tested(name, installed):
            untested.append(f"{name} {installed} (tested: {first} to {last})")
    if untested:
        warnings.warn(
            f"trl-dapo was not tested with {', '.join(untested)}, and it overrides private methods. If training fails or "
            "figures look wrong, install a tested release, or a newer trl-dapo. docs/versions.md says how to test others.",
            stacklevel=2,
        )


# Methods of `GRPOTrainer` and its bases that are overridden, and what for.
OVERRIDDEN: dict[str, str] = {
    "_calculate_rewards": "replay; deadline of each reward function; penalty of long completions",
    "_generate": "replay; length and truncation of each completion",
    "_generate_and_score_completions": "collects a generation batch, then has TRL score it",
    "_generate_single_turn": "rounds larger than a generation batch; empty completions",
    "_get_per_token_logps_and_entropies": "old log-probabilities of carried rollouts; what the loss computed",
    "_issue_warnings_after_load": "weights under other names",
    "_load_optimizer_and_scheduler": "state of the run",
    "_tool_call_loop": "turns after a call of a tool: seeds; empty ones; ranks that take more of them than others",
    "_save_checkpoint": "manifest and state of the run; rotation and push of what is whole",
    "compute_loss": "loss denominators of each optimizer step; diagnostics of the trained tokens",
    "create_model_card": "the card says what the run did",
    "evaluation_loop": "metrics of this evaluation alone",
    "get_batch_samples": "state of the loop, after the loop has reset its counters; no step after the last one",
    "get_train_dataloader": "paces the steps; the prompts come from the stream; their order after a resume",
    "init_hf_repo": "errors of the Hub with a fix",
    "log": "metrics of the trained tokens; text of a model as text",
    "push_to_hub": "errors of the Hub with a fix",
    "save_model": "arguments as the user gave them",
    "train": "which checkpoint to resume from; curves and card at the end",
}
# What `GRPOTrainer` holds of each reward function.
_REWARD_LISTS = ("reward_funcs", "reward_func_names", "reward_processing_classes", "reward_weights")
# Methods of `VLLMGeneration` that are overridden.
OVERRIDDEN_IN_VLLM_GENERATION: dict[str, str] = {
    "_init_vllm": "engine options; servers",
    "_iter_named_params": "weights that the engine has to pack again",
    "generate": "a seed for each request; one sleep per batch; servers",
    "sync_weights": "counts the syncs; tells all ranks how they ended",
}


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """
    Inside it, `owner.name` is another value. For names that no other thread reads meanwhile.

    Args:
        owner (`Any`):
            A module or an object.
        name (`str`):
            Name of the attribute. One that `owner` itself does not have is removed again.
        value (`Any`):
            Its value meanwhile.
    """
    before = vars(owner).copy()
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if name in before:
            setattr(owner, name, before[name])


def rebound(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """
    Returns a copy of a function for which some of its module's names have other values.

    The module stays as it is, so that other threads see nothing of it.

    Args:
        function (`Callable`):
            A function, decorated or not; the copy is of the innermost one.
        **names:
            Values of global names of its module.

    Example:

    >>> import textwrap
    >>> rebound(textwrap.dedent, re=None) is textwrap.dedent
    False
    """
    inner: Any = inspect.unwrap(function)
    copy = types.FunctionType(
        inner.__code__, {**inner.__globals__, **names}, inner.__name__, inner.__defaults__, inner.__closure__
    )
    return functools.update_wrapper(copy, inner)


class Generated(NamedTuple):
    """
    What `GRPOTrainer._generate` returns for R prompts.

    Attributes:
        prompt_ids (`list[list[int]]` or `list[np.ndarray]`):
            Tokens of each prompt.
        completion_ids (`list[list[int]]` or `list[np.ndarray]`):
            Tokens of each completion, at least one: TRL reads the last token of each.
        tool_mask (`list[list[int]]`, *optional*):
            1 where the model wrote the token, 0 where a tool or an environment did.
        completions (`list`):
            Each completion as reward functions see it.
        logps (`list[list[float | None]]`, `list[np.ndarray]` or `list[array]`, *optional*):
            Log-probability of each token by the engine that sampled it, in nats.
        extra_fields (`dict[str, Any]`):
            What a rollout function returned besides.
        images (`list`, *optional*):
            Images of each prompt.
        tool_images (`list`):
            Images that tools returned.
    """

    prompt_ids: list[Any]
    completion_ids: list[Any]
    tool_mask: list[list[int]] | None
    completions: list[Any]
    logps: list[Any] | None
    extra_fields: dict[str, Any]
    images: list[Any] | None
    tool_images: list[Any]


class _Prepared(BaseException):
    """Not an error: how TRL's method is left once it has the prompts."""

    def __init__(self, prompts: list[Any]):
        self.prompts = prompts


@dataclass(frozen=True, slots=True)
class _Resetting:
    """Stands in for an environment that TRL resets, and does nothing else with."""

    call: Callable[[Mapping[str, Any]], Any]

    def reset(self, **row: Any) -> Any:
        return self.call(row)


# What TRL keeps for each row of the batch that it generates.
_PER_ROW = ("environments", "_batch_environments", "_sync_tool_dicts", "_async_tool_dicts")


class AddedReward:
    """
    A reward function of the package beside those of the caller, whose lists on the trainer stay as they are.

    Args:
        trainer (`GRPOTrainer`):
            The trainer.
        function (`Callable`, *optional*):
            The reward function, with weight 1. `None`: there is none.
    """

    def __init__(self, trainer: GRPOTrainer, function: Callable[..., Any] | None):
        self._trainer: Any = trainer
        self.function = function
        # The lists of the caller, while TRL sees others.
        self._given: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """Name of each column of the rewards."""
        names: list[str] = self._lists()["reward_func_names"]
        return names

    @property
    def weights(self) -> torch.Tensor:
        """Weight of each column of the rewards."""
        weights: torch.Tensor = self._lists()["reward_weights"]
        return weights

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside it, TRL has name and weight of each column of the rewards."""
        given = {name: getattr(self._trainer, name) for name in _REWARD_LISTS}
        vars(self._trainer).update(self._lists())
        self._given = given
        try:
            yield
        finally:
            vars(self._trainer).update(given)
            self._given = None

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Inside it, TRL calls the functions of the caller alone."""
        given = self._given
        if given is None:
            yield
            return
        shown = {name: getattr(self._trainer, name) for name in _REWARD_LISTS}
        vars(self._trainer).update(given)
        try:
            yield
        finally:
            vars(self._trainer).update(shown)

    def _lists(self) -> dict[str, Any]:
        trainer, function = self._trainer, self.function
        lists = self._given or {name: getattr(trainer, name) for name in _REWARD_LISTS}
        if function is None:
            return dict(lists)
        return {
            "reward_funcs": [*lists["reward_funcs"], function],
            "reward_func_names": [*lists["reward_func_names"], function.__name__],
            "reward_processing_classes": [*lists["reward_processing_classes"], None],
            "reward_weights": torch.cat([lists["reward_weights"], torch.ones(1)]),
        }


class TrainerSeams:
    """
    The private parts of a `GRPOTrainer` that the other rooms use.

    Args:
        trainer (`GRPOTrainer`):
            The trainer. TRL's own methods are called, not what a subclass makes of them.
    """

    def __init__(self, trainer: GRPOTrainer):
        self._trainer: Any = trainer

    # Reading

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        step: int = self._trainer.state.global_step
        return step

    @property
    def device(self) -> torch.device:
        """The accelerator of this rank."""
        device: torch.device = self._trainer.accelerator.device
        return device

    @property
    def is_training(self) -> bool:
        """Whether the model is in training mode; else TRL evaluates."""
        return bool(self._trainer.model.training)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, also of a processor."""
        return self._trainer._tokenizer

    @property
    def is_multimodal(self) -> bool:
        """Whether the model reads images."""
        return bool(self._trainer._is_vlm)

    @functools.cached_property
    def has_tools(self) -> bool:
        """Whether the model may call tools, of an environment or not."""
        return bool(self._trainer.tools)

    @property
    def has_async_tools(self) -> bool:
        """Whether a tool is awaited."""
        return any(inspect.iscoroutinefunction(tool) for tool in self._trainer.tools)

    @functools.cached_property
    def has_turns(self) -> bool:
        """Whether a completion may hold tokens that the model did not write."""
        return self.has_tools or self.has_environments or self.has_rollout_function

    @functools.cached_property
    def has_rollout_function(self) -> bool:
        """Whether a function of the caller generates."""
        return self._trainer.rollout_func is not None

    @functools.cached_property
    def has_environments(self) -> bool:
        """Whether each completion has an environment."""
        return self._trainer.environment_factories is not None

    @functools.cached_property
    def chooses_environments(self) -> bool:
        """Whether each row names its environment."""
        return bool(self._trainer._multi_environment)

    @property
    def reward_names(self) -> list[str]:
        """Names of the reward functions."""
        return list(self._trainer.reward_func_names)

    @property
    def sees_gradients(self) -> bool:
        """
        Whether the gradients of an optimizer step can be looked at before it.

        A gradient scaler (float16) looks after those that are not finite itself, and DeepSpeed keeps its own.
        """
        accelerator = self._trainer.accelerator
        return accelerator.scaler is None and accelerator.distributed_type != DistributedType.DEEPSPEED

    def micro_batches_of_step(self) -> list[dict[str, Any]]:
        """Returns the micro-batches of this rank that the optimizer step about to be taken trains, as far as they are kept."""
        args, buffered = self._trainer.args, self._trainer._buffered_inputs
        num_micro_batches = min(args.gradient_accumulation_steps, args.steps_per_generation)
        first = self._trainer._step - num_micro_batches
        return [buffered[(first + number) % args.steps_per_generation] for number in range(num_micro_batches)]

    # Generation

    def rows_at_once(self, num_rows: int) -> int:
        """
        Returns the size of the parts into which a round of `num_rows` rows is cut.

        A refill round may be larger than the generation batch. `model.generate` holds the cache of all its rows at once, so
        it gets at most as many as TRL would give it; vLLM and continuous batching queue by themselves. The parts are equal,
        and their number depends on the row count alone, which is the same on all ranks.
        """
        trainer, args = self._trainer, self._trainer.args
        most = args.per_device_train_batch_size * args.steps_per_generation
        queues = trainer.use_vllm or trainer.use_transformers_continuous_batching
        if not trainer.model.training or queues or num_rows <= most:
            return num_rows
        num_parts = -(-num_rows // most)
        return -(-num_rows // num_parts)

    def tokenize(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Returns prompts in tokens."""
        prompt_ids, _, _ = self._trainer._tokenize_prompts(list(prompts))
        return [list(ids) for ids in prompt_ids]

    def prepare(
        self,
        inputs: list[dict[str, Any]],
        reset: Callable[[int, Any, Mapping[str, Any]], Any],
        guarded: Callable[[int, Callable[..., Any]], Callable[..., Any] | None],
    ) -> list[Any]:
        """
        Has TRL do what it does before it generates, and returns the prompts from which it would generate.

        It hands out an environment for each row and resets it, adds what it shows to the prompt, puts images in, and notes
        the tools of each row.

        Args:
            inputs (`list[dict]`):
                Dataset rows.
            reset (`Callable[[int, Any, Mapping], Any]`):
                Resets an environment: is given the number of the row, the environment and the arguments, and returns what it
                shows.
            guarded (`Callable[[int, Callable], Callable]`):
                Is given the number of a row and a tool of it, and returns what TRL calls instead; `None`: there is no such tool.
        """
        trainer = self._trainer

        def stop(prompts: list[Any]) -> Any:
            raise _Prepared(prompts)

        # TRL goes through prompts, environments and rows side by side, to reset.
        def side_by_side(*columns: Any, strict: bool = False) -> Iterator[Any]:
            for number, row in enumerate(zip(*columns, strict=strict)):
                if len(columns) > 1 and columns[1] is trainer.environments:
                    yield row[0], _Resetting(functools.partial(reset, number, row[1])), row[2]
                else:
                    yield row

        prepare = rebound(GRPOTrainer._generate_and_score_completions, zip=side_by_side)
        with replaced(trainer, "_generate", stop):
            try:
                prepare(trainer, inputs)
            except _Prepared as prepared:
                prompts = prepared.prompts
        for tools_by_row in (vars(trainer).get("_sync_tool_dicts"), vars(trainer).get("_async_tool_dicts")):
            for number, tools in enumerate(tools_by_row or ()):
                calls = {name: guarded(number, tool) for name, tool in tools.items()}
                tools.clear()
                tools.update({name: call for name, call in calls.items() if call is not None})
        return prompts

    @contextmanager
    def only_rows(self, rows: Sequence[int]) -> Iterator[None]:
        """Inside it, TRL has environments and tools of these of the prepared rows alone."""
        with ExitStack() as stack:
            for name in _PER_ROW:
                values = vars(self._trainer).get(name)
                if values is not None:
                    stack.enter_context(replaced(self._trainer, name, [values[row] for row in rows]))
            yield

    def hide_environment_tools(self, is_hidden: Callable[[Callable[..., Any]], bool]) -> None:
        """Takes methods of environments out of the tools that the model is shown."""
        trainer = self._trainer
        if self.has_environments:
            trainer._env_tools = {
                name: [tool for tool in tools if not (hasattr(tool, "__self__") and is_hidden(tool))]
                for name, tools in trainer._env_tools.items()
            }
            shown = [tool for tools in trainer._env_tools.values() for tool in tools]
            trainer.tools = [tool for tool in trainer.tools if tool in shown]

    @property
    def pooled_environments(self) -> list[Any]:
        """All environments that were made, and not taken away."""
        pools = vars(self._trainer).get("_environment_pool", {})
        return [environment for pool in pools.values() for environment in pool]

    def take_environments(self, are_taken: Callable[[Any], bool]) -> list[Any]:
        """Returns environments that TRL shall not use again. It makes new ones where it needs them."""
        taken = []
        for pool in vars(self._trainer).get("_environment_pool", {}).values():
            taken += [environment for environment in pool if are_taken(environment)]
            pool[:] = [environment for environment in pool if not are_taken(environment)]
        return taken

    def environment_of(self, row: int, tool: Callable[..., Any]) -> Any:
        """Returns the environment of a prepared row if the tool is a method of it, else `None`."""
        owner = getattr(tool, "__self__", None)
        environments = self._trainer.environments
        return owner if environments and owner is environments[row] else None

    @contextmanager
    def rollout_function_called_by(self, call: Callable[[Callable[..., Any], list[Any]], Any]) -> Iterator[None]:
        """Inside it, `call` is given the rollout function of the caller and the prompts, if there is one, and calls it."""
        function = self._trainer.rollout_func
        if function is None:
            yield
            return

        def called(prompts: list[Any], trainer: Any) -> Any:
            return call(lambda prompts: function(prompts, trainer), prompts)

        with replaced(self._trainer, "rollout_func", called):
            yield

    @contextmanager
    def without_environments(self) -> Iterator[None]:
        """Inside it, TRL hands out no environment and resets none: those of the rows have done their part."""
        with (
            replaced(self._trainer, "environment_factories", None),
            replaced(self._trainer, "environments", None),
        ):
            yield

    def generate(self, prompts: list[Any], keys: Sequence[Any] = ()) -> Generated:
        """
        Samples a completion for each prompt. A collective.

        Args:
            prompts (`list`):
                Texts or conversations.
            keys (`Sequence[SequenceKey]`, *optional*):
                Names of the completions, from which a vLLM engine of ours derives their seeds.
        """
        engine = getattr(self._trainer, "vllm_generation", None)
        if engine is not None and keys:
            engine.name_requests(keys)
        tokenizer = self._trainer.processing_class

        # By itself it makes lists of all completions first, nine times as large as their arrays.
        def decode_each(completion_ids: Sequence[Any], **options: Any) -> list[str]:
            return [tokenizer.decode(ids, **options) for ids in completion_ids]

        with replaced(tokenizer, "batch_decode", decode_each):
            return Generated(*GRPOTrainer._generate(self._trainer, prompts))

    def name_requests(self, keys: Sequence[Any], lengths: Sequence[int]) -> None:
        """
        Names the completions that are sampled next, if a vLLM engine of ours samples them.

        Args:
            keys (`Sequence[SequenceKey]`):
                The completions. Empty: they have no names.
            lengths (`Sequence[int]`):
                Tokens that each of them has so far.
        """
        engine = getattr(self._trainer, "vllm_generation", None)
        if engine is not None and keys:
            engine.name_requests(keys, lengths)

    @property
    def shares_engine(self) -> bool:
        """Whether ranks generate with one engine: a call is of all of them, each with as many rows."""
        trainer, args = self._trainer, self._trainer.args
        if not trainer.use_vllm:
            return False
        # Of pictures the first rank asks for all; else each rank asks servers for its own.
        return bool(self.is_multimodal if args.vllm_mode == "server" else args.vllm_tensor_parallel_size > 1)

    @property
    def calls_together(self) -> bool:
        """
        Whether a call of generation is of all ranks, each with rows of its own.

        Without vLLM each may have a part of the model; with servers they tell each other whether one failed.
        """
        trainer = self._trainer
        if trainer.use_vllm:
            return bool(trainer.args.vllm_mode == "server")
        return bool(trainer._dist.is_fsdp or trainer._dist.is_zero3)

    def bring_weights(self) -> None:
        """Brings the weights to vLLM, if the policy has changed since they came. A collective."""
        trainer = self._trainer
        if trainer.state.global_step != trainer._last_loaded_step:
            with profiling_context(trainer, "sync_weights"):
                trainer.vllm_generation.sync_weights()
            trainer._last_loaded_step = trainer.state.global_step

    # Rewards

    def compute_rewards(
        self,
        inputs: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int] | np.ndarray],
        around_call: Callable[[str], AbstractContextManager[object]],
        clean_logged: Callable[[dict[str, list[Any]], dict[str, list[Any]], int], None],
        check: Callable[[str, Any, int], Any],
        on_env_fault: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """
        Returns the rewards of this rank's completions. No collective, from any thread.

        Args:
            inputs (`Sequence[Mapping]`), prompts (`Sequence`), completions (`Sequence`), completion_ids (`Sequence`):
                As in `GRPOTrainer._calculate_rewards`.
            around_call (`Callable[[str], AbstractContextManager]`):
                Opened around each call of a reward function, with its name.
            clean_logged (`Callable[[dict, dict, int], None]`):
                Is given the columns and metrics that reward functions logged, if there are any, and the number R, before
                TRL reads them.
            check (`Callable[[str, Any, int], Any]`):
                Is given the name of a function, what it returned, and R; TRL reads what this returns instead.
            on_env_fault (`Callable[[int], None]`, *optional*):
                Is told the number of a completion whose environment raised something instead of its reward; it gets none.
                `None`: what it raised is raised.

        Returns:
            `torch.Tensor`: shape `(R, F)`, float32. NaN: no reward.
        """

        given: list[Any] = []

        # TRL opens this one around each call, whatever kind of function it is, and gathers at the end.
        @contextmanager
        def timed(trainer: Any, name: str) -> Iterator[None]:
            with around_call(name), profiling_context(trainer, name):
                yield

        # TRL goes through functions, processing classes and names side by side.
        def side_by_side(*columns: Any, strict: bool = False) -> Iterator[Any]:
            for row in zip(*columns, strict=strict):
                if columns[0] is self._trainer.reward_funcs:
                    function, processing_class, name = row
                    # Lists of their own: a function that cuts its completions changes neither what trains nor what the next
                    # one sees. They have an object for each token: who reads none, or only counts them, is given what there is.
                    given[:] = completion_ids if _reads_no_tokens(function) else map(as_list, completion_ids)
                    if on_env_fault is not None and _is_of_environments(function):
                        function = _reward_of_each(function, on_env_fault)
                    yield _checked(function, functools.partial(check, name), len(prompts)), processing_class, name
                else:
                    yield row

        calculate = rebound(
            GRPOTrainer._calculate_rewards, profiling_context=timed, gather=lambda rewards: rewards, zip=side_by_side
        )
        rewards: torch.Tensor = profiling_decorator(calculate)(self._trainer, inputs, prompts, completions, given)
        # What TRL cannot write into its log would end the run there.
        columns, metrics = self._trainer._pending_extra_logs, self._trainer._pending_metrics
        if columns or metrics:
            clean_logged(columns, metrics, len(prompts))
        return rewards

    def spread_logged_columns(self, rows: Sequence[int], num_rows: int) -> None:
        """Puts the values of logged columns, one for each of these of `num_rows` completions, beside them; None elsewhere."""
        pending = self._trainer._pending_extra_logs
        for column, values in pending.items():
            if len(values) == len(rows) < num_rows:
                by_row = dict(zip(rows, values, strict=True))
                pending[column] = [by_row.get(row) for row in range(num_rows)]

    def logged_columns(self, num_completions: int) -> dict[str, list[Any]]:
        """Returns the columns that reward functions logged since the last flush, those with one value a completion."""
        pending = self._trainer._pending_extra_logs
        return {column: values for column, values in pending.items() if len(values) == num_completions}

    def take_logged_columns(self, num_completions: int) -> dict[str, list[Any]]:
        """As `logged_columns`, and forgets all of them."""
        columns = self.logged_columns(num_completions)
        self._trainer._pending_extra_logs.clear()
        return columns

    # Log-probabilities

    def score(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        Returns log-probabilities under the trained model, without gradients and without checkpointing, as TRL computes old
        ones. With some wrappers a collective.

        Args:
            batch (`Mapping[str, torch.Tensor]`):
                `prompt_ids`, `prompt_mask` of shape `(B, P)`, and `completion_ids`, `completion_mask` of shape `(B, C)`.

        Returns:
            `torch.Tensor`: shape `(B, C)`, at the training temperature, in nats.
        """
        trainer = self._trainer
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs),
        ):
            logps: torch.Tensor = GRPOTrainer._get_per_token_logps_and_entropies(
                trainer,
                trainer.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].size(1),
                batch_size=trainer.args.per_device_train_batch_size,
            )[0]
        return logps


class AsideSeams(TrainerSeams):
    """
    The seams for threads that sample and grade while the trainer trains.

    They see a trainer of their own: a copy whose attributes stay as they were at the last `refresh`, whatever the trainer
    changes meanwhile. What they note there, TRL does not see, and their tokenizer is a copy, because one that two threads
    use may fail. Model, metrics and batch of the trainer are not there: a thread that needs them is a mistake.

    Args:
        trainer (`GRPOTrainer`):
            The trainer.
    """

    def __init__(self, trainer: GRPOTrainer):
        super().__init__(object.__new__(type(trainer)))
        self._original: Any = trainer
        self._processing_class = copy.deepcopy(self._original.processing_class)
        self.refresh()

    def refresh(self) -> None:
        """Takes the trainer as it is. Not while a thread uses these seams."""
        own = vars(self._trainer)
        metrics = own.get("_pending_metrics", defaultdict(list))
        own.clear()
        own.update(vars(self._original))
        own |= {name: list(own[name]) for name in _REWARD_LISTS if isinstance(own[name], list)}
        own["processing_class"] = self._processing_class
        own["_tokenizer"] = getattr(self._processing_class, "tokenizer", self._processing_class)
        # Reward functions see the step of the policy that samples.
        own["state"] = copy.copy(own["state"])
        own |= dict.fromkeys(("_metrics", "_logs", "_buffered_inputs"))
        own["model"] = own["model_wrapped"] = types.SimpleNamespace(training=True)
        own["_pending_extra_logs"], own["_pending_metrics"] = defaultdict(list), metrics

    def give_metrics(self) -> None:
        """Gives the trainer the metrics that reward functions logged. Not while a thread uses these seams."""
        for name, values in self._trainer._pending_metrics.items():
            self._original._pending_metrics[name].extend(values)
        self._trainer._pending_metrics.clear()

    def state_dict(self) -> dict[str, Any]:
        """Returns the metrics that reward functions logged and that the trainer has not been given."""
        return {"metrics": {name: list(values) for name, values in self._trainer._pending_metrics.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them back."""
        self._trainer._pending_metrics = defaultdict(list, state["metrics"])


def as_list(tokens: Sequence[int] | np.ndarray) -> list[int]:
    """
    Returns token ids as TRL and reward functions have them, a list of their own.

    >>> as_list(np.array([7, 8], np.int32))
    [7, 8]
    """
    ids: list[int] = tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
    return ids


def _reads_no_tokens(function: Any) -> bool:
    """Returns whether a reward function has no use for single tokens: our own functions, and models."""
    while isinstance(function, functools.partial):
        function = function.func
    is_ours = getattr(function, "__module__", "").startswith(f"{__package__}.rewards")
    return is_ours or isinstance(function, torch.nn.Module)


def _is_of_environments(function: Any) -> bool:
    """Returns whether TRL made a reward function of the method `get_reward` of environments."""
    name = getattr(function, "__qualname__", "")
    return getattr(function, "__module__", "") == grpo_trainer.__name__ and name.endswith("<locals>.get_reward")


def _reward_of_each(function: Any, on_env_fault: Callable[[int], None]) -> Any:
    """Returns a reward function that asks one environment at a time, so that one that fails leaves the others their rewards."""
    if not grpo_trainer.is_async_callable(function):

        def rewards(environments: Sequence[Any], **arguments: Any) -> list[Any]:
            found = []
            for number, environment in enumerate(environments):
                try:
                    found += function(environments=[environment], **arguments)
                except Exception:
                    on_env_fault(number)
                    found.append(None)
            return found

        return rewards

    async def awaited(environments: Sequence[Any], **arguments: Any) -> list[Any]:
        calls = [function(environments=[environment], **arguments) for environment in environments]
        found = await asyncio.gather(*calls, return_exceptions=True)
        for number, reward in enumerate(found):
            if isinstance(reward, Exception):
                on_env_fault(number)
        return [None if isinstance(reward, BaseException) else reward[0] for reward in found]

    return awaited


def _checked(function: Any, check: Callable[[Any, int], Any], num_completions: int) -> Any:
    """Returns a reward function that hands what it returns to `check`; a reward model as it is."""
    if isinstance(function, torch.nn.Module):
        return function
    if not grpo_trainer.is_async_callable(function):
        return lambda **arguments: check(function(**arguments), num_completions)

    async def awaited(**arguments: Any) -> Any:
        return check(await function(**arguments), num_completions)

    return awaited


def sampler_of(dataloader: Any) -> RepeatSampler | None:
    """Returns TRL's sampler of a dataloader that accelerate has prepared, on one rank or several; `None`: rows are streamed."""
    batches = dataloader.batch_sampler
    # accelerate puts one around it that leaves out the batches of the other ranks.
    batches = getattr(batches, "batch_sampler", batches)
    sampler = getattr(batches, "sampler", None)
    return sampler if isinstance(sampler, RepeatSampler) else None


def texts_apart(method: Callable[..., Any], gather: Callable[[list[Any]], list[Any]]) -> Callable[..., Any]:
    """
    Returns a `_generate_and_score_completions` with which the texts of a batch do not go to all ranks.

    TRL gathers prompts, completions, images and logged columns on every rank, for a table that the first one writes. Names of
    columns and metrics still go to all: by them the ranks know what is gathered next.

    Args:
        method (`Callable`):
            The bound method. One that is not TRL's own is left as it is.
        gather (`Callable[[list], list]`):
            Is given what this rank has of each of the texts, in the same order on all ranks, and returns what it is to keep.
    """
    theirs = GRPOTrainer._generate_and_score_completions
    if getattr(method, "__func__", None) is not theirs:
        return method
    trainer: Any = method.__self__  # type: ignore[attr-defined]
    calls = itertools.count()

    def gather_object(objects: list[Any]) -> list[Any]:
        # First prompts and completions. Of what comes then only names are what the pending columns or metrics are called.
        columns, metrics = trainer._pending_extra_logs, trainer._pending_metrics
        is_of_names = next(calls) > 1 and objects in (list(columns), list(metrics))
        is_of_names &= not any(objects is values for values in columns.values())
        gathered: list[Any] = grpo_trainer.gather_object(objects) if is_of_names else gather(objects)
        return gathered

    return functools.partial(rebound(theirs, gather_object=gather_object), trainer)


def engine_built_by(factory: Callable[..., Any]) -> AbstractContextManager[None]:
    """Inside it, the vLLM backend of a trainer that is being built is what `factory` returns."""
    return replaced(grpo_trainer, "VLLMGeneration", factory)


def pushed_from_checkpoint(trainer: Any, folder: str) -> list[Future[Any]]:
    """Has transformers push a checkpoint, and returns the uploads that begin; none: it does not push this one."""
    before = getattr(trainer, "push_in_progress", None)
    trainer._push_from_checkpoint(folder)
    push = getattr(trainer, "push_in_progress", None)
    return [] if push is None or push is before else list(push.jobs)


def completions_printed_by(print_sample: Callable[..., None]) -> AbstractContextManager[None]:
    """Inside it, TRL's table of completions goes through `print_sample`."""
    return replaced(grpo_trainer, "print_prompt_completions_sample", print_sample)


# vLLM


def worker_of(llm: Any) -> Any:
    """Returns the worker of a colocated engine in this process."""
    worker = llm.llm_engine.model_executor.driver_worker
    # The executor holds it in a wrapper.
    return getattr(worker, "worker", worker)


def model_runner_of(llm: Any) -> Any:
    """Returns what holds the model of a colocated engine."""
    return worker_of(llm).model_runner


def loops_over_seeds(model_runner: Any) -> bool:
    """
    Returns whether an engine on a GPU draws for each request with a seed by itself, in Python.

    So does vLLM's first model runner: 8 to 10 ms in a step of 1,024 requests. The second one draws for all in one kernel. Which
    of them there is vLLM decides by its release, the model and VLLM_USE_V2_MODEL_RUNNER. On a CPU a step takes longer anyway.
    """
    from vllm.platforms import current_platform

    return not is_second_model_runner(model_runner) and not current_platform.is_cpu()


def watch_scheduler(llm: Any, observe: Callable[[int, float, int, int], None]) -> bool:
    """
    Has a function called after each scheduling decision of a colocated engine, at a few microseconds a step.

    vLLM's own statistics (`disable_log_stats=False`) go through each token of a step in Python.

    Args:
        llm (`vllm.LLM`):
            The engine.
        observe (`Callable[[int, float, int, int], None]`):
            Is given how many requests lost their place in the KV cache since the last decision, the share of the cache that is
            in use, and how many requests run and wait.

    Returns:
        `bool`: whether there is a scheduler in this process.
    """
    scheduler = _scheduler_of(llm)
    if scheduler is None:
        return False
    schedule = scheduler.schedule

    def schedule_watched(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        observe(len(output.preempted_req_ids or ()), scheduler.kv_cache_manager.usage, *scheduler.get_request_counts())
        return output

    scheduler.schedule = schedule_watched
    return True


def _scheduler_of(llm: Any) -> Any:
    """Returns the scheduler of a colocated engine; `None`: it is in another process."""
    return getattr(getattr(llm.llm_engine.engine_core, "engine_core", None), "scheduler", None)


def decoded_so_far(llm_engine: Any, request_id: str) -> tuple[Sequence[int], Any]:
    """
    Returns tokens and log-probabilities of a request that is not done.

    vLLM has no call for them, unless all tokens are asked for at every step.
    """
    state = llm_engine.output_processor.request_states[request_id]
    return state.detokenizer.output_token_ids, state.logprobs_processor.logprobs


def hold_in_arrays(llm_engine: Any, request_id: str) -> bool:
    """
    Has vLLM hold what it samples for a request in two arrays, 8 bytes a token: the tokens, and their log-probabilities.

    By itself it holds them in seven lists, with up to five objects a token.

    Args:
        llm_engine (`vllm.v1.engine.llm_engine.LLMEngine`):
            The engine.
        request_id (`str`):
            A request that was just added, with flat log-probabilities.

    Returns:
        `bool`: whether it does. Not where it looks for stop strings in the text, for which it needs the lists, and not where a
        request has several completions.
    """
    from vllm.logprobs import FlatLogprobs
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    # A request of several completions has others under its name.
    state = llm_engine.output_processor.request_states.get(request_id)
    if state is None:
        return False
    tokens, logprobs = state.detokenizer, state.logprobs_processor
    if type(tokens) is not IncrementalDetokenizer or type(logprobs.logprobs) is not FlatLogprobs:
        return False
    tokens.token_ids, logprobs.logprobs = array("i"), _logprobs_in_array()()
    return True


@functools.cache
def _logprobs_in_array() -> Any:
    from vllm.logprobs import FlatLogprobs

    class LogprobsInArray(FlatLogprobs):
        """Log-probabilities of sampled tokens alone, in nats: `values`, float32."""

        def __init__(self) -> None:
            super().__init__()
            self.values = array("f")

        def append_fast(self, token_ids: Any, logprobs: Any, ranks: Any, decoded_tokens: Any) -> None:
            self.values.append(logprobs[0])  # vLLM puts that of the sampled token first

        def __len__(self) -> int:
            return len(self.values)

    return LogprobsInArray


def correct_drafts() -> bool:
    """
    Has the rejection sampler of a vLLM on a CPU see temperature, top-k and top-p of each request, if it does not.

    The kernel that spreads these over the draft tokens of a request writes to a copy of its output, unless that is int64. So
    they are uninitialized memory, and what is sampled is another distribution than the model's.

    Returns:
        `bool`: whether there was something to correct. It stays corrected in this process.
    """
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    if not current_platform.is_cpu():
        return False
    spread = rejection_sampler.expand_batch_to_tokens(torch.tensor([0.25, 1.5]), torch.tensor([2, 5]), 5)
    # A list, for a tensor could be what is left in the memory when this is asked again.
    if spread.tolist() == [0.25, 0.25, 1.5, 1.5, 1.5]:
        return False
    rejection_sampler.expand_batch_to_tokens = _spread_over_drafts
    return True


def _spread_over_drafts(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> torch.Tensor:
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    return torch.repeat_interleave(x.masked_fill(x == replace_from, replace_to), counts)


def count_drafts(llm: Any, observe: Callable[[int, int], None]) -> bool:
    """
    Has a function called for each request of a step of a colocated engine that had draft tokens.

    Args:
        llm (`vllm.LLM`):
            The engine.
        observe (`Callable[[int, int], None]`):
            Is given the draft tokens of the request, and how many of them were accepted.

    Returns:
        `bool`: whether there is a scheduler in this process that tells.
    """
    scheduler = _scheduler_of(llm)
    make_stats = getattr(scheduler, "make_spec_decoding_stats", None)
    if make_stats is None:
        return False

    def make_stats_counted(stats: Any, num_draft_tokens: int, num_accepted_tokens: int, **kwargs: Any) -> Any:
        observe(num_draft_tokens, num_accepted_tokens)
        return make_stats(stats, num_draft_tokens=num_draft_tokens, num_accepted_tokens=num_accepted_tokens, **kwargs)

    scheduler.make_spec_decoding_stats = make_stats_counted
    return True


def is_second_model_runner(model_runner: Any) -> bool:
    """Returns whether an engine has vLLM's Model Runner V2."""
    return any(cls.__module__.startswith("vllm.v1.worker.gpu.") for cls in type(model_runner).__mro__)


def is_loading_under_adapters() -> bool:
    """Returns whether this vLLM loads base weights, by their names in a checkpoint, into layers that it gave adapters."""
    try:
        from vllm.lora.layers import BaseLayerWithLoRA
        from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin
    except ImportError:
        return False
    return hasattr(BaseLayerWithLoRA, "load_weights") and hasattr(LoRAModelRunnerMixin, "reset_lora_state")


def ignored_of_adapter(model_runner: Any, number: int) -> list[str]:
    """Returns the modules of an adapter in an engine that no layer of its model has: vLLM passes over them silently."""
    manager = model_runner.lora_manager._adapter_manager
    return sorted(manager.get_adapter(number).loras.keys() - manager.modules.keys())


def repacks_weights(model_runner: Any) -> bool:
    """
    Returns whether an engine computes with other tensors than those that a checkpoint is loaded into.

    So it is on a CPU, with most quantizations, and wherever a parameter lost its loader or changed its shape or type since
    the model was built.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.platforms import current_platform

    quantization = model_runner.model_config.quantization
    if quantization == "bitsandbytes":
        return False  # TRL loads into these itself
    if current_platform.is_cpu() or quantization is not None:
        return True
    for layer in model_runner.get_model().modules():
        built, _ = get_layerwise_info(layer).restore_metadata
        present = dict(layer.named_parameters(recurse=False))
        if any(name not in present or _differ(tensor, present[name]) for name, tensor in built.items()):
            return True
    return False


def reload_weights(worker: Any, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    """
    Loads weights in checkpoint format into an engine, and packs them as when it started.

    Args:
        worker (`Any`):
            vLLM's. It sets the configuration that layers read while they are packed.
        weights (`Iterator[tuple[str, torch.Tensor]]`):
            Names and values. The values are held until the layer is complete, and must not change meanwhile.
    """
    from vllm.config import set_current_vllm_config

    worker.reload_weights(weights_iterator=weights, is_checkpoint_format=True)
    # Of layers that share a weight vLLM packs only the one whose name the checkpoint has: a tied head would compute with
    # the copy that was packed before.
    owners: dict[int, list[torch.nn.Module]] = {}
    for layer in worker.model_runner.get_model().modules():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(layer)
    with set_current_vllm_config(worker.vllm_config):
        for layers in owners.values():
            for layer in layers if len(layers) > 1 else []:
                quant_method = getattr(layer, "quant_method", None)
                if quant_method is not None:
                    quant_method.process_weights_after_loading(layer)


def _differ(built: torch.Tensor, present: torch.Tensor) -> bool:
    has_lost_loader = hasattr(built, "weight_loader") and not hasattr(present, "weight_loader")
    return has_lost_loader or built.shape != present.shape or built.dtype != present.dtype


def worker_state(worker: Any) -> dict[str, Any]:
    """Returns what a trainer has to know of the engine that a worker of a vLLM server belongs to, as JSON."""
    from vllm.platforms import current_platform

    config = worker.vllm_config
    return {
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_model_len": config.model_config.max_model_len,
        "vocab_size": config.model_config.get_vocab_size(),
        "logprobs_mode": str(config.model_config.logprobs_mode),
        "is_cpu": bool(current_platform.is_cpu()),
        "chunked_prefill": bool(config.scheduler_config.enable_chunked_prefill),
        "slow_seeds": loops_over_seeds(worker.model_runner),
        "drafts": config.speculative_config is not None,
        "takes_nccl": getattr(config.weight_transfer_config, "backend", None) == "nccl",
    }


def worker_weights_loaded_by(worker: Any, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Loads weights in checkpoint format into a worker of a vLLM server, packed again where it packs them."""
    from vllm.config import set_current_vllm_config

    with set_current_vllm_config(worker.vllm_config):
        if not hasattr(worker, "_dapo_repacks"):
            worker._dapo_repacks = repacks_weights(worker.model_runner)
        if worker._dapo_repacks:
            reload_weights(worker, weights)
        else:
            worker.model_runner.get_model().load_weights(weights)


warn_of_untested_releases()
