"""Grading of finished groups off the main thread, while the engine decodes the others."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait

import torch

from .streamed_group import StreamedGroup


class GroupGrader:
    """
    Grades groups in the order in which they come, those that wait together at once.

    Args:
        grade (`Callable[[list[StreamedGroup]], None]`):
            Grades groups, and notes rewards and rollouts in them. It runs in one thread, one call after another.
        device (`torch.device`):
            The accelerator of this rank, which is the current one in that thread too.

    Attributes:
        seconds (`float`):
            Seconds of grading so far.
        seconds_waited (`float`):
            Seconds of these in which the main thread had nothing to do but wait.
    """

    def __init__(self, grade: Callable[[list[StreamedGroup]], None], device: torch.device):
        self.grade = grade
        self.device = device
        self.seconds = 0.0
        self.seconds_waited = 0.0
        self._waiting: list[StreamedGroup] = []
        self._running: Future[list[StreamedGroup]] | None = None
        self._calls: queue.SimpleQueue[tuple[list[StreamedGroup], Future[list[StreamedGroup]]]] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to grade."""
        return self._running is None and not self._waiting

    def submit(self, group: StreamedGroup) -> None:
        """Takes a group whose completions are all done."""
        self._waiting.append(group)
        self._go_on()

    def poll(self) -> list[StreamedGroup]:
        """
        Returns groups that were graded since the last time, without waiting. Raises what a reward function raised.
        """
        if self._running is None or not self._running.done():
            return []
        done, self._running = self._running, None
        self._go_on()
        return done.result()

    def wait(self, seconds: float | None = None) -> None:
        """Waits until a call is done, or for so many seconds."""
        if self._running is not None:
            start = time.perf_counter()
            wait([self._running], timeout=seconds)
            self.seconds_waited += time.perf_counter() - start

    def drain(self) -> list[StreamedGroup]:
        """Waits for all groups, and returns those that were not yet returned."""
        graded = []
        while not self.is_idle:
            self.wait()
            graded += self.poll()
        return graded

    def abandon(self, error: Exception) -> None:
        """Gives up the call that runs, which may never end: who asks for its groups gets the error. From any thread."""
        running = self._running
        self._calls = None
        if running is not None:
            with contextlib.suppress(InvalidStateError):  # it ended all the same
                running.set_exception(error)

    def _go_on(self) -> None:
        if self._running is not None or not self._waiting:
            return
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            # A daemon: one that hangs in a reward function must not keep the process from its end.
            threading.Thread(target=self._serve, args=(self._calls,), name="grading", daemon=True).start()
        groups, self._waiting = self._waiting, []
        self._running = Future()
        self._calls.put((groups, self._running))

    def _serve(self, calls: "queue.SimpleQueue[tuple[list[StreamedGroup], Future[list[StreamedGroup]]]]") -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        while True:
            groups, done = calls.get()
            start = time.perf_counter()
            error: BaseException | None = None
            try:
                self.grade(groups)
            except BaseException as raised:
                error = raised
            self.seconds += time.perf_counter() - start
            with contextlib.suppress(InvalidStateError):  # it was given up
                if error is None:
                    done.set_result(groups)
                else:
                    done.set_exception(error)
            # While this thread waits for the next call, what it graded last should not stay in memory.
            del groups, done, error
            if calls is not self._calls:
                return
