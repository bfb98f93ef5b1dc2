"""Simulated ranks: threads of one process that talk as the processes of a run do."""

import collections
import threading
from collections.abc import Callable
from typing import Any

import torch

from trl_dapo.ranks.collectives import Ranks


# A rank that waits so long for another one is deadlocked: the threads do next to nothing between two exchanges.
_TIMEOUT_SECONDS = 60.0


class MeetingPoint:
    """Where all ranks bring a value and take away everybody's."""

    def __init__(self, num_ranks: int):
        self.barrier = threading.Barrier(num_ranks, timeout=_TIMEOUT_SECONDS)
        self.values: list[Any] = [None] * num_ranks
        # Of gathers that nobody waits for until they are done: by number, what each rank brought.
        self.posts: dict[int, dict[int, Any]] = collections.defaultdict(dict)
        self.condition = threading.Condition()

    def swap(self, rank: int, operation: str, value: Any) -> list[Any]:
        """Returns the values of all ranks. Fails when they are not all in the same operation."""
        self.values[rank] = (operation, value)
        self.barrier.wait()
        brought = list(self.values)
        self.barrier.wait()  # nobody overwrites what another one has yet to read
        operations = [name for name, _ in brought]
        assert len(set(operations)) == 1, f"the ranks are in different operations: {operations}"
        return [value for _, value in brought]


class ThreadRanks(Ranks):
    """
    One of W ranks that are threads. Only carries values; how they are laid out is decided by `Ranks`.

    It is stricter than gloo: shapes and sizes that do not fit fail here, where processes might hang or read noise.
    """

    def __init__(self, rank: int, num_ranks: int, meeting_point: MeetingPoint):
        self.rank, self.num_ranks, self.device = rank, num_ranks, torch.device("cpu")
        self._meeting_point = meeting_point
        self._num_begun = 0

    def gather_objects(self, objects: list[Any]) -> list[Any]:
        return [item for brought in self._swap("gather_objects", list(objects)) for item in brought]

    def gather_on(self, rank: int, objects: list[Any]) -> list[Any]:
        brought = self._swap(f"gather_on {rank}", list(objects))
        return [item for of_rank in brought for item in of_rank] if rank == self.rank else []

    def gather_aside(self, objects: list[Any]) -> list[Any]:
        return [item for brought in self._swap("gather_aside", list(objects)) for item in brought]

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        tensors = self._swap("gather", tensor)
        shapes = [tuple(other.shape) for other in tensors]
        assert len(set(shapes)) == 1, f"ranks gather different shapes: {shapes}"
        return torch.cat(tensors)

    def _begin_gather(self, tensor):
        number, posts = self._num_begun, self._meeting_point.posts
        self._num_begun += 1
        with self._meeting_point.condition:
            posts[number][self.rank] = tensor
            self._meeting_point.condition.notify_all()

        def is_done():
            return len(posts[number]) == self.num_ranks

        def wait():
            with self._meeting_point.condition:
                arrived = self._meeting_point.condition.wait_for(is_done, timeout=_TIMEOUT_SECONDS)
            if not arrived:
                raise threading.BrokenBarrierError
            tensors = [posts[number][rank] for rank in range(self.num_ranks)]
            shapes = [tuple(other.shape) for other in tensors]
            assert len(set(shapes)) == 1, f"ranks gather different shapes: {shapes}"
            return torch.cat(tensors)

        return is_done, wait

    def _all_to_all(self, send: torch.Tensor, send_sizes: list[int], receive_sizes: list[int]) -> torch.Tensor:
        assert send.dtype == torch.int32
        assert len(send_sizes) == len(receive_sizes) == self.num_ranks
        parts = [split[self.rank] for split in self._swap("all_to_all", send.split(send_sizes))]
        assert [len(part) for part in parts] == receive_sizes
        return torch.cat(parts)

    def finish(self) -> None:
        """Says that this rank is done; fails when another one still waits for an exchange."""
        self._swap("finish", None)

    def _swap(self, operation: str, value: Any) -> list[Any]:
        return self._meeting_point.swap(self.rank, operation, value)


def run_ranks(num_ranks: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """
    Runs `work` once for each of W ranks, in threads, and returns what they returned.

    Raises what a rank raises, after stopping the others: those that wait for it stop waiting.
    """
    meeting_point = MeetingPoint(num_ranks)
    results: list[Any] = [None] * num_ranks
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        ranks = ThreadRanks(rank, num_ranks, meeting_point)
        try:
            results[rank] = work(ranks)
            ranks.finish()
        except threading.BrokenBarrierError as error:
            errors.append(error)  # another rank's doing, or a deadlock
        except BaseException as error:
            errors.insert(0, error)
            meeting_point.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
