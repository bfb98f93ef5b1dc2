"""
How rewards are computed, what a reward function may return, and the deadline of each call of a reward function.

A function that waits (for a server, a lock, another process) is interrupted by a signal. A function that computes is
interrupted by a timer of the kernel, which does not need the interpreter's lock: this also ends a regular expression that
backtracks for ever. Code in C that ignores signals, and a function that catches every exception, cannot be interrupted:
then the process ends, because the other ranks could not continue without it. Outside the main thread only Python code can
be interrupted.
"""

import contextlib
import ctypes
import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch

from trl_dapo.errors import EnvTimeoutError, RewardTimeoutError, naming_rewards
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.rewards.logged_values import LoggedValues
from trl_dapo.sampling.env_faults import EnvFault, EnvironmentFaults
from trl_dapo.sampling.judge import Tokens
from trl_dapo.trl_seams import TrainerSeams


# Between the first interruption and the end of the process.
GRACE_SECONDS = 30.0
# Signals come once a second, since a function may catch the first.
_SECONDS_BETWEEN_SIGNALS = 1.0
_STDERR = 2
# Signals that Python does not use by default and that do nothing without a handler. (By name: Windows has neither.)
_WAKING: Any = getattr(signal, "SIGURG", None)
_COMPUTING: Any = getattr(signal, "SIGVTALRM", None)


class RewardCalls:
    """
    Computes rewards with TRL's own method.

    Args:
        seams (`TrainerSeams`):
            Owns the reward functions.
        ranks (`Ranks`):
            The ranks of the run.
        timeout (`float`, *optional*):
            Most wall seconds of a call of a reward function. `None`: no limit.
        punishment (`Callable`, *optional*):
            The soft overlong punishment, whose values are one more column. `None`: there is none.
        last_checkpoint (`Callable[[], Path or None]`, *optional*):
            Finds what a run whose reward function raised can be resumed from.

    Attributes:
        watch (`RewardWatch`):
            Ends calls that take longer.
    """

    def __init__(
        self,
        seams: TrainerSeams,
        ranks: Ranks,
        timeout: float | None,
        punishment: Callable[..., Sequence[float]] | None = None,
        last_checkpoint: Callable[[], object] = lambda: None,
    ):
        self.seams = seams
        self.ranks = ranks
        self.watch = RewardWatch(timeout)
        self.logged = LoggedValues()
        self.punishment = punishment
        self.last_checkpoint = last_checkpoint

    def compute(
        self,
        inputs: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Tokens],
        faults: EnvironmentFaults | None = None,
    ) -> torch.Tensor:
        """
        Returns the rewards of all ranks. A collective.

        Args:
            inputs (`Sequence[Mapping]`), prompts (`Sequence`), completions (`Sequence`), completion_ids (`Sequence`):
                The R completions of this rank, equally many on each, as in `GRPOTrainer._calculate_rewards`.
            faults (`EnvironmentFaults`, *optional*):
                Which of them an environment or a tool has left without a reward; it is told of those whose environment fails
                to give one. `None`: there are no environments.

        Returns:
            `torch.Tensor`: shape `(W * R, F)`, float32. NaN: no reward.

        Raises:
            `RewardTimeoutError`: a function of this rank took longer than it may.
            `RankFailedError`: on another rank a function did, or raised something.
        """
        failure: Exception | None = None
        try:
            rewards = self.compute_alone(inputs, prompts, completions, completion_ids, faults)
        except Exception as error:
            if self.ranks.num_ranks == 1:
                raise
            # The others wait for these rewards.
            failure = error
            num_columns = len(self.seams.reward_names) + (self.punishment is not None)
            rewards = torch.zeros(len(prompts), num_columns, device=self.ranks.device)
        return rewards if self.ranks.num_ranks == 1 else self.ranks.gather_unless_failed(rewards, failure)

    def compute_alone(
        self,
        inputs: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Tokens],
        faults: EnvironmentFaults | None = None,
    ) -> torch.Tensor:
        """As `compute`, the rewards of this rank alone, shape `(R, F)`. No collective, from any thread."""
        names = self.seams.reward_names

        @contextlib.contextmanager
        def call(name: str) -> Iterator[None]:
            try:
                with self.watch.call(name):
                    yield
            except Exception:
                names[:] = [name]
                raise

        where = (
            f"the rewards of {len(prompts)} completions at optimizer step {self.seams.step} on rank {self.ranks.rank}"
        )
        with naming_rewards(names, len(prompts), self.last_checkpoint), self.watch.computation(where):
            columns = inputs, prompts, completions, completion_ids
            rewards = (
                self.seams.compute_rewards(*columns, call, self.logged.clean, checked_rewards)
                if faults is None
                else self._rewards_without(faults, columns, call)
            )
        if self.punishment is None:
            return rewards
        # A completion that no function scored stays unscored, whatever its length; and evaluation is unshaped.
        is_unscored = rewards.isnan().all(dim=1) | (not self.seams.is_training)
        punished = rewards.new_tensor(self.punishment(completion_ids=completion_ids)).masked_fill(
            is_unscored, torch.nan
        )
        return torch.cat([rewards, punished.unsqueeze(1)], dim=1)

    def _rewards_without(
        self,
        faults: EnvironmentFaults,
        columns: tuple[Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]],
        call: Callable[[str], contextlib.AbstractContextManager[None]],
    ) -> torch.Tensor:
        """Returns the rewards of all completions; of those with a fault no function is asked, and they have none."""
        num_rows = len(columns[0])
        rows = faults.sound_rows(num_rows)
        rewards = torch.full((num_rows, len(self.seams.reward_names)), torch.nan, device=self.seams.device)
        if rows:
            inputs, prompts, completions, completion_ids = ([column[row] for row in rows] for column in columns)
            with self.seams.only_rows(rows):
                rewards[rows] = self.seams.compute_rewards(
                    inputs,
                    prompts,
                    completions,
                    completion_ids,
                    call,
                    self.logged.clean,
                    checked_rewards,
                    lambda number: faults.note(rows[number], EnvFault.RAISED),
                )
            self.seams.spread_logged_columns(rows, num_rows)
        rewards[[row for row in range(num_rows) if faults.of(row)]] = torch.nan
        return rewards


def checked_rewards(name: str, returned: Any, num_completions: int) -> Any:
    """
    Returns the rewards that a function returned as a list, unless they are none.

    A list of another length is left to TRL, whose error names the function too.

    Args:
        name (`str`):
            Name of the reward function.
        returned (`Any`):
            A list, tuple, array or tensor, or something that gives one reward after the other.
        num_completions (`int`):
            How many rewards are wanted.

    Returns:
        `list`: The rewards, each a number or None.

    Raises:
        `TypeError`: naming the function and what it returned.

    Example:

    >>> checked_rewards("accuracy", (1.0, None), 2)
    [1.0, None]
    >>> checked_rewards("accuracy", 0.5, 2)
    Traceback (most recent call last):
    TypeError: The reward function 'accuracy' returned 0.5, but must return a list with one number, or None for no reward, for each of the 2 completions.
    """
    is_list = not isinstance(returned, str | bytes | Mapping | Set) and hasattr(type(returned), "__iter__")
    # Arrays and tensors without an axis have `__iter__` too.
    if not is_list or getattr(returned, "shape", None) == ():
        raise TypeError(_no_rewards(name, _described(returned), num_completions))
    rewards = list(returned)
    if len(rewards) != num_completions and not hasattr(returned, "__len__"):
        what = f"{_described(returned)}, which gave {len(rewards)} rewards"
        raise TypeError(_no_rewards(name, what, num_completions))
    for number, reward in enumerate(rewards):
        if not _is_reward(reward):
            raise TypeError(_no_rewards(name, f"{_described(reward)} for completion {number}", num_completions))
    return rewards


def _is_reward(value: Any) -> bool:
    if value is None or type(value) in (float, int, bool):
        return True
    return hasattr(type(value), "__float__") and getattr(value, "shape", ()) == ()


def _described(value: Any) -> str:
    kind = "" if value is None or isinstance(value, bool | int | float) else f" (of type `{type(value).__name__}`)"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'}{kind}"


def _no_rewards(name: str, what: str, num_completions: int) -> str:
    return (
        f"The reward function {name!r} returned {what}, but must return a list with one number, or None for no reward, for "
        f"each of the {num_completions} completions."
    )


_Timeout = RewardTimeoutError | EnvTimeoutError


class _Interruption(BaseException):
    """Raised in a reward function. No `Exception`: `except Exception: return 0.0` must not make a reward of it."""


class RewardWatch:
    """
    Bounds the calls of reward functions. One computation at a time.

    When a call has taken too long the stacks of all threads go to the standard error, and the call is interrupted. Tools and
    environments are watched in the same way.

    Args:
        seconds (`float`, *optional*):
            Most wall seconds of a call. `None`: no limit, and nothing is watched.
        grace_seconds (`float`, *optional*):
            Wall seconds after which a process ends whose reward function cannot be interrupted. `None`: 30.
        error (`Callable[[str, float, str], TimeoutError]`, *optional*):
            Makes the error of a call from its name, the limit and what it was to do. `None`: [`RewardTimeoutError`].
        max_stacks (`int`, *optional*):
            How many times the stacks are printed. `None`: always.

    Attributes:
        tell (`Callable[[RewardTimeoutError], None]` or `None`):
            Called, from a thread of the watch, when a computation off the main thread has taken too long: the main thread
            may go on without it. `None`: such a process ends, as one whose main thread cannot be interrupted.
    """

    def __init__(
        self,
        seconds: float | None,
        grace_seconds: float | None = None,
        error: Callable[[str, float, str], _Timeout] = RewardTimeoutError,
        max_stacks: int | None = None,
    ):
        self.seconds = seconds
        self.make_error = error
        self.stacks_left = math.inf if max_stacks is None else max_stacks
        self.grace_seconds = GRACE_SECONDS if grace_seconds is None else grace_seconds
        self.tell: Callable[[RewardTimeoutError], None] | None = None
        self._computation: _Computation | None = None

    @contextlib.contextmanager
    def computation(self, where: str, patience: float = 1.0) -> Iterator[None]:
        """
        Inside it rewards are computed, in this thread or for it.

        Args:
            where (`str`):
                Which rewards, for the message.
            patience (`float`, *optional*, defaults to `1.0`):
                How many times the limit a call may take.

        Raises:
            `RewardTimeoutError`: a call in it took too long.
        """
        if self.seconds is None:
            yield
            return
        limit, before = self.seconds, self._computation
        computation = self._computation = _Computation(
            limit * patience,
            self.grace_seconds,
            self.tell,
            lambda name: self.make_error(name, limit, where),
            prints_stacks=self.stacks_left > 0,
        )
        try:
            with computation.watched():
                yield
        finally:
            self._computation = before
            self.stacks_left -= computation.error is not None

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Inside it, in whatever thread, the named reward function runs."""
        if self.seconds is None or self._computation is None:
            yield
            return
        with self._computation.call(name):
            yield


class _Computation:
    def __init__(
        self,
        seconds: float,
        grace: float,
        tell: Callable[[Any], None] | None,
        make_error: Callable[[str], _Timeout],
        prints_stacks: bool,
    ) -> None:
        self.seconds, self.grace, self.tell = seconds, grace, tell
        self.make_error, self.prints_stacks = make_error, prints_stacks
        self.caller = threading.get_ident()
        self.is_main = threading.current_thread() is threading.main_thread() and _WAKING is not None
        self.error: _Timeout | None = None
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._saying = threading.RLock()
        self._is_said = False
        # Of the calls that run, by number: function, and when it has to be done. Async ones run side by side.
        self._running: dict[int, tuple[str, float]] = {}
        self._num_calls = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        try:
            with self._signals():
                threading.Thread(target=self._watch, name="reward-watch", daemon=True).start()
                try:
                    yield
                finally:
                    # From here on nothing is interrupted.
                    self._over.set()
                    faulthandler.cancel_dump_traceback_later()
                    with self._changed:
                        self._changed.notify()
        except _Interruption as interruption:
            assert self.error is not None
            # With the traceback of the interruption: it says where the function was.
            raise self.error.with_traceback(interruption.__traceback__) from None
        if self.error is not None:
            # The function caught the interruption, and returned something.
            raise self.error

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        with self._changed:
            number = self._num_calls = self._num_calls + 1
            self._running[number] = name, time.monotonic() + self.seconds
            self._changed.notify()
        # For code that holds the interpreter's lock for good, and looks at no signals: a thread in C ends the process.
        faulthandler.dump_traceback_later(self.seconds + 2 * self.grace, file=_STDERR, exit=True)
        try:
            yield
        finally:
            self._running.pop(number, None)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Has the main thread interrupted by signals, of the watch and of a timer that counts this process's CPU time."""
        if not self.is_main:
            yield
            return
        # A timer that someone else has set is left alone.
        is_timer_free = signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
        numbers = (_WAKING, _COMPUTING) if is_timer_free else (_WAKING,)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        if is_timer_free:
            # Never earlier than due: a call starts later than now. All threads of the process make it run faster.
            signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds)
        try:
            yield
        finally:
            if is_timer_free:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            for number, handler in before.items():
                # One that C code has installed cannot be given back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._over.is_set():
            return
        overdue = self._overdue()
        if overdue is not None:
            self._expire(overdue)
        elif number == _COMPUTING:
            signal.setitimer(signal.ITIMER_VIRTUAL, max(0.1, self._seconds_left() or self.seconds))
        if self.error is not None:
            if number == _COMPUTING:
                signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS_BETWEEN_SIGNALS)
            raise _Interruption

    def _seconds_left(self) -> float | None:
        """Wall seconds to the next deadline; `None`: nothing runs."""
        deadlines = [deadline for _, deadline in list(self._running.values())]
        return min(deadlines) - time.monotonic() if deadlines else None

    def _overdue(self) -> str | None:
        """Returns a function that should be done by now."""
        now = time.monotonic()
        return next((name for name, deadline in list(self._running.values()) if deadline <= now), None)

    def _watch(self) -> None:
        while not self._over.is_set():
            overdue = self._overdue()
            if overdue is not None:
                self._expire(overdue)
                self._end_the_call()
                return
            with self._changed:
                left = self._seconds_left()
                if not self._over.is_set() and (left is None or left > 0):
                    self._changed.wait(left)

    def _expire(self, name: str) -> None:
        """
        Prints what happened, once: watch thread and timer may both find a call overdue.

        The second one waits, because the stack is printed before the call is interrupted. In one thread
        a signal may come while another is handled, hence the lock that the same thread can take again.
        """
        self.error = self.error or self.make_error(name)
        with self._saying:
            if not self._is_said:
                self._is_said = True
                if not self.prints_stacks:
                    return
                # First by itself: of more than 100 threads not all are printed.
                _say(
                    f"{self.error}\nWhere it is, most recent call first:\n{_stack_of(self.caller)}\nWhat all threads are doing:"
                )
                faulthandler.dump_traceback(_STDERR)

    def _end_the_call(self) -> None:
        assert self.error is not None
        deadline = time.monotonic() + self.grace
        if not self.is_main:
            _raise_in(self.caller)
            if self.tell is not None:
                # The process may go on, without this thread.
                faulthandler.cancel_dump_traceback_later()
                self.tell(self.error)
                return
        while time.monotonic() < deadline:
            if self.is_main:
                signal.pthread_kill(self.caller, _WAKING)
            if self._over.wait(min(_SECONDS_BETWEEN_SIGNALS, max(0.0, deadline - time.monotonic()))):
                return
        _say(f"{self.error.function} cannot be interrupted, so that this process ends here. {self.error}")
        os._exit(1)


def _stack_of(thread: int) -> str:
    # Without the source lines, for which a file would be read while anything may hang.
    frame, lines = sys._current_frames().get(thread), []
    while frame is not None:
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        frame = frame.f_back
    return "\n".join(lines)


def _raise_in(thread: int) -> None:
    """Raises the interruption in a thread, when it next runs Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Interruption))


def _say(text: str) -> None:
    # Not through `sys.stderr`, whose lock the interrupted thread may hold.
    with contextlib.suppress(OSError):
        os.write(_STDERR, f"{text}\n".encode(errors="backslashreplace"))
