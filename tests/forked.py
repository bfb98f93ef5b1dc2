"""
Runs functions in processes of their own, in a tenth of the time: forked from a server that has imported everything.

Each process that runs tests has one server, which starts with the first function. Where the launcher itself is tested,
`torchrun` starts the processes instead.
"""

import functools
import gc
import multiprocessing
import os
import runpy
import socket
import sys
import time
from multiprocessing import connection, forkserver
from pathlib import Path
from unittest import mock

import torch


TESTS = Path(__file__).parent
# Where a process finds the package and the modules of the tests.
FOLDERS = [str(folder) for folder in (TESTS / "faults", TESTS, TESTS.parent)]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["two_ranks", "recipe_training"])

# When one rank has failed, the others notice by themselves or not at all.
GRACE_SECONDS = 30

# What the server, and so each process, finds in its environment: the folders of its modules, and one grading worker, since
# starting one takes a second. A rank has its share of the machine.
PATH = os.pathsep.join([*FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = {"PYTHONPATH": PATH, "LOCAL_WORLD_SIZE": "64"}


@functools.cache
def start_server():
    with mock.patch.dict(os.environ, ENVIRONMENT):
        forkserver.ensure_running()


def start(target, *args, **kwargs):
    """Returns a process that has begun to call a function of a module that the server can import."""
    start_server()
    process = CONTEXT.Process(target=_call, args=(target, args, kwargs))
    process.start()
    return process


def _call(target, args, kwargs):
    # A collection would copy all that the server imported.
    gc.freeze()
    target(*args, **kwargs)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def become_rank(rank, num_ranks, port):
    """Sets what a launcher tells a process, for processes on one machine."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "ACCELERATE_USE_CPU": "true"}


def print_into(path):
    """What is printed from here on goes to the end of a file: the terminal is that of the process that runs tests."""
    with Path(path).open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


def _work(target, args, output, ranks):
    print_into(output)
    torch.set_num_threads(1)
    if ranks is not None:
        become_rank(*ranks)
    target(*args)


def start_ranks(target, args, num_ranks, folder):
    """Returns the processes of ranks that have begun to call a function; see `run_ranks`."""
    port = free_port()
    return [
        start(_work, target, args, str(_output(folder, rank)), (rank, num_ranks, port) if num_ranks > 1 else None)
        for rank in range(num_ranks)
    ]


def _output(folder, rank):
    return Path(folder, f"output{rank}.txt")


def run_ranks(target, args, num_ranks, folder, max_seconds=540):
    """
    Calls a function on ranks that exchange over gloo, or in one process without any, and waits for its end.

    Args:
        target: function of a module that the server can import; it gets `args` on every rank.
        num_ranks: 1 calls it in one process that is no rank.
        folder: that gets what each rank prints, as `output0.txt` and so on.
        max_seconds: after which the ranks are killed.

    Raises:
        `AssertionError`: if a rank fails or hangs, with what all of them printed.
    """
    outputs = [_output(folder, rank) for rank in range(num_ranks)]
    processes = start_ranks(target, args, num_ranks, folder)
    try:
        _wait_for_all(processes, max_seconds)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    printed = [f"rank {rank}:\n{output.read_text()[-3000:]}" for rank, output in enumerate(outputs) if output.exists()]
    assert codes == [0] * num_ranks, "\n".join([f"exit codes {codes}; None is one that hung", *printed])


def _wait_for_all(processes, max_seconds):
    deadline = time.monotonic() + max_seconds
    left = {process.sentinel: process for process in processes}
    while left and time.monotonic() < deadline:
        for sentinel in connection.wait(list(left), deadline - time.monotonic()):
            process = left.pop(sentinel)
            process.join()
            if process.exitcode:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)


def run_program(path, arguments, output, max_seconds=540):
    """Runs a Python program with these arguments; returns its exit code and what it printed, which is in `output`."""
    process = start(_run_program, str(path), arguments, str(output))
    process.join(max_seconds)
    process.kill()
    process.join()
    return process.exitcode, Path(output).read_text()


def _run_program(path, arguments, output):
    print_into(output)
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")
