"""
What `DAPOTrainer` costs beside `GRPOTrainer` for the same work: time of a rollout step and peak memory, in pairs.

    python benchmarks/overhead.py --pairs 60     # about 10 minutes on one core; writes benchmarks/overhead.json
    python benchmarks/overhead.py --short --output FILE     # fewer pairs, 2 minutes

Both trainers run in one process and take turns, a generation batch each (32 groups of 8 completions, 4 optimizer steps), so
that a pair is two turns a second apart and the drift of a busy machine cancels. Seconds are CPU seconds of the process.

- `off`: dynamic sampling, length penalty and exact normalization off. Each trainer gets its own random state back with its
  turn, so both do the same work: afterwards their parameters are compared bit for bit.
- `on`: everything on. TRL's generation and grading are timed and taken out on both sides. A script writes completions of
  one length in place of `generate`, so that both train equally much: what is left is TRL's scoring and loss, and on our side
  stream, planner, filter, assembly, normalization and diagnostics besides. The share of the diagnostics is timed alone.
- peak memory: `off` in processes of their own, 5 pairs.

The first turn of each is not counted.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any


os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import torch  # noqa: E402
from provenance import provenance  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from trl_dapo import DAPOConfig, DAPOTrainer  # noqa: E402
from trl_dapo.loss.diagnostics import LossDiagnostics  # noqa: E402
from trl_dapo.recipes.word_problems import make_problems, prepare_tiny_model  # noqa: E402
from trl_dapo.rewards import accuracy_reward  # noqa: E402
from trl_dapo.trl_seams import TrainerSeams  # noqa: E402


RESULTS = Path(__file__).with_name("overhead.json")
UPDATES = 4  # optimizer steps of a turn
NUM_MEMORY_PAIRS = 5
SHORT_PAIRS, SHORT_MEMORY_PAIRS = 10, 1
OFF = {"dynamic_sampling": False, "soft_punish_cache": 0, "loss_normalization": "generation_batch"}


class Stopwatch:
    """CPU seconds spent in wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, owner: Any, name: str) -> None:
        """Times a method from now on."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        setattr(owner, name, timed)


class Turns(TrainerCallback):
    """Lets one of two trainings run at a time, a generation batch each, and times the turns."""

    def __init__(self, number: int, gates: list[threading.Semaphore], stopwatches: list[Stopwatch]):
        self.number, self.gates, self.stopwatches = number, gates, stopwatches
        self.turns: list[list[float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Waits for the first turn."""
        self._wait()
        torch.manual_seed(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the turn after a generation batch."""
        if state.global_step % UPDATES == 0:
            spent = [time.process_time(), *(watch.seconds for watch in self.stopwatches)]
            self.turns.append([after - before for after, before in zip(spent, self.before, strict=True)])
            random_state = torch.get_rng_state()
            self.gates[1 - self.number].release()
            if state.global_step < state.max_steps:
                self._wait()
                torch.set_rng_state(random_state)

    def _wait(self) -> None:
        self.gates[self.number].acquire()
        self.before = [time.process_time(), *(watch.seconds for watch in self.stopwatches)]


def make_trainer(trainer_class: Any, mode: str, model: str, folder: str, num_turns: int, callbacks: list[Any]) -> Any:
    """Returns a trainer of the quickstart's task."""
    is_ours = trainer_class is DAPOTrainer
    options: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "num_generations": 8,
        "per_device_train_batch_size": 64,
        "steps_per_generation": UPDATES,
        "max_steps": UPDATES * num_turns,
        "max_completion_length": 80,
        "epsilon_high": 0.28,
        "learning_rate": 1e-5,
        "gradient_checkpointing": False,
        "logging_steps": UPDATES,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    options |= OFF if is_ours and mode == "off" else {}
    trainer = trainer_class(
        model=model,
        reward_funcs=accuracy_reward,
        args=(DAPOConfig if is_ours else GRPOConfig)(**options),
        train_dataset=make_problems(4000, seed=0),
        callbacks=callbacks,
    )
    if mode == "on":
        write_completions_by_script(trainer)
    return trainer


def write_completions_by_script(trainer: Any) -> None:
    """
    Replaces generation: of each 8 completions, 40 tokens long, the first four end in a box and the others do not.

    Who boxed anything is right, so every group is informative.
    """
    tokenizer = trainer.processing_class
    ids = tokenizer.convert_tokens_to_ids
    boxed, bare = ids(["\\boxed{", "7", "}"]), ids(["7", "7", "7"])
    completions = [ids(["1", "+"]) * 18 + end + [tokenizer.eos_token_id] for end in (boxed, bare)]
    num_written = 0

    def generate(prompt_ids: list[Any], *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        nonlocal num_written
        first, num_written = num_written, num_written + len(prompt_ids)
        return [completions[number % 8 // 4] for number in range(first, num_written)], None

    def grade(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float("boxed" in completion[0]["content"]) for completion in completions]

    trainer._generate_single_turn = generate
    trainer.reward_funcs[0] = grade


def time_turns(mode: str, model: str, folder: str, num_pairs: int) -> tuple[list[list[float]], list[list[float]]]:
    """Returns the counted turns of GRPO and of DAPO: seconds, those in generation and grading, those in diagnostics."""
    sampling, diagnostics = Stopwatch(), Stopwatch()
    for name in ("_generate", "_calculate_rewards"):
        # Ours calls `_generate` for what it samples, not for what it replays.
        sampling.wrap(GRPOTrainer, name)
    # Ours computes rewards with a copy of TRL's function.
    sampling.wrap(TrainerSeams, "compute_rewards")
    for name in ("observe_tokens", "observe_rows", "flush"):
        diagnostics.wrap(LossDiagnostics, name)
    gates = [threading.Semaphore(1), threading.Semaphore(0)]
    turns = [Turns(number, gates, [sampling, diagnostics]) for number in range(2)]
    trainers = [
        make_trainer(trainer_class, mode, model, folder, num_pairs + 1, [callback])
        for trainer_class, callback in zip((GRPOTrainer, DAPOTrainer), turns, strict=True)
    ]
    threads = []
    for trainer in trainers:
        threads.append(threading.Thread(target=trainer.train))
        threads[-1].start()
    for thread in threads:
        thread.join()
    if mode == "off":
        pairs = zip(*(trainer.model.parameters() for trainer in trainers), strict=True)
        assert all(torch.equal(theirs, ours) for theirs, ours in pairs), "the two did not do the same work"
    return turns[0].turns[1:], turns[1].turns[1:]


def peak_memory(trainer_name: str, model: str) -> int:
    """Returns the peak memory of a short training in a process of its own, in KiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", trainer_name, model, folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"CI": "1"})
    return int(done.stdout.split("PEAK ")[1].split()[0])


def measure(num_pairs: int, num_memory_pairs: int) -> dict[str, list[float]]:
    """Returns the ratios of all pairs, and the share of the diagnostics in our turns."""
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder, "tiny-model"))
        prepare_tiny_model(model, seed=0)
        # First the one that is timed as a whole: stopwatches stay where they are.
        theirs, ours = time_turns("off", model, folder, num_pairs)
        figures = {"off: CPU seconds": [our[0] / their[0] for our, their in zip(ours, theirs, strict=True)]}
        theirs, ours = time_turns("on", model, folder, num_pairs)
        figures["on: CPU seconds without sampling"] = [
            (our[0] - our[1]) / (their[0] - their[1]) for our, their in zip(ours, theirs, strict=True)
        ]
        figures["off: peak memory"] = [
            peak_memory("DAPO", model) / peak_memory("GRPO", model) for _ in range(num_memory_pairs)
        ]
        figures["diagnostics / our turn without sampling"] = [our[2] / (our[0] - our[1]) for our in ours]
    return figures


def main() -> None:
    """Runs the pairs and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument(
        "--short", action="store_true", help=f"{SHORT_PAIRS} pairs, and {SHORT_MEMORY_PAIRS} for memory"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=3, metavar=("TRAINER", "MODEL", "FOLDER"))
    args = parser.parse_args()
    if args.worker:
        name, model, folder = args.worker
        trainer_class = {"DAPO": DAPOTrainer, "GRPO": GRPOTrainer}[name]
        make_trainer(trainer_class, "off", model, folder, 2, []).train()
        # Not `getrusage`: its peak is inherited from the process that started this one.
        status = Path("/proc/self/status").read_text()
        print(f"PEAK {status.split('VmHWM:')[1].split()[0]} KiB")
        return
    num_memory_pairs = NUM_MEMORY_PAIRS
    if args.short:
        args.pairs, num_memory_pairs = SHORT_PAIRS, SHORT_MEMORY_PAIRS
    figures = measure(args.pairs, num_memory_pairs)
    print("| DAPOTrainer / GRPOTrainer | min | median | max |\n|---|---|---|---|")
    for name, values in figures.items():
        print(f"| {name} | {min(values):.4f} | {statistics.median(values):.4f} | {max(values):.4f} |")
    args.output.write_text(json.dumps(provenance() | {"pairs": args.pairs, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
