"""Every exchange between ranks that this package adds to TRL's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_dapo.errors import RankFailedError


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PendingRows:
    """
    Rows of integers on their way from all ranks.

    Attributes:
        is_done (`Callable[[], bool]`):
            Whether those of all ranks have come.
        wait (`Callable[[], list[list[int]]]`):
            Waits for them, and returns the rows of all ranks, rank-major.
    """

    is_done: Callable[[], bool]
    wait: Callable[[], list[list[int]]]


class Ranks:
    """
    The ranks of a run as one of them sees them: its number, how many there are, and every exchange between them.

    Every method is a collective: all ranks call it, in the same order. `_gather`, `_begin_gather`, `_all_to_all`,
    `gather_objects`, `gather_on` and `gather_aside` carry the values and do nothing else, so a simulation of ranks replaces
    these six and the rest is what runs in earnest.

    Args:
        accelerator (`Accelerator`):
            The trainer's.

    Attributes:
        rank (`int`):
            Number of this rank, 0 to W - 1.
        num_ranks (`int`):
            World size W.
        device (`torch.device`):
            Where the tensors of an exchange have to lie.
        failures (`list[tuple[int, str]]`):
            The ranks that failed when `raise_failure` was called last, with their causes. The same on all ranks.
    """

    def __init__(self, accelerator: Accelerator):
        self.rank: int = accelerator.process_index
        self.num_ranks: int = accelerator.num_processes
        self.device: torch.device = accelerator.device
        self._accelerator = accelerator
        self.failures: list[tuple[int, str]] = []
        self._cpu_group: Any = None
        self._aside_group: Any = None

    def gather_rows(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """
        Gathers equally many rows of integers from every rank.

        Args:
            rows (`Sequence[Sequence[int]]`):
                The rows of this rank, shape `(R, C)`; the same shape on every rank.

        Returns:
            `list[list[int]]`: the rows of all ranks, rank-major, shape `(W * R, C)`.
        """
        gathered: list[list[int]] = self._gather(torch.tensor(rows, dtype=torch.int64, device=self.device)).tolist()
        return gathered

    def gather_unless_failed(self, rows: torch.Tensor, failure: Exception | None) -> torch.Tensor:
        """
        Gathers equally many rows of floats from every rank, unless one has failed to make its rows.

        Args:
            rows (`torch.Tensor`):
                The rows of this rank, shape `(R, C)`; the same shape on every rank, also on one that failed.
            failure (`Exception`, *optional*):
                What happened on this rank.

        Returns:
            `torch.Tensor`: the rows of all ranks, rank-major, shape `(W * R, C)`.

        Raises:
            `RankFailedError`: another rank failed. One that failed itself raises its own failure.
        """
        has_failed = rows.new_full((len(rows), 1), float(failure is not None))
        gathered = self._gather(torch.cat([rows, has_failed], dim=1))
        if gathered[:, -1].any():
            self.raise_failure(failure)
        return gathered[:, :-1].contiguous()

    def together(self, work: Callable[[], T]) -> T:
        """
        Does something on all ranks, and raises on all of them if it failed on one. A collective.

        Args:
            work (`Callable`):
                What this rank does. Its result is returned.

        Raises:
            `RankFailedError`: it failed on another rank. A rank on which it failed raises its own failure.
        """
        try:
            result = work()
        except Exception as error:
            self.gather_rows([[1]])
            self.raise_failure(error)
        if any(has_failed for (has_failed,) in self.gather_rows([[0]])):
            self.raise_failure(None)
        return result

    def raise_failure(self, failure: Exception | None) -> NoReturn:
        """
        Ends all ranks, when they know that at least one has failed.

        Raises:
            `RankFailedError`: on all ranks but those that failed, which raise what happened to them.
        """
        mine = [] if failure is None else [(self.rank, f"{type(failure).__name__}: {failure}")]
        self.failures = self.gather_objects(mine)
        if failure is not None:
            raise failure
        raise RankFailedError(*self.failures[0])

    def begin_gather_rows(self, rows: Sequence[Sequence[int]]) -> PendingRows:
        """
        As `gather_rows`, without waiting for the other ranks. One at a time, and not on the accelerator: it may be busy.
        """
        if self.num_ranks == 1:
            return PendingRows(lambda: True, lambda: [*map(list, rows)])
        is_done, wait = self._begin_gather(torch.tensor(rows, dtype=torch.int64))
        return PendingRows(is_done, lambda: wait().tolist())

    def exchange(
        self, outgoing: Sequence[Sequence[torch.Tensor]], incoming_sizes: Sequence[Sequence[int]]
    ) -> list[list[torch.Tensor]]:
        """
        Sends tensors of known sizes between all pairs of ranks, in one collective.

        Args:
            outgoing (`Sequence[Sequence[torch.Tensor]]`):
                For each rank, the one-dimensional int32 tensors that go there.
            incoming_sizes (`Sequence[Sequence[int]]`):
                For each rank, the sizes of the tensors that come from there, in its sending order.

        Returns:
            `list[list[torch.Tensor]]`: for each rank, the tensors that came from there, int32, on the CPU.
        """
        send_sizes = [sum(len(tensor) for tensor in tensors) for tensors in outgoing]
        receive_sizes = [sum(sizes) for sizes in incoming_sizes]
        flat = [tensor for tensors in outgoing for tensor in tensors]
        send = torch.cat(flat) if flat else torch.empty(0, dtype=torch.int32)
        received = self._all_to_all(send.to(self.device), send_sizes, receive_sizes)
        per_rank = received.cpu().split(receive_sizes)
        return [list(part.split(list(sizes))) for part, sizes in zip(per_rank, incoming_sizes, strict=True)]

    def gather_on(self, rank: int, objects: list[Any]) -> list[Any]:
        """
        As `gather_objects`, for one rank alone.

        Returns:
            `list`: on this rank the objects of all ranks, rank-major; on the others none.
        """
        if self.num_ranks == 1:
            return objects
        brought: list[Any] | None = [None] * self.num_ranks if rank == self.rank else None
        dist.gather_object(objects, brought, dst=rank)
        return [one for of_rank in brought or [] for one in of_rank]

    def gather_objects(self, objects: list[Any]) -> list[Any]:
        """
        Gathers picklable objects; how many, each rank decides for itself. Slow: for what no tensor can hold.

        Returns:
            `list`: the objects of all ranks, rank-major.
        """
        gathered: list[Any] = gather_object(objects)
        return gathered

    def begin_aside(self) -> None:
        """Connects the ranks for `gather_aside`, the first time. A collective of the main threads."""
        if self.num_ranks > 1 and self._aside_group is None:
            self._aside_group = dist.new_group(backend="gloo")

    def gather_aside(self, objects: list[Any]) -> list[Any]:
        """
        As `gather_objects`, beside the collectives of the main threads: in one thread of each rank, in a process group of its own.
        """
        if self.num_ranks == 1:
            return objects
        brought: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(brought, objects, group=self._aside_group)
        return [one for of_rank in brought for one in of_rank]

    def from_first(self, decide: Callable[[], Any]) -> Any:
        """Returns on all ranks what `decide`, called on the first rank alone, returned there. For picklable objects."""
        return self.gather_objects([decide()] if self.rank == 0 else [])[0]

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Maps `(R, ...)` on each rank to `(W * R, ...)`, rank-major, on all."""
        gathered: torch.Tensor = self._accelerator.gather(tensor)
        return gathered

    def _begin_gather(self, tensor: torch.Tensor) -> tuple[Callable[[], bool], Callable[[], torch.Tensor]]:
        """As `_gather`, of a tensor on the CPU: returns what says whether it is done, and what waits for the result."""
        if self._cpu_group is None:
            self._cpu_group = dist.new_group(backend="gloo")
        parts = [torch.empty_like(tensor) for _ in range(self.num_ranks)]
        work = dist.all_gather(parts, tensor, group=self._cpu_group, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            return torch.cat(parts)

        return work.is_completed, wait

    def _all_to_all(self, send: torch.Tensor, send_sizes: list[int], receive_sizes: list[int]) -> torch.Tensor:
        """Sends consecutive parts of an int32 vector to ranks 0, 1, ... and returns what came from them, in that order."""
        received = torch.empty(sum(receive_sizes), dtype=torch.int32, device=self.device)
        dist.all_to_all_single(received, send, output_split_sizes=receive_sizes, input_split_sizes=send_sizes)
        return received
