"""
What the loss divides by (DAPO Eq. 8 and 12), whatever the batch is cut into.

TRL divides a micro-batch by the tokens of the generation batch over its optimizer steps, which is right on average only.
Here each optimizer step divides by what is its own. Nothing of TRL's loss is rewritten for it: the denominator is handed
to TRL, and where rows weigh differently their advantages are scaled, in which every one of TRL's surrogates is
homogeneous.

Shapes: S micro-batches of a generation batch, A of an optimizer step, B rows of a micro-batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


# Extra columns of a generation batch: live tokens of the group of each row, and the number of the row before shuffling.
GROUP_TOKENS, ROW_NUMBER = "dapo_group_tokens", "dapo_row_number"
# And of a micro-batch: live tokens of its optimizer step over all ranks.
STEP_TOKENS = "dapo_step_tokens"


def live_tokens(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Returns the number of completion tokens of each row that carry loss, shape `(B,)`, int64."""
    mask = inputs["completion_mask"]
    tool_mask = inputs.get("tool_mask")
    counts: torch.Tensor = (mask if tool_mask is None else mask * tool_mask).sum(dim=1)
    return counts


def group_columns(
    counts: torch.Tensor, all_counts: torch.Tensor, rank: int, num_generations: int
) -> dict[str, torch.Tensor]:
    """
    Returns the columns by which groups are told apart once the rows of a batch are shuffled.

    Args:
        counts (`torch.Tensor`):
            Live tokens of the rows of this rank, shape `(B,)`.
        all_counts (`torch.Tensor`):
            The same of all ranks, rank-major, shape `(W * B,)`.
        rank (`int`):
            Number of this rank.
        num_generations (`int`):
            Completions of a group.

    Example:

    >>> columns = group_columns(torch.tensor([3, 4]), torch.tensor([1, 2, 3, 4]), rank=1, num_generations=4)
    >>> columns["dapo_group_tokens"].tolist(), columns["dapo_row_number"].tolist()
    ([10, 10], [0, 1])
    """
    by_row = all_counts.view(-1, num_generations).sum(dim=1).repeat_interleave(num_generations)
    first = rank * len(counts)
    return {
        GROUP_TOKENS: by_row[first : first + len(counts)],
        ROW_NUMBER: torch.arange(len(counts), device=counts.device),
    }


def window_sums(values: torch.Tensor, gradient_accumulation_steps: int) -> torch.Tensor:
    """
    Sums over the micro-batches of each optimizer step, repeated for each of them.

    Args:
        values (`torch.Tensor`):
            A value of each micro-batch in training order, shape `(S,)`.
        gradient_accumulation_steps (`int`):
            Micro-batches of one optimizer step A, a divisor of S.

    Returns:
        `torch.Tensor`: shape `(S,)`.

    Example:

    >>> window_sums(torch.tensor([10, 30, 5, 5]), gradient_accumulation_steps=2).tolist()
    [40, 40, 10, 10]
    """
    windows = values.view(-1, gradient_accumulation_steps).sum(dim=1)
    return windows.repeat_interleave(gradient_accumulation_steps)


def normalize(
    parts: Sequence[dict[str, Any]],
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
    gradient_accumulation_steps: int,
    normalization: str | None,
    num_generations: int,
) -> None:
    """
    Counts the tokens of each optimizer step, and makes it divide by them, or by those of its groups and their number.

    `"batch"`: TRL rescales `num_items_in_batch` from the S micro-batches of a generation batch to the A of an optimizer
    step by A/S. Given `tokens of the step * S / A`, it divides by the tokens of the step.

    `"group"` (DAPO Eq. 8 as it stands, an expectation over questions of a token mean): a row of group g gets the weight
    `tokens of the step / (groups of the step * tokens of g)` besides, so that TRL's division leaves
    `1 / (groups of the step * tokens of g)`. Groups without a live token do not count. Every group must lie in one
    optimizer step whole.

    Args:
        parts (`Sequence[dict]`):
            The S micro-batches in training order. Changed in place.
        sum_over_ranks (`Callable`):
            Sums a tensor over the ranks.
        gradient_accumulation_steps (`int`):
            Micro-batches of one optimizer step A, a divisor of S.
        normalization (`str` or `None`):
            `"batch"` or `"group"`; anything else leaves TRL's denominator as it is.
        num_generations (`int`):
            Completions of a group.
    """
    counts = [torch.stack([live_tokens(part).sum(), _rows_of_live_groups(part)]) for part in parts]
    tokens, rows = sum_over_ranks(torch.stack(counts)).unbind(dim=1)
    step_tokens = window_sums(tokens, gradient_accumulation_steps)
    step_groups = window_sums(rows, gradient_accumulation_steps) / num_generations
    for number, part in enumerate(parts):
        part[STEP_TOKENS] = step_tokens[number]
        if normalization in ("batch", "group"):
            part["num_items_in_batch"] = step_tokens[number] * (len(parts) // gradient_accumulation_steps)
        if normalization == "group":
            weights = step_tokens[number] / (step_groups[number] * part[GROUP_TOKENS]).clamp(min=1)
            part["advantages"] = part["advantages"] * weights.to(part["advantages"].dtype)


def whole_groups(
    parts: Sequence[dict[str, Any]], num_generations: int, generator: torch.Generator | None = None
) -> list[dict[str, Any]]:
    """
    Deals the rows of a shuffled generation batch anew, so that each group lies in consecutive rows.

    Where the rows of an optimizer step are a multiple of `num_generations`, each step then has whole groups, in random
    order.

    Args:
        parts (`Sequence[dict]`):
            The S micro-batches of this rank, with the column `ROW_NUMBER`.
        num_generations (`int`):
            Completions of a group.
        generator (`torch.Generator`, *optional*):
            Draws the order of the groups. `None`: torch's own.

    Returns:
        `list[dict]`: S micro-batches.

    Example:

    >>> rows = [{"dapo_row_number": torch.tensor([2, 1])}, {"dapo_row_number": torch.tensor([3, 0])}]
    >>> dealt = whole_groups(rows, num_generations=2, generator=torch.Generator().manual_seed(1))
    >>> [part["dapo_row_number"].tolist() for part in dealt]
    [[2, 3], [0, 1]]
    """
    rows = torch.cat([part[ROW_NUMBER] for part in parts]).cpu()
    order = torch.argsort(rows)
    groups = torch.randperm(len(rows) // num_generations, generator=generator)
    order = order.view(-1, num_generations)[groups].flatten()
    size = len(rows) // len(parts)
    whole = {name: _reordered([part[name] for part in parts], order) for name in parts[0]}
    return [
        {name: value[start : start + size] if _is_per_row(value) else value for name, value in whole.items()}
        for start in range(0, len(rows), size)
    ]


def _rows_of_live_groups(part: Mapping[str, Any]) -> torch.Tensor:
    tokens = part.get(GROUP_TOKENS)
    return live_tokens(part).new_zeros(()) if tokens is None else (tokens > 0).sum()


def _is_per_row(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim > 0)


def _reordered(values: Sequence[Any], order: torch.Tensor) -> Any:
    first = values[0]
    if isinstance(first, list):
        flat = [item for value in values for item in value]
        return [flat[index] for index in order.tolist()]
    if _is_per_row(first):
        return torch.cat(list(values))[order.to(first.device)]
    return first
