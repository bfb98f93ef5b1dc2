"""
A vLLM server, scripted, in a process of its own, that kills itself at a given point and comes back with its first weights.

Points are counted, as in `doomed_training.py`: each request for a completion, each chunk of an answer, and each load of
weights, before it and when it is done but not confirmed.
"""

import os
import signal
import threading
from collections import Counter
from multiprocessing import connection

import forked
import torch
from forked import free_port, print_into
from processes import MAX_SECONDS
from scripted_server import ModelEngine, ScriptedServer


def serve(model_folder, port, output, doom):
    """Serves until it is killed, at the latest at its point: kind and number, or `()`."""
    print_into(output)
    torch.set_num_threads(1)
    counts, lock = Counter(), threading.Lock()

    def count(point):
        with lock:
            counts[point] += 1
            if (point, counts[point]) == doom:
                os.kill(os.getpid(), signal.SIGKILL)

    server = ScriptedServer(ModelEngine(model_folder), port=port)
    server.reached = count
    threading.Event().wait()


class DoomedServer:
    """
    The process of a server, and the one after it.

    Args:
        model_folder: of the weights that it is started with, each time.
        folder: that gets what it prints.
    """

    def __init__(self, model_folder, folder):
        self.model_folder, self.output = str(model_folder), str(folder / "server.txt")
        self.port = free_port()
        self.num_deaths = 0
        self.process = None

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self, doom=()):
        """Starts it, if it does not run."""
        if self.process is None or not self.process.is_alive():
            self.process = forked.start(serve, self.model_folder, self.port, self.output, doom)

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def watch(self, training, comes_back):
        """Waits for the end of a training, and returns its exit code. Meanwhile it starts the server again, if that comes back."""
        while True:
            ends = [training.sentinel, *([self.process.sentinel] if self.process.is_alive() else [])]
            ended = connection.wait(ends, MAX_SECONDS)
            if not ended:
                training.kill()
                training.join()
                raise AssertionError(f"the training was still running after {MAX_SECONDS} seconds")
            if training.sentinel in ended:
                training.join()
                return training.exitcode
            self.process.join()
            assert self.process.exitcode == -signal.SIGKILL
            self.num_deaths += 1
            if comes_back:
                self.start()
