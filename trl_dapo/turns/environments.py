"""
Tools, environments and rollout functions of a round: they have a deadline, and what goes wrong in them is no fault of the model.

A completion whose environment could not be reset, or in which a tool or an environment raised or took too long, goes on as TRL
lets it, with an answer that says so, and then has no reward. A call that names no tool of the completion, or whose arguments
do not fit, is the model's: TRL answers it, and the completion is scored.

TRL makes a tool of each public method of an environment. With dynamic sampling a method `close` without arguments is none: it is
called when the environment is not used any more.
"""

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate.logging import get_logger

from trl_dapo.errors import BadToolCallError, EnvTimeoutError
from trl_dapo.guards.reward_deadline import RewardWatch
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.ranks.rollout import with_placeholders
from trl_dapo.sampling.env_faults import EnvFault, EnvironmentFaults
from trl_dapo.trl_seams import TrainerSeams


logger = get_logger(__name__)

# Within its deadline an async tool is interrupted by the event loop; one that blocks the loop ends the run somewhat later.
_PATIENCE_WITH_LOOP = 2.0
# A longer answer of a tool or an environment has more characters for each token of a completion than texts have.
_MAX_CHARACTERS_PER_TOKEN = 16
_DEFAULT_MAX_CHARACTERS = 1_000_000


class Environments:
    """
    Calls tools, environments and rollout functions for TRL.

    Args:
        seams (`TrainerSeams`):
            Owns them.
        ranks (`Ranks`):
            The ranks of the run.
        timeout (`float`, *optional*):
            Most wall seconds of a call. `None`: no limit.
        max_completion_length (`int`, *optional*):
            Most tokens of a completion. `None`: no limit.
        grace_seconds (`float`, *optional*):
            As in [`RewardWatch`].

    Attributes:
        faults (`EnvironmentFaults`):
            Of the present round.
    """

    def __init__(
        self,
        seams: TrainerSeams,
        ranks: Ranks,
        timeout: float | None,
        max_completion_length: int | None = None,
        grace_seconds: float | None = None,
    ):
        self.seams = seams
        self.ranks = ranks
        self.watch = RewardWatch(timeout, grace_seconds, EnvTimeoutError, max_stacks=1)
        self.max_characters = (
            _DEFAULT_MAX_CHARACTERS
            if max_completion_length is None
            else _MAX_CHARACTERS_PER_TOKEN * max_completion_length
        )
        self.faults = EnvironmentFaults()
        # Environments whose state nobody knows, by identity.
        self._broken: dict[int, Any] = {}
        # Rows whose tools are not called again in this round: they have no reward, and may take as long again.
        self._is_given_up: set[int] = set()
        self._has_warned: set[EnvFault] = set()

    def hide_closing(self) -> None:
        """Takes methods that close environments out of the tools that the model is shown."""
        self.seams.hide_environment_tools(is_closing)

    def check_seeded(self) -> None:
        """
        Checks that environments that invent their tasks give the completions of a group the same one.

        Raises:
            `ValueError`: `reset` takes no seed.
        """
        for environment in self.seams.pooled_environments:
            signature = _signature(environment.reset)
            if signature is None or "seed" not in signature.parameters:
                raise ValueError(
                    f"train_dataset is None, and `reset` of {type(environment).__name__} has no parameter `seed`. The completions "
                    "of a group must be of one task: otherwise dynamic sampling would keep groups whose tasks differ, not their "
                    "answers. Let reset(self, seed, **row) make the task from the seed, or pass a train_dataset with a row for "
                    "each task."
                )

    def prepare(self, inputs: list[dict[str, Any]], check: Callable[[list[Any]], None]) -> list[Any]:
        """
        Returns the prompts of a round as TRL would sample from them, with environments reset. A collective.

        Args:
            inputs (`list[dict]`):
                Dataset rows of this rank.
            check (`Callable[[list], None]`):
                Raises an error for prompts that cannot be sampled.

        Raises:
            `RankFailedError`: no environment could be made on another rank. A rank that failed itself raises its own failure.
        """
        self._replace_broken()
        self.faults, self._is_given_up = EnvironmentFaults(), set()

        def prepare() -> list[Any]:
            prompts = self.seams.prepare(inputs, self._reset, self._guarded)
            check(prompts)
            return prompts

        return self.ranks.together(prepare)

    def call_rollout_function(self, function: Callable[[list[Any]], Any], prompts: list[Any]) -> dict[str, Any]:
        """
        Calls the rollout function. A collective.

        Args:
            function (`Callable[[list], dict]`):
                That of the caller.
            prompts (`list`):
                The prompts of this rank.

        Raises:
            `ValueError`: it returned something else than TRL reads.
            `EnvTimeoutError`: it took too long.
            `RankFailedError`: it failed on another rank.
        """

        def call() -> dict[str, Any]:
            where = f"{len(prompts)} completions at optimizer step {self.seams.step} on rank {self.ranks.rank}"
            with self._watched("The rollout function", where):
                return checked_output(function(prompts), len(prompts), self.seams.tokenizer.pad_token_id)

        return self.ranks.together(call)

    def watching_loop(self) -> contextlib.AbstractContextManager[None]:
        """
        Inside it TRL calls tools, and waits for async ones.

        Raises:
            `EnvTimeoutError`: an async tool blocks the event loop, which could interrupt it otherwise.
        """
        if not self.seams.has_async_tools:
            return contextlib.nullcontext()
        where = f"completions at optimizer step {self.seams.step} on rank {self.ranks.rank}, and blocks the event loop"
        return self.watch.computation(where, _PATIENCE_WITH_LOOP)

    def close(self) -> None:
        """Closes all environments, if they can be. TRL makes new ones where it needs them."""
        for environment in self.seams.take_environments(lambda environment: True):
            self._close(environment)
        self._broken = {}

    # Calls

    def _reset(self, row: int, environment: Any, arguments: Mapping[str, Any]) -> Any:
        name = f"{type(environment).__name__}.reset"
        try:
            with self._watched(name, self._where(row)):
                shown = environment.reset(**arguments)
            if not (shown is None or isinstance(shown, str | list)):
                raise TypeError(
                    f"{name} returned a {type(shown).__name__}, but must return a text, content blocks or None."
                )
            self._check_length(name, shown)
        except Exception as error:
            self._note(row, EnvFault.NOT_RESET, error, environment)
            return None
        return shown

    def _guarded(self, row: int, tool: Callable[..., Any]) -> Callable[..., Any] | None:
        """Returns a tool of a row that notes its faults; `None`: it is none."""
        name = getattr(tool, "__name__", "tool")
        environment = self.seams.environment_of(row, tool)
        if environment is not None and is_closing(tool):
            return None
        signature = _signature(tool)

        def check(arguments: Mapping[str, Any]) -> None:
            if signature is not None:
                signature.bind(**arguments)
            if row in self._is_given_up:
                raise RuntimeError(f"{name} is not called: a tool took too long, or the environment has failed.")

        def called(**arguments: Any) -> Any:
            check(arguments)
            try:
                with self._watched(name, self._where(row)):
                    return self._answer(name, tool(**arguments))
            except BadToolCallError:
                raise
            except Exception as error:
                self._note(row, _fault_of(error), error, environment)
                raise

        async def awaited(**arguments: Any) -> Any:
            check(arguments)
            try:
                with self.watch.call(name):
                    result = await asyncio.wait_for(tool(**arguments), self.watch.seconds)
                return self._answer(name, result)
            except BadToolCallError:
                raise
            except Exception as error:
                self._note(row, _fault_of(error), error, environment)
                raise

        return awaited if inspect.iscoroutinefunction(tool) else called

    @contextlib.contextmanager
    def _watched(self, name: str, where: str) -> Any:
        try:
            with self.watch.computation(where), self.watch.call(name):
                yield
        except SystemExit as error:
            # It ends the tool, not the run.
            raise RuntimeError(f"{name} raised SystemExit({error.code})") from error

    def _answer(self, name: str, result: Any) -> Any:
        """Returns what TRL shows the model of a result: content blocks as they are, anything else as text."""
        is_content = isinstance(result, list) and all(isinstance(part, dict) and "type" in part for part in result)
        answer = result if is_content else str(result)
        self._check_length(name, answer)
        return answer

    def _check_length(self, name: str, shown: Any) -> None:
        texts = (
            [shown]
            if isinstance(shown, str)
            else [part.get("text", "") for part in shown or () if isinstance(part, dict)]
        )
        length = sum(len(text) for text in texts if isinstance(text, str))
        if length > self.max_characters:
            raise ValueError(
                f"{name} returned {length:,} characters, which cannot fit into a completion: the limit is "
                f"{self.max_characters:,}, {_MAX_CHARACTERS_PER_TOKEN} for each token of max_completion_length."
            )

    # Faults

    def _where(self, row: int) -> str:
        return f"completion {row} of a round at optimizer step {self.seams.step} on rank {self.ranks.rank}"

    def _note(self, row: int, fault: EnvFault, error: Exception, environment: Any) -> None:
        self.faults.note(row, fault)
        if fault is not EnvFault.RAISED:
            self._is_given_up.add(row)
        if environment is not None:
            self._broken[id(environment)] = environment
        if fault not in self._has_warned:
            self._has_warned.add(fault)
            logger.warning(
                f"{type(error).__name__}: {error} ({self._where(row)}). Such completions have no reward; "
                f"`dapo/frac_env_failed/{fault.name.lower()}` counts them.",
                main_process_only=False,
            )

    def _replace_broken(self) -> None:
        if self._broken:
            for environment in self.seams.take_environments(lambda environment: id(environment) in self._broken):
                self._close(environment)
            self._broken = {}

    def _close(self, environment: Any) -> None:
        close = getattr(environment, "close", None)
        if not callable(close) or not is_closing(close):
            return
        name = f"{type(environment).__name__}.close"
        try:
            with self._watched(name, f"an environment of rank {self.ranks.rank}"):
                close()
        except Exception as error:
            logger.warning(f"{name} raised {type(error).__name__}: {error}")


def is_closing(method: Callable[..., Any]) -> bool:
    """
    Returns whether a method of an environment closes it, and is no tool: it is called `close` and needs no argument.

    >>> import io
    >>> is_closing(io.StringIO().close), is_closing(io.StringIO().read)
    (True, False)
    """
    signature = _signature(method)
    return getattr(method, "__name__", "") == "close" and signature is not None and not signature.parameters


def _fault_of(error: Exception) -> EnvFault:
    return EnvFault.TIMED_OUT if isinstance(error, EnvTimeoutError | TimeoutError) else EnvFault.RAISED


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def checked_output(output: Any, num_prompts: int, pad_token_id: int = 0) -> dict[str, Any]:
    """
    Returns what a rollout function returned, unless TRL cannot read it. An empty completion gets a placeholder.

    Args:
        output (`Any`):
            What it returned.
        num_prompts (`int`):
            Prompts that it was given.
        pad_token_id (`int`, *optional*, defaults to `0`):
            The placeholder of an empty completion.

    Raises:
        `ValueError`: naming the entry and what it must be.

    Example:

    >>> output = checked_output({"prompt_ids": [[5]], "completion_ids": [[]], "logprobs": None, "env_mask": [[]]}, 1)
    >>> output["completion_ids"], output["env_mask"]
    ([[0]], [[1]])
    >>> checked_output({"prompt_ids": [[5]], "completion_ids": [[7]]}, 1)
    Traceback (most recent call last):
    ValueError: The rollout function returned no 'logprobs'. It must return a dict with prompt_ids, completion_ids and logprobs.
    """
    needed = "It must return a dict with prompt_ids, completion_ids and logprobs."
    if not isinstance(output, Mapping):
        raise ValueError(f"The rollout function returned a {type(output).__name__}. {needed}")
    for name in ("prompt_ids", "completion_ids", "logprobs"):
        if name not in output:
            raise ValueError(f"The rollout function returned no {name!r}. {needed}")
    checked = dict(output)
    for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask"):
        rows: Sequence[Any] | None = output.get(name)
        if rows is not None and len(rows) != num_prompts:
            raise ValueError(f"The rollout function returned {len(rows)} {name}, but was given {num_prompts} prompts.")
    for name in ("logprobs", "env_mask"):
        for number, row in enumerate(output.get(name) or ()):
            length = len(output["completion_ids"][number])
            if len(row) != length:
                raise ValueError(
                    f"The rollout function returned {len(row)} {name} of completion {number}, which has {length} tokens."
                )
    checked["completion_ids"], checked["logprobs"] = with_placeholders(
        list(map(list, output["completion_ids"])), output["logprobs"], pad_token_id
    )
    if output.get("env_mask") is not None:
        checked["env_mask"] = [list(mask) or [1] for mask in output["env_mask"]]
    return checked
