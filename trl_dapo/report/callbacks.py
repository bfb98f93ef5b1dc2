"""What the run prints and writes at fixed points of the training loop, and while it samples."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from trl_dapo.refill.progress import BatchSoFar, SamplingProgress

from .group_table import print_groups
from .recorder import RolloutRecorder


class RunAnnouncement(TrainerCallback):
    """
    Prints what a run is going to do, once, before it begins.

    Args:
        describe (`Callable[[int], str]`):
            Returns the text, given the optimizer steps of the run.
    """

    def __init__(self, describe: Callable[[int], str]):
        self.describe = describe

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prints it on the first rank."""
        if state.is_world_process_zero:
            print(self.describe(state.max_steps))


class RunRecord(TrainerCallback):
    """
    Writes what the trainer logs beside the record of rollout groups, and prints a table of groups at each log line.

    Args:
        recorder (`RolloutRecorder`):
            The record of rollout groups.
    """

    def __init__(self, recorder: RolloutRecorder):
        self.recorder = recorder

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Writes and prints on the first rank."""
        self.recorder.log({"step": state.global_step, **(logs or {})})
        if args.log_completions:
            print_groups(self.recorder, args.num_completions_to_print)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the groups that were carried for a batch that does not come."""
        self.recorder.close(state.global_step)


# What the terminal shows of a log line: the words, the metric, and its format. Trackers get all metrics.
_SHOWN = (
    ("sampled accuracy", "dapo/sampled_accuracy", ".3f"),
    ("acceptance", "dapo/acceptance_rate", ".2f"),
    ("all correct", "dapo/frac_all_correct", ".2f"),
    ("all wrong", "dapo/frac_all_wrong", ".2f"),
    ("entropy", "entropy", ".3f"),
    ("length", "completions/mean_length", ".0f"),
    ("reward", "reward", ".3f"),
    ("seconds", "step_time", ".1f"),
)


def shown_metrics(logs: Mapping[str, Any]) -> dict[str, str]:
    """
    Returns the metrics of a training line that people look at, in words.

    >>> shown_metrics({"loss": 0.1, "entropy": 1.23456, "dapo/sampled_accuracy": 0.5, "reward": None})
    {'sampled accuracy': '0.500', 'entropy': '1.235'}
    """
    return {words: f"{logs[name]:{form}}" for words, name, form in _SHOWN if logs.get(name) is not None}


def terminal_line(logs: Mapping[str, Any], step: int, num_steps: int) -> str:
    """
    Returns what the terminal shows of a log line: a few metrics in training, all of them otherwise.

    Args:
        logs (`Mapping[str, Any]`):
            The metrics of the line. Those that are missing or `None` are not shown.
        step (`int`), num_steps (`int`):
            Optimizer steps taken, and those of the run.

    Example:

    >>> logs = {"loss": 0.1, "dapo/sampled_accuracy": 0.5, "entropy": 1.23456, "reward": None, "step_time": 2.0}
    >>> terminal_line(logs, step=3, num_steps=60)
    'step 3/60 | sampled accuracy 0.500 | entropy 1.235 | seconds 2.0'
    """
    if "loss" not in logs:
        shown = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in logs.items()}
        return str({name: value for name, value in shown.items() if name != "total_flos"})
    parts = [f"{words} {value}" for words, value in shown_metrics(logs).items()]
    return " | ".join([f"step {step}/{num_steps}", *parts])


class ShortProgress(ProgressCallback):
    """The progress bar of transformers, with short log lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Writes a short line above the bar, on the first rank."""
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(terminal_line(logs or {}, state.global_step, state.max_steps))


class ShortPrinter(PrinterCallback):
    """The printer of transformers (`disable_tqdm=True`), with short log lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Prints a short line, on the first rank."""
        (logs or {}).pop("total_flos", None)  # as transformers does: later callbacks do not see it
        if state.is_world_process_zero:
            print(terminal_line(logs or {}, state.global_step, state.max_steps))


def shorten_log_lines(callbacks: list[TrainerCallback]) -> None:
    """Replaces what transformers prints log lines with, in place. A user's own callbacks stay."""
    short: dict[type[TrainerCallback], type[TrainerCallback]] = {
        ProgressCallback: ShortProgress,
        PrinterCallback: ShortPrinter,
    }
    for number, callback in enumerate(callbacks):
        if type(callback).__name__ == "NotebookProgressCallback":
            # Not at the top: it needs IPython.
            from .notebook_progress import NotebookTable

            callbacks[number] = NotebookTable()
        elif type(callback) in short:
            callbacks[number] = short[type(callback)]()


# While a batch is sampled: a bar on a terminal, a line a round in a log.

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

    def end(self) -> None:
        """Prints nothing."""


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
