"""TRL's `GRPOTrainer` with checkpoints that are whole or say that they are not, and a resume that changes nothing."""

import functools
import math
import os
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from torch.utils.data import DataLoader
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.trl_seams import pushed_from_checkpoint, replaced, sampler_of

from . import finalization
from .completion_table import read_table
from .files import flushed_records, mark_unfinished
from .finalization import AsyncFinalization, WrittenCheckpoint, finish_together, read_checkpoints
from .resume_choice import choose_checkpoint, wanted_resume, warning_of_overwriting
from .run_state import RunState
from .weights import check_adapter, check_kind_of_weights, load_renamed, unloaded


logger = get_logger(__name__)

# A half-trained generation batch fits a run in which these are the same.
_LAYOUT_FIELDS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
    "loss_type",
    "loss_normalization",
    "beta",
    "use_vllm",
    "dynamic_sampling",
    "surplus",
)


class ResumableTrainer(GRPOTrainer):
    """
    A `GRPOTrainer` whose resumed run is the one that was never interrupted.

    TRL's own begins a new generation batch wherever it resumes, and after the first epoch draws the first one's order of
    prompts again. Here the batch that is being trained, its phase, and the metrics since the last log line are in the
    checkpoint, and so is every part that is added to `run_state`.

    Attributes:
        ranks (`Ranks`):
            The ranks of the run.
        run_state (`RunState`):
            The parts of the run that its checkpoints hold.
    """

    args: DAPOConfig

    def __init__(self, *args: Any, **kwargs: Any):
        self._train_sampler: Any = None
        self._has_trained = False
        # While a checkpoint is written: arguments that are others meanwhile, as they were given.
        self._given: dict[str, Any] = {}
        self._finalization = AsyncFinalization()
        # The checkpoint that the run resumes from, until its weights are read.
        self._folder_read: str | None = None
        super().__init__(*args, **kwargs)
        self.ranks = Ranks(self.accelerator)
        layout = {"num_ranks": self.ranks.num_ranks} | {name: getattr(self.args, name) for name in _LAYOUT_FIELDS}
        self.run_state = RunState(self.ranks.rank, layout)
        self.run_state.add("loop", self._loop_state, self._keep_loop_state, needs_layout=True)
        # The table of completions that was written last: its step, and which columns are rewards.
        self._logged_table: dict[str, Any] | None = None
        # Of the checkpoint that the run resumes from, until the first step gives it back.
        self._saved_loop: dict[str, Any] | None = None
        self._has_loop_to_restore = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Trains, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint folder, a folder that holds checkpoints, or `True`, `"true"`, `"last"`: the newest whole one in
                `output_dir`. `None`: as the field of the configuration says, until a training has ended; then, and with
                `False`, the run begins anew.
            *args, **kwargs:
                As in `GRPOTrainer`.

        Raises:
            `ValueError`: the checkpoint was cut off while it was written, or its files are damaged; or it is `True` and
            there is no whole one. Where none was ever finished, the run begins anew. Or it holds an adapter and the run
            trains a whole model, or the reverse; or its prompt stream has another order.
        """
        output_dir = str(self.args.output_dir)
        wanted = wanted_resume(resume_from_checkpoint, None if self._has_trained else self.args.resume_from_checkpoint)
        checkpoint: str | None = None
        message = ""
        if wanted is not None:
            # The first rank looks, so that no two can see different things on a busy file system.
            checkpoint, message, is_fatal = self.ranks.from_first(lambda: choose_checkpoint(wanted, output_dir))
            if is_fatal:
                raise ValueError(message)
        elif not self._has_trained and self.args.should_save:
            message = warning_of_overwriting(output_dir)
        if message:
            logger.warning(message)
        if checkpoint is not None:
            check_kind_of_weights(checkpoint, is_peft_model(self.model))
            check_adapter(checkpoint, getattr(self.model, "peft_config", {}))
        self._folder_read = checkpoint
        try:
            output = super().train(checkpoint, *args, **kwargs)
        except BaseException:
            try:
                self._finalization.wait()
            except Exception:
                # What ended the training is told, and this too.
                logger.exception("The last checkpoint could not be finished.")
            raise
        finally:
            self._folder_read = None
        self.ranks.together(self._finalization.wait)
        self._has_trained = True
        return output

    # Saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # The one before. All ranks learn of its error, and none waits for another here.
        self.ranks.together(self._finalization.wait)
        args = self.args
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if args.should_save:
            mark_unfinished(folder)
        self.accelerator.wait_for_everyone()
        names = self.run_state.save(folder)
        # Older checkpoints may go, and this one to the Hub, when it is whole, not before.
        self._given = {name: getattr(args, name) for name in ("save_total_limit", "push_to_hub")}
        with replaced(args, "save_total_limit", None), replaced(args, "push_to_hub", False):
            super()._save_checkpoint(model, trial)
        self._given = {}
        self._finish(folder, names)
        if args.push_to_hub:
            self._push_whole_checkpoint(folder)

    def _finish(self, folder: str, names: list[str]) -> None:
        """Has a checkpoint with state files of these names on this rank marked as whole: now, or beside the next step."""
        args, written = self.args, None
        if args.should_save:
            best = self.state.best_model_checkpoint
            written = WrittenCheckpoint(folder, args.save_total_limit, best, is_of_node=args.save_on_each_node)
        # Every rank is past its own files.
        self.accelerator.wait_for_everyone()
        num_state_bytes = sum(os.path.getsize(os.path.join(folder, name)) for name in names)
        num_bytes = 0 if written is None else written.num_bytes
        # All ranks decide alike, by what each of them knows.
        of_ranks = self.ranks.gather_rows([[self._is_awaited(), num_state_bytes, num_bytes]])
        is_awaited, of_states, of_folders = zip(*of_ranks, strict=True)
        is_beside = not any(is_awaited) and max(of_folders) >= finalization.MIN_BYTES_BESIDE
        flush = functools.partial(flushed_records, folder, names)
        if is_beside and (self.ranks.num_ranks == 1 or sum(of_states) >= finalization.MIN_STATE_BYTES_BESIDE):
            self.ranks.begin_aside()
            self._finalization.begin(functools.partial(finish_together, flush, self.ranks.gather_aside, written))
            return
        records = self.ranks.gather_objects(self.ranks.together(flush))
        if written is not None and is_beside:
            self._finalization.begin(functools.partial(written.finish, records))
        elif written is not None:
            written.finish(records)

    def _is_awaited(self) -> bool:
        """Whether something needs the checkpoint whole as soon as it is saved."""
        args = self.args
        is_read = args.push_to_hub or args.load_best_model_at_end or args.metric_for_best_model is not None
        return is_read or self.control.should_training_stop or read_checkpoints(self.callback_handler.callbacks)

    def _push_whole_checkpoint(self, folder: str) -> list[Future[Any]]:
        """Begins to push a checkpoint, as `Trainer` does, and returns the uploads."""
        return pushed_from_checkpoint(self, folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, as in `Trainer`."""
        # The arguments are saved with it, and should say what the user asked for.
        with ExitStack() as stack:
            for name, value in (self._given if _internal_call else {}).items():
                stack.enter_context(replaced(self.args, name, value))
            super().save_model(output_dir, _internal_call)

    # Resuming

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Transformers warns, and goes on with the weights that the model happens to have.
        model: Any = self.model
        folder = self._folder_read or self.state.best_model_checkpoint
        if folder is not None and unloaded(model, load_result.missing_keys):
            load_renamed(model, folder)
        else:
            super()._issue_warnings_after_load(load_result)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns TRL's dataloader, whose sampler an exact resume moves past the epochs that are done."""
        dataloader: DataLoader[Any] = super().get_train_dataloader()
        self._train_sampler = sampler_of(dataloader)
        return dataloader

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # The weights have been read before.
        self._folder_read = None
        super()._load_optimizer_and_scheduler(checkpoint)
        self._saved_loop, self._has_loop_to_restore = None, checkpoint is not None
        if checkpoint is None:
            return
        self.run_state.load(checkpoint, self.args.restart_stream)
        if self._saved_loop is not None and self.log_completions and self.accelerator.is_main_process:
            self._read_logged_table(checkpoint, self._saved_loop)
        self._skip_passes()

    def _skip_passes(self) -> None:
        """Moves the generator of TRL's sampler past the epochs that are done: each has taken one permutation from it."""
        sampler = self._train_sampler
        if sampler is None or not sampler.shuffle:
            return
        num_batches = len(sampler) // self.args.shape.num_completions
        num_steps = max(1, math.ceil(num_batches / self.args.gradient_accumulation_steps))
        for _ in range(self.state.global_step // num_steps):
            torch.randperm(sampler.num_samples, generator=sampler.generator)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Returns the micro-batches of an optimizer step, as in `Trainer`; none where all steps have been taken."""
        # Not before the first step: by now the loop has set its counters to zero, and an evaluation has gone by.
        if self._has_loop_to_restore:
            self._has_loop_to_restore = False
            self._restore_loop()
        # Resumed from its last checkpoint within an epoch, transformers takes one more step before it looks.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        samples: tuple[list[Any], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples

    def _loop_state(self) -> dict[str, Any]:
        """Returns where TRL's loop stands: phase and rest of the generation batch, and what the next log line is made of."""
        is_done = self._step % (self.args.shape.num_slices * self.num_iterations) == 0
        return {
            "step": self._step,
            "buffered_inputs": None if is_done else self._buffered_inputs,
            "metrics": self._metrics["train"],
            "loss": self._tr_loss,
            "last_logged_step": self._globalstep_last_logged,
            "logged_table": self._logged_table,
        }

    def _keep_loop_state(self, state: dict[str, Any]) -> None:
        self._saved_loop = state

    def _read_logged_table(self, checkpoint: str, state: dict[str, Any]) -> None:
        """
        Takes the rows of TRL's table of completions from the file that the run wrote last: checkpoints have no texts.

        The file may be gone, or from before the batch that is being trained. Then the table begins with the next batch.
        """
        table, cycle = state.get("logged_table"), self.args.shape.num_slices * self.num_iterations
        num_micro_steps_before = state["step"] // cycle * cycle
        is_of_batch = table and table["step"] > num_micro_steps_before // self.args.gradient_accumulation_steps
        if table and (is_of_batch or state["step"] == num_micro_steps_before):
            state["completions"] = read_table(Path(checkpoint).parent, table["step"], table["rewards"])

    def _restore_loop(self) -> None:
        """Puts TRL's loop where the checkpoint left it; without a state, where TRL's dataloader stands."""
        state, self._saved_loop = self._saved_loop, None
        if state is None:
            if self._train_sampler is not None:
                self._step = self.state.global_step * self.args.gradient_accumulation_steps
            return
        self._step = state["step"]
        batch: Any = state["buffered_inputs"]
        self._buffered_inputs = None if batch is None else _to_device(batch, self.accelerator.device)
        metrics = self._metrics["train"]
        metrics.clear()
        for name, values in state["metrics"].items():
            metrics[name].extend(values)
        self._tr_loss += state["loss"].to(self._tr_loss.device)
        # The summary at the end is about the steps of this call.
        self._total_loss_scalar = -self._tr_loss.item()
        self._globalstep_last_logged = state["last_logged_step"]
        logs: Any = self._logs
        self._logged_table = state.get("logged_table")
        for name, values in state.get("completions", {}).items():
            columns = values.items() if isinstance(values, Mapping) else [(None, values)]
            for column, cells in columns:
                log = logs[name] if column is None else logs[name][column]
                log.clear()
                log.extend(cells)


def _to_device(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, Mapping):
        return {name: _to_device(value, device) for name, value in tree.items()}
    return [_to_device(value, device) for value in tree] if isinstance(tree, list) else tree
