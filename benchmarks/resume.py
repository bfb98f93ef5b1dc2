"""
Runs that are killed and resumed, against those that never were: the quickstart's recipe by `DAPOTrainer` and by TRL.

    python benchmarks/resume.py                # half an hour on one core; resumes where it stopped
    python benchmarks/resume.py --markdown     # prints the table of the JSON

A trial kills a training with SIGKILL, once or twice, at a seeded point of generation, grading, optimizer step or checkpoint
writing (points are counted calls, not times: `tests/faults/doomed_training.py`), and starts it again until it ends. The
recipe is the quickstart's with its warmed-up model, problems and reward, shortened to a trial of seconds: 16 optimizer
steps on 4 generation batches of 8 groups of 8, a checkpoint every 3 steps, so that most fall into the midst of a generation
batch. Trials with an even seed train on 4,000 problems, those with an odd one on 16, of which an epoch has two generation
batches: many of them resume after the first epoch.

- `DAPOTrainer`: with `surplus="carry"` and `selective_rollout`; `two ranks`: on two processes (gloo), one of which dies.
- `GRPOTrainer`: TRL's trainer. `save_steps=4`: the same with a checkpoint at the end of each generation batch alone, the
  best that its options allow.

A run is started again with `resume_from_checkpoint=True`, or from the beginning where there is no checkpoint. Where it ends
with an error, since the newest checkpoint was cut off, that checkpoint is removed, as a user would do by hand, and counted.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


# Before torch is imported: two threads on busy cores are slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tests/faults", "tests")]

import torch  # noqa: E402
from doomed_training import PHASES  # noqa: E402
from processes import draw_death, outcome, run, said, trained  # noqa: E402
from provenance import provenance  # noqa: E402
from recipe_training import CARRY, recipe_training, warmed_up_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


RESULTS = Path(__file__).with_name("resume.json")
# By the parity of the seed.
NUM_PROBLEMS = (4000, 16)
# Optimizer steps of an epoch of the few problems: two generation batches.
FEW_PROBLEMS_EPOCH = 8
NUM_TRIALS = 30
SECONDS = 3600


@dataclass(frozen=True)
class Arm:
    """What its configuration changes, and on how many ranks it runs."""

    options: dict[str, Any] = field(default_factory=dict)
    num_ranks: int = 1
    num_trials: int = NUM_TRIALS


ARMS = {
    "DAPOTrainer": Arm({"trainer": "DAPOTrainer"} | CARRY),
    "GRPOTrainer": Arm({"trainer": "GRPOTrainer"}),
    "GRPOTrainer, save_steps=4": Arm({"trainer": "GRPOTrainer", "save_steps": 4}),
    "DAPOTrainer, two ranks": Arm({"trainer": "DAPOTrainer", "per_device_train_batch_size": 8} | CARRY, 2, 10),
}


def start(arm: Arm, folder: Path, options: dict[str, Any], **doom: Any) -> list[int]:
    """Runs one life of a training, and returns the exit codes of its ranks."""
    return run(folder, options, arm.num_ranks, max_seconds=SECONDS, task=recipe_training, **doom)


def trial(arm: Arm, folder: Path, options: dict[str, Any], seed: int, straight: Path) -> dict[str, Any]:
    """Kills a run once or twice, lets it end, and compares it with the one that was never killed."""
    chance = random.Random(seed)
    counts = [outcome(straight, rank)["counts"] for rank in range(arm.num_ranks)]
    deaths, removed = [], 0
    for _ in range(chance.choice([1, 1, 2])):
        doom, rank = draw_death(chance, counts, PHASES)
        codes = start(arm, folder, options, doom=doom, doomed_rank=rank)
        if codes[rank] == -9:
            deaths.append([*doom, rank, max(last_life(folder), default=0)])
        elif codes != [0] * arm.num_ranks:
            removed += remove_newest(folder)
    while start(arm, folder, options, doom=()) != [0] * arm.num_ranks:
        removed += remove_newest(folder)
    found = compare(arm, folder, straight, options["model"])
    return {"deaths": deaths, "resumed_from": outcome(folder)["first_step"], "removed": removed} | found


def last_life(folder: Path) -> list[int]:
    """Returns the optimizer steps that the last life of a run began."""
    path = folder / "trained0.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record["step"] for record in records if record["life"] == records[-1]["life"]]


def remove_newest(folder: Path) -> int:
    """Removes the newest checkpoint of a run that does not start from it, and returns how many were removed: 1."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    if not found:
        raise RuntimeError(f"The training ended with an error, and not because of a checkpoint:\n{said(folder)}")
    shutil.rmtree(found[-1])
    return 1


def compare(arm: Arm, folder: Path, straight: Path, start_model: str) -> dict[str, Any]:
    """
    Compares what two runs have trained, and where they ended.

    Returns:
        `dict`: `steps`, how many optimizer steps trained other rows (prompt and completion); `never` and `again`, how
        many prompts of the straight run the other never trained, and trained in more rows; `weights`, the largest
        difference of a weight relative to the largest weight; `moved`, the distance between the two ends relative to
        the distance that the straight run went; `log`, whether the log lines are the same.
    """
    mine, its = [], []
    for where, rows in ((folder, mine), (straight, its)):
        by_rank = [trained(where, rank) for rank in range(arm.num_ranks)]
        rows += [
            sorted(row for ranks in by_rank for row in ranks.get(step, [])) for step in range(max(by_rank[0]) + 1)
        ]
    my_prompts, its_prompts = (Counter(prompt for rows in run for prompt, _ in rows) for run in (mine, its))
    ends = [load_file(path / "weights.safetensors") for path in (folder, straight)]
    begin = load_file(Path(start_model, "model.safetensors"))
    mine_end, its_end, start_point = (
        torch.cat([weights[name].flatten().double() for name in sorted(ends[1])]) for weights in (*ends, begin)
    )
    return {
        "steps": sum(a != b for a, b in itertools.zip_longest(mine, its)),
        "num_prompts": len(its_prompts),
        "never": sum(prompt not in my_prompts for prompt in its_prompts),
        "again": sum(my_prompts[prompt] > count for prompt, count in its_prompts.items()),
        "weights": ((mine_end - its_end).abs().max() / its_end.abs().max()).item(),
        "moved": ((mine_end - its_end).norm() / (its_end - start_point).norm()).item(),
        "log": outcome(folder)["log"] == outcome(straight)["log"],
    }


def is_same(found: dict[str, Any]) -> bool:
    """Whether the resumed run is the one that was never killed: the same rows in each step, and the same weights."""
    return found["steps"] == 0 and found["weights"] == 0.0


def is_late(seed: str, found: dict[str, Any]) -> bool:
    """Whether a run was resumed after its first epoch."""
    return int(seed) % 2 == 1 and found["resumed_from"] >= FEW_PROBLEMS_EPOCH


def markdown(record: dict[str, Any]) -> str:
    """Returns the table of the arms that have trials."""

    def share(found: Sequence[dict[str, Any]]) -> str:
        return f"{sum(map(is_same, found))} of {len(found)}" if found else "-"

    def mean_and_most(values: Sequence[float]) -> str:
        return f"{statistics.mean(values):.1f}, {max(values)}"

    lines = [
        "| trainer | trials, of them begun anew | resumed as the run that was never killed | after the first epoch | "
        "optimizer steps on other rows, of 16 | prompts never trained, of 32 | prompts trained again | "
        "distance of the ends / way | checkpoints removed by hand |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ARMS:
        trials = record["results"].get(name, {})
        if not trials:
            continue
        found = list(trials.values())
        # Killed before there was a checkpoint: the second time is the first.
        resumed = [value for value in found if value["resumed_from"] > 0]
        late = [value for seed, value in trials.items() if is_late(seed, value)]
        # Where there are few problems, all are trained again and again.
        many = [value for seed, value in trials.items() if int(seed) % 2 == 0]
        moved = [value["moved"] for value in found]
        lines.append(
            f"| {name} | {len(found)}, {len(found) - len(resumed)} | {share(resumed)} | {share(late)} | {mean_and_most([value['steps'] for value in found])} | "
            f"{mean_and_most([value['never'] for value in many])} | {mean_and_most([value['again'] for value in many])} | "
            f"{statistics.mean(moved):.2f}, {max(moved):.2f} | {sum(value['removed'] for value in found)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the trials that the JSON lacks, seed by seed, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(NUM_TRIALS)))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--folder", help="where runs that are not killed are kept for the next call; unset: nowhere")
    parser.add_argument("--model", help="a warmed-up model of seed 0; unset: it is made, which takes a minute")
    parser.add_argument("--markdown", action="store_true", help="print the table of the JSON and run nothing")
    args = parser.parse_args()
    record = json.loads(args.output.read_text()) if args.output.exists() else {"results": {}, "repeated": {}}
    if args.markdown:
        print(markdown(record))
        return
    os.environ["CI"] = "1"
    record |= provenance()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or temporary
        model = args.model or warmed_up_model(Path(folder, "tiny-model"))
        for seed in args.seeds:
            for name in args.arms:
                arm = ARMS[name]
                if str(seed) in record["results"].get(name, {}) or seed >= arm.num_trials:
                    continue
                num_problems = NUM_PROBLEMS[seed % 2]
                options = arm.options | {"model": model, "num_problems": num_problems}
                straight, again = (Path(folder, f"{name}-{num_problems}-{what}") for what in ("straight", "again"))
                killed = Path(temporary, f"{name}-{seed}")
                if not Path(again, "outcome0.json").exists():
                    for path in (straight, again):
                        shutil.rmtree(path, ignore_errors=True)
                        assert start(arm, path, options) == [0] * arm.num_ranks, said(path)
                    # That a run is the same when it is run twice is what makes the comparison one of resuming.
                    record["repeated"][f"{name}, {num_problems} problems"] = compare(arm, again, straight, model)
                found = trial(arm, killed, options, seed, straight)
                shutil.rmtree(killed)
                record["results"].setdefault(name, {})[str(seed)] = found
                args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(markdown(record))


if __name__ == "__main__":
    main()
