"""
Memory of a long run: the trainer and each grading worker, at every rollout step of the quickstart's recipe.

    python benchmarks/memory.py                  # an hour on one core; resumes where it stopped; writes memory.json
    python benchmarks/memory.py --markdown       # prints the table of the JSON

The recipe as it is, but for 300 optimizer steps (75 rollout steps of 64 groups of 8). Every arm has a process of its own:

- `DAPOTrainer`: the recipe. Its integers are compared in the trainer's process; workers see malformed answers only.
- `graded by workers`: the same problems, with answers and golds written as surds (`7\\sqrt{2}` for 7, `\\sqrt{98}` as its
  gold), which need math-verify and go to the workers.
- `carry, selective`: `surplus="carry"`, `selective_rollout`, completions logged and a record of all groups.
- `GRPOTrainer`: TRL's trainer on the same recipe.

Noted when a rollout step begins:

- resident memory (`/proc/PID/smaps_rollup`), of the trainer when glibc has given back what is free (`malloc_trim`). As it is,
  it goes up and down by a third from step to step, with the shapes of the last batch and the holes that they left;
- what the trainer holds, without holes: bytes that malloc has given out (`mallinfo2`: libtorch, libarrow, and what Python
  takes that is larger than 512 bytes) and Python's smaller blocks. A leak adds to these;
- the pages of a worker that are its own or were allocated before it was forked, no pages of files.

On Linux with glibc only.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


# Before torch is imported: two threads on busy cores are slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from memory_tables import markdown  # noqa: E402
from provenance import provenance  # noqa: E402
from trl import GRPOTrainer, ModelConfig, TrlParser  # noqa: E402

from trl_dapo import DAPOConfig, DAPOTrainer  # noqa: E402
from trl_dapo.command_line.training_run import TrainingScriptArguments  # noqa: E402
from trl_dapo.grading.pool import shared_pool  # noqa: E402
from trl_dapo.recipes.word_problems import make_problems, prepare_tiny_model  # noqa: E402
from trl_dapo.rewards import accuracy_reward  # noqa: E402


RESULTS = Path(__file__).with_name("memory.json")
RECIPE = ROOT / "examples" / "recipes" / "quickstart.yaml"
SERIES = "memory.jsonl"
NUM_STEPS = 300
KINDS = {"rss": ("Rss",), "pss": ("Pss",), "uss": ("Private_Clean", "Private_Dirty"), "anon": ("Pss_Anon", "SwapPss")}


def memory_of(pid: int | str) -> dict[str, int]:
    """
    Returns the memory of a process in KiB.

    `rss` is resident, `pss` resident with shared pages divided among those who share them, `uss` resident and shared with
    nobody, `anon` what the process has allocated: no pages of files, which come and go with the other programs of the
    machine.
    """
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    sizes = {name.rstrip(":"): int(value) for name, value, _ in lines}
    return {kind: sum(sizes[name] for name in names) for kind, names in KINDS.items()}


class _Mallinfo2(ctypes.Structure):
    _NAMES = (
        "arena",
        "ordblks",
        "smblks",
        "hblks",
        "hblkhd",
        "usmblks",
        "fsmblks",
        "uordblks",
        "fordblks",
        "keepcost",
    )
    _fields_ = [(name, ctypes.c_size_t) for name in _NAMES]


def allocated() -> dict[str, int]:
    """Returns what this process holds: `malloc`, what it has given out in KiB, and `python`, Python's blocks."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _Mallinfo2
    found = libc.mallinfo2()
    return {"malloc": (found.uordblks + found.hblkhd) // 1024, "python": sys.getallocatedblocks()}


class Weighed:
    """Notes the memory of this process and of the grading workers when a rollout step begins, and what it has sampled."""

    num_completions = largest_round = 0

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._generate_single_turn(*args, **kwargs)
        if self.model.training:
            self.num_completions += len(output[0])
            self.largest_round = max(self.largest_round, len(output[0]))
        return output

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        if self.model.training:
            workers = {str(pid): memory_of(pid) for pid in sorted(shared_pool().pids)}
            untrimmed = memory_of("self")
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            held = {"trainer": memory_of("self") | allocated(), "untrimmed": untrimmed, "workers": workers}
            held |= {"completions": self.num_completions, "largest_round": self.largest_round}
            # At once, so that a run that is stopped leaves what it has found.
            with Path(self.args.output_dir, SERIES).open("a") as file:
                file.write(json.dumps({"step": self.state.global_step} | held) + "\n")
        return super()._generate_and_score_completions(inputs)


class WeighedGRPO(Weighed, GRPOTrainer):
    """TRL's trainer, weighed."""


class WeighedDAPO(Weighed, DAPOTrainer):
    """Ours, weighed."""


def surd_reward(completions: list[Any], solution: list[str], **kwargs: Any) -> list[float | None]:
    """Grades as `accuracy_reward` does, with each number n written as a root that only a worker can compare."""
    texts = []
    for completion in completions:
        boxed = re.findall(r"\\boxed\{(\d+)\}", completion[-1]["content"])
        texts.append(rf"\boxed{{{boxed[-1]}\sqrt{{2}}}}" if boxed else "")
    golds = [rf"$\sqrt{{{2 * int(gold) ** 2}}}$" for gold in solution]
    return accuracy_reward(completions=texts, solution=golds, **kwargs)


@dataclass(frozen=True)
class Arm:
    """A trainer, its reward, and what its configuration changes."""

    trainer: Callable[..., Any]
    reward: Callable[..., Any] = accuracy_reward
    overrides: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "DAPOTrainer": Arm(WeighedDAPO),
    "graded by workers": Arm(WeighedDAPO, surd_reward),
    "carry, selective": Arm(
        WeighedDAPO, overrides={"surplus": "carry", "selective_rollout": True, "log_completions": True}
    ),
    "GRPOTrainer": Arm(WeighedGRPO, overrides={"epsilon_high": None}),
}


def train(arm: Arm, num_steps: int, model: str, folder: str) -> None:
    """Trains in this process, and writes its memory at each rollout step into the folder."""
    command = ["--config", str(RECIPE), "--output_dir", folder, "--disable_tqdm", "true"]
    command += ["--max_steps", str(num_steps)]
    parser = TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig))
    _, args, _ = parser.parse_args_and_config(command)
    for name, value in arm.overrides.items():
        setattr(args, name, value)
    trainer = arm.trainer(
        model=model,
        args=args,
        reward_funcs=arm.reward,
        train_dataset=make_problems(4000, seed=0),
        eval_dataset=make_problems(256, seed=1),
    )
    trainer.train()


def run(name: str, num_steps: int, model: str) -> list[dict[str, Any]]:
    """Trains an arm in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", name, model, folder, "--steps", str(num_steps)]
        with Path(folder, "output.txt").open("w") as output:
            subprocess.run(command, check=True, stdout=output, stderr=output, env=os.environ | {"CI": "1"})
        return [json.loads(line) for line in Path(folder, SERIES).read_text().splitlines()]


def main() -> None:
    """Runs the arms that the JSON lacks, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--model", help="a warmed-up model of seed 0; unset: it is made, which takes a minute")
    parser.add_argument("--markdown", action="store_true", help="print the table of the JSON and run nothing")
    parser.add_argument("--worker", nargs=3, metavar=("ARM", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, model, folder = args.worker
        train(ARMS[name], args.steps, model, folder)
        return
    record = json.loads(args.output.read_text()) if args.output.exists() else {"results": {}}
    if args.markdown:
        print(markdown(record))
        return
    record |= provenance(num_cores=1) | {"num_steps": args.steps}
    with tempfile.TemporaryDirectory() as folder:
        missing = [name for name in args.arms if name not in record["results"]]
        model = args.model or str(Path(folder, "tiny-model"))
        if missing and not args.model:
            prepare_tiny_model(model, seed=0)
        for name in missing:
            record["results"][name] = run(name, args.steps, model)
            args.output.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(markdown(record))


if __name__ == "__main__":
    main()
