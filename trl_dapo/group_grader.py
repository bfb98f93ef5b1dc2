"""Grading of finished groups off the main thread, while the engine decodes the others."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

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
        self._thread: ThreadPoolExecutor | None = None

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

    def _go_on(self) -> None:
        if self._running is not None or not self._waiting:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "grading", initializer=self._enter_thread)
        groups, self._waiting = self._waiting, []
        self._running = self._thread.submit(self._grade, groups)

    def _grade(self, groups: list[StreamedGroup]) -> list[StreamedGroup]:
        start = time.perf_counter()
        try:
            self.grade(groups)
        finally:
            self.seconds += time.perf_counter() - start
        return groups

    def _enter_thread(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
