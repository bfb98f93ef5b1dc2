"""Every exchange between ranks that this package adds to TRL's."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator


def gather_rows(accelerator: Accelerator, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """
    Gathers equally many rows of integers from every rank.

    Args:
        accelerator (`Accelerator`):
            The trainer's.
        rows (`Sequence[Sequence[int]]`):
            The rows of this rank, shape `(R, C)`; the same shape on every rank.

    Returns:
        `list[list[int]]`: the rows of all ranks, rank-major, shape `(W * R, C)`.
    """
    local = torch.tensor(rows, dtype=torch.int64, device=accelerator.device)
    gathered: list[list[int]] = accelerator.gather(local).tolist()
    return gathered


def exchange(
    accelerator: Accelerator, outgoing: Sequence[Sequence[torch.Tensor]], incoming_sizes: Sequence[Sequence[int]]
) -> list[list[torch.Tensor]]:
    """
    Sends tensors of known sizes between all pairs of ranks, in one collective.

    Args:
        accelerator (`Accelerator`):
            The trainer's.
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
    send = send.to(accelerator.device)
    received = torch.empty(sum(receive_sizes), dtype=torch.int32, device=accelerator.device)
    dist.all_to_all_single(received, send, output_split_sizes=receive_sizes, input_split_sizes=send_sizes)
    per_rank = received.cpu().split(receive_sizes)
    return [list(part.split(list(sizes))) for part, sizes in zip(per_rank, incoming_sizes, strict=True)]
