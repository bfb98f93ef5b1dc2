"""
A real training of the tiny model that kills its own process at a given point, in the middle of whatever it does there.

Points are counted, not timed: each call and return of a function, Python's or C's, in a phase of the training is one. So
a trial is the same on every machine, however busy.
"""

import contextlib
import functools
import hashlib
import inspect
import json
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import IterableDataset
from forked import become_rank, print_into
from hub_client import use_hub
from safetensors.torch import save_file
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from transformers import TrainerCallback
from trl import GRPOTrainer

from trl_dapo import DAPOConfig, DAPOTrainer


# "files" are those points of "saving" at which something is about to happen on the disk.
PHASES = ("generation", "grading", "optimizer", "saving", "files")
FILE_CALLS = {"open", "write", "write_record", "write_end_of_file", "serialize_file", "flush", "close", "fsync"}
FILE_CALLS |= {"rename", "unlink", "mkdir", "rmdir", "remove"}


class Reaper:
    """
    Counts the points of each phase, and kills this process with SIGKILL at the one that is due.

    Args:
        doom: phase and number of the point that is due, of which alone points are counted; `None`: nothing is due, and
            the points of all phases are counted; `()`: nothing is due, and none are, which takes less time.
    """

    def __init__(self, doom=None):
        self.due = doom
        self.counts = Counter()
        # A point may lie within this: its own calls are points of the phase around it.
        self.lock = threading.RLock()

    def is_watched(self, phase):
        return self.due is None or phase in ["saving" if due == "files" else due for due in self.due[:1]]

    def enter(self, phase):
        if not self.is_watched(phase):
            return

        def count(frame, event, arg):
            self.reach(phase)
            if phase == "saving" and event == "c_call" and arg.__name__ in FILE_CALLS:
                self.reach("files")

        sys.setprofile(count)

    def reach(self, phase):
        with self.lock:
            self.counts[phase] += 1
            if (phase, self.counts[phase]) == self.due:
                os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def leave():
        sys.setprofile(None)

    @contextlib.contextmanager
    def within(self, phase):
        self.enter(phase)
        try:
            yield
        finally:
            self.leave()


class Doomed:
    """
    A trainer, ours or TRL's, that enters the phases, and notes each batch as soon as it is made and trained.

    Attributes:
        reaper: of the class, since a process has one trainer.
    """

    reaper: Reaper

    def _generate_single_turn(self, *args, **kwargs):
        with self.reaper.within("generation"):
            return super()._generate_single_turn(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with self.reaper.within("saving"):
            super()._save_checkpoint(*args, **kwargs)

    def create_model_card(self, *args, **kwargs):
        """Does nothing: the card has most of the points of a checkpoint, none of its risks, and grows from save to save."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            tensors = [output[name] for name in ("prompt_ids", "completion_ids", "completion_mask", "advantages")]
            self.note("batches", {"step": self.state.global_step, "sha256": hash_of(tensors)})
        return output

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training:
            columns = [inputs[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")]
            # Rows without a completion stand in for groups that were not found.
            rows = [
                [hash_of([prompt[prompt_mask.bool()]]), hash_of([completion[mask.bool()]])]
                for prompt, prompt_mask, completion, mask in zip(*columns, strict=True)
                if mask.any()
            ]
            self.note("trained", {"step": self.state.global_step, "life": os.getpid(), "rows": rows})
        return inputs

    def note(self, name, record):
        with Path(self.args.output_dir, f"{name}{self.accelerator.process_index}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


class DoomedDAPOTrainer(Doomed, DAPOTrainer):
    pass


class DoomedGRPOTrainer(Doomed, GRPOTrainer):
    pass


class OptimizerPhase(TrainerCallback):
    def __init__(self, reaper):
        self.reaper = reaper

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.reaper.enter("optimizer")

    def on_optimizer_step(self, *args, **kwargs):
        self.reaper.leave()


def hash_of(tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tensor.shape).encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tiny_training(folder, options):
    """Returns the class of a trainer of the tiny model, and its arguments."""
    dataset = numbered_prompts(options.pop("num_rows", 40))
    if options.pop("is_iterable", False):
        rows = dataset.to_list()
        dataset = IterableDataset.from_generator(lambda: iter(rows))
    return DoomedDAPOTrainer, {
        "model": tiny_model(),
        "reward_funcs": first_token_reward,
        "args": DAPOConfig(**training_arguments(folder, **options)),
        "train_dataset": dataset,
        "processing_class": tiny_tokenizer(),
    }


def train(
    folder,
    options,
    doom=None,
    resume=None,
    reward=None,
    ranks=None,
    task=tiny_training,
    hub=None,
    grace_seconds=None,
):
    """
    Trains in `folder`, and writes the outcome there if it lives to see the end. To be run in a process of its own.

    Args:
        doom: phase and number of the point at which to die; see `Reaper`.
        resume: passed on to `Trainer.train`; `None` resumes if there is any checkpoint folder.
        reward: in place of that of the task.
        ranks: rank, world size and port of a run on several processes.
        hub: address of a Hub on the loopback interface.
        grace_seconds: those of the watch over reward functions.
        task: returns the class of a trainer, one of those above, and its arguments.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    # By this the test knows the processes that this one starts.
    os.chdir(folder)
    rank = 0
    if ranks is not None:
        rank = ranks[0]
        become_rank(*ranks)
    print_into(Path(folder, f"output{rank}.txt"))
    torch.set_num_threads(1)
    if hub is not None:
        use_hub(pytest.MonkeyPatch(), SimpleNamespace(endpoint=hub), Path(folder).parent)
    trainer_class, arguments = task(folder, dict(options))
    trainer_class.reaper = reaper = Reaper(doom)
    reward = reward or arguments["reward_funcs"]

    @functools.wraps(reward)
    def graded(**kwargs):
        with reaper.within("grading"):
            return reward(**kwargs)

    callbacks = [*arguments.get("callbacks", []), OptimizerPhase(reaper)]
    trainer = trainer_class(
        **arguments
        | {"reward_funcs": reward if inspect.iscoroutinefunction(reward) else graded, "callbacks": callbacks}
    )
    if grace_seconds is not None:
        trainer.reward_calls.watch.grace_seconds = grace_seconds
    if resume is None:
        resume = any(Path(folder).glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resume)
    outcome = {
        "weights": hash_of(trainer.model.state_dict().values()),
        "counts": dict(reaper.counts),
        "log": [entry for entry in trainer.state.log_history if "train_runtime" not in entry],
        "first_step": trainer._initial_global_step,
    }
    if rank == 0:
        # Copies, since embeddings may be tied.
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        save_file(weights, Path(folder, "weights.safetensors"))
    Path(folder, f"outcome{rank}.json").write_text(json.dumps(outcome))
