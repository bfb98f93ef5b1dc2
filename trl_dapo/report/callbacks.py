"""What the trainer does at fixed points of the training loop."""

from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from trl_dapo.config.departures import describe_run

from .group_table import print_groups
from .recorder import RolloutRecorder


class RunAnnouncement(TrainerCallback):
    """
    Prints what a run is going to do, once, before it begins.

    Args:
        trainer (`DAPOTrainer`):
            The trainer of the run.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prints it on the first rank."""
        if not state.is_world_process_zero:
            return
        sampler, dataset = self.trainer.dynamic_sampler, self.trainer.train_dataset
        plan = None if sampler is None else sampler.planner.plan(args.num_groups_per_batch)
        num_rows = len(dataset) if isinstance(dataset, Dataset) else None
        print(describe_run(args, state.max_steps, num_rows, plan, self.trainer.reward_func_names))


class RunRecord(TrainerCallback):
    """
    Writes down what the trainer logs beside the record of rollout groups, and prints a table of groups at each line.

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
