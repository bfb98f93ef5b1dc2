"""The pool's end of one worker process: start it, ask it, hear it or lose it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence


# What the operating system ends a process with when its CPU time is spent. (By name: Windows has neither.)
CPU_LIMIT_SIGNALS = frozenset(getattr(signal, name) for name in ("SIGPROF", "SIGXCPU") if hasattr(signal, name))
# Wall seconds that a worker may take to import sympy: a cold network disk under load is slow.
START_SECONDS = 300.0


class WorkerLostError(Exception):
    """The worker process ended, or said nothing for too long."""


class WorkerNotStartedError(WorkerLostError):
    """The worker process could not be started, or ended before it was ready."""


class WorkerProcess:
    """
    One worker process, with pipes to it. Not thread-safe: each belongs to one thread of the pool.

    It is a plain child and not one of `multiprocessing`: that would import the program's main module again, which
    notebooks do not have and scripts without `if __name__ == "__main__"` do not survive.

    Args:
        cpu_seconds (`float`):
            CPU time limit of one grading.
        memory_bytes (`int`):
            Memory limit of the worker, beyond what it has after its imports.

    Raises:
        `ImportError`: If sympy cannot be imported.
        `NotImplementedError`: On Windows, which has no such limits.
        `WorkerNotStartedError`: If the process does not start.
    """

    def __init__(self, cpu_seconds: float, memory_bytes: int) -> None:
        if os.name != "posix":
            raise NotImplementedError(
                "Grading answers that are neither numbers nor words needs POSIX: its limits of CPU time and memory do "
                "not exist here. Use Linux, macOS or WSL."
            )
        # The paths of this process, so that the worker finds the same packages; `-P` keeps a stray module in the
        # working directory from shadowing one of them. Sets must not be ordered at random: sympy's answers depend on it.
        paths = [path or os.getcwd() for path in sys.path if isinstance(path, str)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
        arguments = [str(os.getpid()), str(cpu_seconds), str(memory_bytes)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "trl_dapo.grading.worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=environment,
                start_new_session=True,  # a group of its own: Ctrl-C does not reach it, and it is killed as one
            )
        except OSError as error:
            raise WorkerNotStartedError(str(error)) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        self._buffer = b""
        self._request_number = 0
        try:
            word, _, reason = self._line(START_SECONDS).partition(" ")
        except WorkerLostError as error:
            self.kill()
            raise WorkerNotStartedError(f"{error} before it was ready") from error
        if word != "ready":
            self.kill()
            raise ImportError(
                f"The grading worker cannot import sympy ({reason}). Install it with `pip install sympy`."
            )

    def ask(self, pairs: Sequence[tuple[str, str | None]], seconds: float) -> None:
        """
        Send a request.

        Args:
            pairs (`list[tuple[str, str | None]]`):
                Gold answers, and the answers to compare with.
            seconds (`float`):
                Wall seconds that the worker may take to read it.

        Raises:
            `WorkerLostError`: If the worker has gone or does not read.
        """
        self._request_number += 1
        body = json.dumps((self._request_number, pairs)).encode(
            "ascii"
        )  # escapes keep null bytes and lone surrogates whole
        rest = memoryview(len(body).to_bytes(4, "big") + body)
        deadline = time.monotonic() + seconds
        while rest:
            self._wait(self._requests, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise WorkerLostError("the worker has ended") from error

    def hear(self, seconds: float) -> tuple[str, int]:
        """
        Return the next reply to the last request.

        Args:
            seconds (`float`):
                Wall seconds to wait for it.

        Returns:
            `tuple[str, int]`: The reply, and with `died` the number of the signal, else 0.

        Raises:
            `WorkerLostError`: If the worker has gone, says nothing, or answers something else.
        """
        first, _, second = self._line(seconds).partition(" ")
        if first == "died":
            return first, int(second)
        if first != str(self._request_number):
            raise WorkerLostError(f"the worker answers request {first} and not {self._request_number}")
        return second, 0

    def _line(self, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            self._wait(self._replies, select.POLLIN, deadline)
            part = os.read(self._replies, 65_536)
            if not part:
                raise WorkerLostError("the worker has ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("ascii")

    def kill(self) -> None:
        """End the worker and its fork at once. Does nothing the second time."""
        self.signal_end()
        self._process.wait()
        self._close_pipes()

    def signal_end(self) -> None:
        """Have the worker and its fork end, without waiting for it. From any thread."""
        # Before `wait`, while the process id cannot have passed to anybody else.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def disown(self) -> None:
        """Let go of a worker of the parent process, after a fork: it sees the end of its pipe once that one ends."""
        self._process.returncode = 0
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
            raise WorkerLostError("the worker does not answer")
