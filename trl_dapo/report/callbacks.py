"""What the run prints and writes at fixed points of the training loop."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

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
