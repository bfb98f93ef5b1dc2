"""The short run of `trl-dapo check`, in processes of its own: one that hangs is ended, one that dies takes no table with it."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trl_dapo.atomic_write import atomic_write
from trl_dapo.command_line.launcher import TRIAL_MARK
from trl_dapo.trainer import DAPOTrainer


@dataclass(frozen=True)
class Trial:
    """
    What the processes of a short run are told.

    Attributes:
        folder (`str`):
            A temporary folder: the run, and what each process noted.
        phase (`str`):
            `run`, or `restart`: from its checkpoint, for one step.
        num_steps (`int`):
            Optimizer steps. It is saved before the last one.
        options (`list[str]`):
            Options of the command line that come after those of the user.
    """

    folder: str
    phase: str
    num_steps: int
    options: list[str]

    @classmethod
    def of_environment(cls) -> "Trial | None":
        """Returns what this process was told; `None`: it is none of a short run."""
        text = os.environ.get(TRIAL_MARK)
        return None if text is None else cls(**json.loads(text))

    @property
    def output_dir(self) -> Path:
        """The folder of the run, in place of the user's."""
        return Path(self.folder, "out")

    @property
    def checkpoint(self) -> Path:
        """What is saved before the last step."""
        return self.output_dir / f"checkpoint-{self.num_steps - 1}"


@dataclass
class Notes:
    """
    What a process noted of its part of a short run; written after each event, so that a process that dies has left it.

    Attributes:
        rank (`int`), world (`int`):
            Its number, and how many there are.
        stage (`str`):
            What it is doing, or `done`.
        loaded (`float`, *optional*):
            Seconds until the trainer was there.
        seconds (`list[float]`):
            Of each optimizer step, with the sampling of its batch.
        logs (`list[dict]`):
            The log line of each optimizer step.
        checksums (`dict[str, str]`):
            Of the weights at the begin, and after the last step.
        peak_bytes (`int`):
            Of the GPU, or of the process.
        num_rows (`int`):
            Prompts to train on.
        remark (`str`, *optional*):
            What is to be said of prompts that are too long.
        error (`dict[str, str]`):
            Class and text of what ended it.
    """

    rank: int = 0
    world: int = 1
    stage: str = "loading"
    loaded: float | None = None
    seconds: list[float] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    num_rows: int = 0
    remark: str | None = None
    error: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path, phase: str) -> "list[Notes]":
        """Returns the notes of the processes of this machine, in the order of their numbers."""
        paths = Path(folder).glob(f"{phase}-rank*.json")
        return sorted((cls(**json.loads(path.read_text())) for path in paths), key=lambda notes: notes.rank)

    def write(self, trial: Trial) -> None:
        """Writes what was noted so far."""
        text = json.dumps(asdict(self), default=str)
        atomic_write(Path(trial.folder, f"{trial.phase}-rank{self.rank}.json"), text)


class _Watch(TrainerCallback):
    """Notes the steps of a run."""

    def __init__(self, trial: Trial, notes: Notes):
        self.trial = trial
        self.notes = notes
        self.start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.notes.checksums:
            self.notes.checksums["begin"] = checksum(model)
        self.notes.stage = f"step {state.global_step + 1}"
        self.notes.write(self.trial)
        self.start = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.notes.seconds.append(_now() - self.start)
        self.notes.checksums["end"] = checksum(model)
        self.notes.peak_bytes = peak_bytes()
        self.notes.write(self.trial)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.notes.logs.append({name: value for name, value in logs.items() if isinstance(value, int | float)})
        self.notes.write(self.trial)


def run_trial(trial: Trial, build: Callable[[], DAPOTrainer]) -> None:
    """
    Trains a few steps and notes what happens, on each process.

    Args:
        trial (`Trial`):
            What the process was told.
        build (`Callable[[], DAPOTrainer]`):
            Makes the trainer of the recipe, whose folder is that of the trial.

    Raises:
        `Exception`: what ended the run, after it was noted.
    """
    notes = Notes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    notes.write(trial)
    start = time.perf_counter()
    try:
        trainer = build()
        notes.loaded, notes.num_rows = time.perf_counter() - start, _num_rows(trainer.train_dataset)
        notes.remark = trainer.context_limit.describe("train_dataset", trainer.train_dataset)
        trainer.add_callback(_Watch(trial, notes))
        notes.stage = "restoring" if trial.phase == "restart" else "first sampling"
        notes.write(trial)
        trainer.train(resume_from_checkpoint=str(trial.checkpoint) if trial.phase == "restart" else None)
        notes.stage = "done"
    except BaseException as error:
        notes.error = {
            "kind": type(error).__name__,
            "message": "\n".join([str(error), *getattr(error, "__notes__", ())]),
        }
        raise
    finally:
        notes.write(trial)


def checksum(model: Any) -> str:
    """
    Returns a checksum of the bits of the weights that this process holds, of each parameter its own sum.

    Args:
        model (`torch.nn.Module`):
            The model; its parameters may be shards (FSDP, ZeRO-3).
    """
    sums = []
    for name, parameter in model.named_parameters():
        local = getattr(parameter, "ds_tensor", parameter)
        local = local.to_local() if hasattr(local, "to_local") else local
        bits = local.detach().reshape(-1).contiguous().view(torch.uint8)
        words = bits[: bits.numel() // 4 * 4].view(torch.int32)
        sums.append(f"{name} {words.sum(dtype=torch.int64).item()} {bits[len(words) * 4 :].sum().item()}")
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def peak_bytes() -> int:
    """Returns the peak memory of the GPU, with what others hold of it, or of this process. 0: not known."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        return max(torch.cuda.max_memory_reserved(), total - free)
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def restart_difference(run: Mapping[str, Any], restart: Mapping[str, Any]) -> list[str]:
    """
    Returns the metrics in which the log line of a step differs after a restart, without those of the clock.

    Args:
        run (`Mapping`), restart (`Mapping`):
            The log line of the step, in the run and after the restart.

    >>> restart_difference({"loss": 0.5, "step_time": 1.0}, {"loss": 0.25, "step_time": 2.0})
    ['loss']
    """
    names = [name for name in run if "seconds" not in name and "time" not in name and not name.startswith("dapo/vllm")]
    return [name for name in names if str(run[name]) != str(restart.get(name))]


def _num_rows(dataset: Any) -> int:
    return len(dataset) if hasattr(dataset, "__len__") else 0


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
