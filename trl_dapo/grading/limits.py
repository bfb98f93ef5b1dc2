"""Limits of a worker process that the operating system enforces, so that no code in C can outlast them."""

import contextlib
import ctypes
import os
import resource
import signal
import sys

from .worker_process import CPU_LIMIT_SIGNALS


_PR_SET_PDEATHSIG = 1


def prepare_signals() -> None:
    """Give the signals that enforce limits their default, fatal effect, whatever the parent process made of them."""
    for number in CPU_LIMIT_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CPU_LIMIT_SIGNALS)
    # Ctrl-C is the business of the program that started the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def start_cpu_limit(seconds: float) -> None:
    """
    End this process by a signal once it has used so much more CPU time (user and system). Replaces the limit before.

    Args:
        seconds (`float`):
            CPU seconds from now on. 0 takes the limit away.
    """
    # A timer of the kernel: it counts CPU time and not wall time, so a grade does not depend on the machine's load,
    # and its default effect needs no help from the interpreter, which a loop over big integers would not give.
    signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory(num_bytes: int) -> None:
    """
    Limit the address space of this process to what it has and so many bytes more; no core dumps, no files.

    On systems without `/proc` the limit counts from nothing; macOS does not enforce it.
    """
    size = 0
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    for limit, value in (
        (resource.RLIMIT_AS, size + num_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        # A stricter limit of the user's stays.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


def die_with(parent_pid: int) -> None:
    """
    End this process when its parent ends, even by SIGKILL. Linux only; elsewhere the closed pipe has to do.

    Args:
        parent_pid (`int`):
            Who the parent is supposed to be: if it has gone already, this process ends at once.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
