"""A sign of life while a generation batch is sampled: a bar on a terminal, a line a round in a log."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from trl_dapo.refill.progress import BatchSoFar, SamplingProgress


# Rounds that follow each other faster get no line each: a run of short steps would print little else.
_SECONDS_BETWEEN_ROUNDS = 1.0
_SECONDS_WITHOUT_ROUNDS = 10.0


def progress_line(step: int, so_far: BatchSoFar) -> str:
    """
    Returns what a log says of a batch that is being sampled.

    >>> progress_line(3, BatchSoFar(num_found=13, num_wanted=16, num_prompts=48, seconds=12.34, round_number=2))
    'sampling for step 3 | round 2 | 13 of 16 groups found | 48 prompts sampled | 12.3 s'
    """
    parts = [
        f"sampling for step {step}",
        *([] if so_far.round_number is None else [f"round {so_far.round_number}"]),
        f"{so_far.num_found} of {so_far.num_wanted} groups found",
        f"{so_far.num_prompts} prompts sampled",
        f"{so_far.seconds:.1f} s",
    ]
    return " | ".join(parts)


class ProgressLines(SamplingProgress):
    """
    Prints a line after each round that is no shorter than a second; without rounds, one every ten seconds.

    Args:
        write (`Callable[[str], None]`, *optional*):
            Takes a line. `None`: standard output, at once.
        clock (`Callable[[], float]`, *optional*):
            Returns the time in seconds.
    """

    def __init__(self, write: Callable[[str], Any] | None = None, clock: Callable[[], float] = time.monotonic):
        self.write = write or _print_at_once
        self.clock = clock
        self._step = 0
        self._last = -_SECONDS_WITHOUT_ROUNDS

    def begin(self, step: int, num_wanted: int) -> None:
        """Notes the step."""
        self._step = step

    def update(self, so_far: BatchSoFar) -> None:
        """Prints a line, unless the last one is recent."""
        now = self.clock()
        least = _SECONDS_WITHOUT_ROUNDS if so_far.round_number is None else _SECONDS_BETWEEN_ROUNDS
        if now - self._last >= least:
            self._last = now
            self.write(progress_line(self._step, so_far))


class ProgressBar(SamplingProgress):
    """
    Shows a bar of the groups that were found, from the beginning of a batch to its end.

    Args:
        make_bar (`Callable[..., Any]`, *optional*, defaults to `tqdm`):
            Makes it.
    """

    def __init__(self, make_bar: Callable[..., Any] = tqdm):
        self.make_bar = make_bar
        self._bar: Any = None

    def begin(self, step: int, num_wanted: int) -> None:
        """Shows an empty bar."""
        self._bar = self.make_bar(total=num_wanted, desc=f"sampling for step {step}", unit="group", leave=False)

    def update(self, so_far: BatchSoFar) -> None:
        """Moves it."""
        self._bar.n = so_far.num_found
        rounds = {} if so_far.round_number is None else {"rounds": so_far.round_number}
        self._bar.set_postfix(prompts=so_far.num_prompts, **rounds)

    def end(self) -> None:
        """Removes it."""
        self._bar.close()


def progress_of_run(is_first_rank: bool, disable_tqdm: bool) -> SamplingProgress:
    """
    Returns what shows the progress on this rank.

    Args:
        is_first_rank (`bool`):
            Whether this rank prints.
        disable_tqdm (`bool`):
            Whether there should be no bars.
    """
    if not is_first_rank:
        return SamplingProgress()
    return ProgressBar() if sys.stderr.isatty() and not disable_tqdm else ProgressLines()


def _print_at_once(line: str) -> None:
    # A log that is a file or a pipe would keep the line back for minutes.
    print(line, flush=True)
