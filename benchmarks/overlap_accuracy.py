"""
What it costs to train each batch one batch late, as `overlap=True` does, with the loss that knows it and with one that does not.

    python benchmarks/overlap_accuracy.py               # some seven minutes a seed on one core; goes on where it stopped
    python benchmarks/overlap_accuracy.py --seeds 5 6   # these seeds alone
    python benchmarks/overlap_accuracy.py --task ablation  # the harder word problems of `ablation.py`
    python benchmarks/overlap_accuracy.py --short --output FILE  # a seed of two arms, 8 steps
    python benchmarks/overlap_accuracy.py --markdown    # prints the tables of the JSON

The task of the quickstart, or that of `ablation.py`: 64 optimizer steps of 32 completions, with 1, 4 and 16 of them on each
generation batch. No server is
needed: one batch late, `model.generate` samples batch k+1 before batch k trains, and the trainer keeps it until then. So the
first two batches are sampled with the same weights, and each later one with those before the batch in front of it, as with
`overlap=True`. The log-probabilities of the policy that samples are the trained model's, in float32: there is no engine that
rounds in another way.

Arms:

- "on time": each batch is sampled with the weights that begin to train on it.
- "late, decoupled": ratio and clip against the policy that begins to train, times the probability of each token under that
  policy over that when it was sampled, at most 2. As `overlap=True` with `vllm_importance_sampling_correction=True`.
- "late, as old": ratio and clip against the policy that sampled, no weight. As with `vllm_importance_sampling_correction=False`,
  and as carried groups (`surplus="carry"`).
- "on time, half": on time, with half of the optimizer steps: as far as a run that waits comes while one that overlaps takes all
  steps, where sampling takes as long as training and overlap hides all of it.

All arms of a seed start from the same warmed-up model and are evaluated on the same problems: differences are paired.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


# Before torch is imported: two threads on busy cores are slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent))

import ablation
import torch
from filelock import FileLock
from measured import ACCURACY, MeasuredDAPO
from provenance import provenance
from trl.trainer.utils import pad

from trl_dapo import DAPOConfig
from trl_dapo.atomic_write import atomic_write
from trl_dapo.recipes.word_problems import make_problems, prepare_tiny_model
from trl_dapo.rewards import accuracy_reward


RESULTS = Path(__file__).with_name("overlap_accuracy.json")
NUM_SEEDS = 5
STEPS_PER_BATCH = (1, 4, 16)
ARMS = ("on time", "late, decoupled", "late, as old", "on time, half")
NUM_PROBLEMS, NUM_HELD_OUT = 4000, 384
MAX_WEIGHT = 2.0
COMMON = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    "num_generations": 8, "per_device_train_batch_size": 32, "max_steps": 64,
    "num_groups_to_log": 0, "adam_beta2": 0.99,
    "eval_strategy": "steps", "eval_steps": 64, "per_device_eval_batch_size": 512,
    "num_generations_eval": 4, "logging_steps": 4, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """
    What is learned.

    Attributes:
        settings: fields of `DAPOConfig`.
        arms: those that are run.
        warmed_up, problems: arguments of `prepare_tiny_model` and of `make_problems`.
        prefix: of the names in the JSON.
    """

    settings: dict[str, Any]
    arms: tuple[str, ...] = ARMS
    warmed_up: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""


TASKS = {
    "quickstart": Task(
        {"max_completion_length": 80, "soft_punish_cache": 12, "learning_rate": 5e-4, "lr_scheduler_type": "linear"}
    ),
    "ablation": Task(
        {name: ablation.COMMON[name] for name in ("max_completion_length", "learning_rate", "lr_scheduler_type")}
        | ablation.with_parts(*ablation.PARTS),
        arms=ARMS[:3],
        warmed_up={"student": ablation.STUDENT},
        problems={"families": ablation.FAMILIES},
        prefix="ablation: ",
    ),
}


class LateTrainer(MeasuredDAPO):
    """Trains each batch on time, or one batch late."""

    def __init__(self, *args: Any, arm: str, **kwargs: Any):
        self.arm = arm
        self._waiting: Any = None
        super().__init__(*args, **kwargs)

    def _sample(self, sampler: Any) -> Any:
        batch = super()._collect_batch(sampler)
        # TRL would log these with the batch that trains now.
        self._pending_extra_logs.clear()
        return batch, self.policy_scorer.score(batch.rollouts)

    def _collect_batch(self, sampler: Any) -> Any:
        if self.arm.startswith("on time"):
            return super()._collect_batch(sampler)
        batch, self._logps = self._waiting or self._sample(sampler)
        is_last = self.state.global_step + self.shape.num_updates >= self.state.max_steps
        self._waiting = None if is_last else self._sample(sampler)
        return batch

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.arm.startswith("on time") or not self.model.training:
            return output
        sampled = pad(self._logps, padding_value=0.0, padding_side="right")
        if self.arm == "late, as old":
            output["old_per_token_logps"] = sampled
        else:
            if "old_per_token_logps" not in output:
                output["old_per_token_logps"] = self.seams.score(output)
            weights = torch.exp(output["old_per_token_logps"] - sampled)
            output["importance_sampling_ratio"] = weights.clamp(max=MAX_WEIGHT)
        return output

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        # TRL multiplies by the weights where vLLM samples.
        self.use_vllm = self.arm == "late, decoupled" and self.model.training
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self.use_vllm = False


def run(
    task: Task, arm: str, steps_per_batch: int, seed: int, model: str, folder: str, is_short: bool
) -> dict[str, Any]:
    """Trains once, and returns its curve."""
    settings = COMMON | task.settings | {"output_dir": folder, "seed": seed, "steps_per_generation": steps_per_batch}
    if is_short:
        settings |= {"max_steps": 8, "eval_steps": 8}
    elif arm == "on time, half":
        settings |= {"max_steps": 32, "eval_steps": 32}
    trainer = LateTrainer(
        model=model,
        args=DAPOConfig(**settings),
        reward_funcs=accuracy_reward,
        train_dataset=make_problems(NUM_PROBLEMS, seed=seed, **task.problems),
        eval_dataset=make_problems(NUM_HELD_OUT, seed=seed + 1000, **task.problems),
        arm=arm,
    )
    trainer.train()
    logged = trainer.state.log_history
    clipped = [line["dapo/clip_high/frac_of_positive"] for line in logged if "dapo/clip_high/frac_of_positive" in line]
    return {
        "curve": [{name: round(value, 5) for name, value in point.items()} for point in trainer.curve],
        "clipped": round(statistics.mean(clipped), 5) if clipped else 0.0,
    }


def key_of(task: str, arm: str, steps_per_batch: int) -> str:
    """Returns the name of an arm in the JSON."""
    return f"{TASKS[task].prefix}{arm}, {steps_per_batch}"


def store(path: Path, name: str, seed: int, result: dict[str, Any]) -> None:
    """Adds a run to the JSON, which other processes add to as well."""
    with FileLock(path.with_suffix(".lock")):
        record = json.loads(path.read_text())
        record["results"].setdefault(name, {})[str(seed)] = result
        atomic_write(path, json.dumps(record, separators=(",", ":")))


def accuracies(record: dict[str, Any], arm: str, steps_per_batch: int, task: str = "quickstart") -> dict[str, float]:
    """Returns the held-out accuracy at the end of each run of an arm, by seed, in percent."""
    runs = [record["results"].get(key_of(task, one, steps_per_batch), {}) for one in (arm, *ARMS[:3])]
    # Seeds that all arms with all steps have, so that a row of the table is about the same ones.
    seeds = sorted(set.intersection(*map(set, runs)))
    return {seed: 100 * runs[0][seed]["curve"][-1]["accuracy"] for seed in seeds}


def differences(record: dict[str, Any], arm: str, steps_per_batch: int, task: str = "quickstart") -> list[float]:
    """Returns how far an arm ends above "on time" with each seed that both have, in points."""
    found, on_time = (accuracies(record, one, steps_per_batch, task) for one in (arm, "on time"))
    return [found[seed] - on_time[seed] for seed in sorted(found.keys() & on_time.keys())]


def paired_text(record: dict[str, Any], arm: str, steps_per_batch: int, task: str = "quickstart") -> str:
    """Returns the mean difference of an arm from "on time", with its standard error, in points."""
    paired = differences(record, arm, steps_per_batch, task)
    if len(paired) < 2:
        return ""
    text = f"{statistics.mean(paired):+.1f} ± {statistics.stdev(paired) / len(paired) ** 0.5:.1f}"
    is_whole = len(paired) == len(accuracies(record, "on time", steps_per_batch, task))
    return text if is_whole else f"{text} ({len(paired)} seeds)"


def markdown(record: dict[str, Any]) -> str:
    """Returns the table of each task that the JSON has: accuracy on time, and how far the others end from it."""
    tasks = [
        name
        for name, task in TASKS.items()
        if any(key_of(name, task.arms[0], steps) in record["results"] for steps in STEPS_PER_BATCH)
    ]
    return "\n\n".join(f"**The task of `{task}.py`**\n\n{table_of(record, task)}" for task in tasks)


def table_of(record: dict[str, Any], task: str) -> str:
    """Returns the table of one task."""
    arms = TASKS[task].arms
    lines = [
        f"| optimizer steps a batch | seeds | {' | '.join(arms)} |",
        "|---" * (2 + len(arms)) + "|",
    ]
    for steps_per_batch in STEPS_PER_BATCH:
        on_time = list(accuracies(record, "on time", steps_per_batch, task).values())
        cells = [f"{statistics.mean(on_time):.1f} %" if on_time else ""]
        cells += [paired_text(record, arm, steps_per_batch, task) for arm in arms[1:]]
        lines.append(f"| {steps_per_batch} | {len(on_time)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what the JSON lacks, seed by seed, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(NUM_SEEDS)))
    parser.add_argument("--task", default="quickstart", choices=list(TASKS))
    parser.add_argument("--short", action="store_true", help="one seed of two arms, 8 steps")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--markdown", action="store_true", help="print the tables of the JSON and run nothing")
    args = parser.parse_args()
    task = TASKS[args.task]
    # Those of one step take longest: their rounds are small.
    arms = [(arm, steps) for steps in sorted(STEPS_PER_BATCH, key=lambda steps: steps == 1) for arm in task.arms]
    if args.short:
        args.seeds, arms = [0], [("on time", 4), ("late, decoupled", 4)]
    if not args.output.exists():
        facts = {"short": args.short, "accuracy": ACCURACY, "max_weight": MAX_WEIGHT, "results": {}}
        args.output.write_text(json.dumps(facts | provenance(num_cores=1)))
    for seed in args.seeds if not args.markdown else []:
        results = json.loads(args.output.read_text())["results"]
        missing = [
            (arm, steps) for arm, steps in arms if str(seed) not in results.get(key_of(args.task, arm, steps), {})
        ]
        with tempfile.TemporaryDirectory() as folder:
            model = str(Path(folder, "tiny-model"))
            if missing:
                prepare_tiny_model(model, seed=seed, **task.warmed_up)
            for arm, steps in missing:
                result = run(task, arm, steps, seed, model, folder, args.short)
                store(args.output, key_of(args.task, arm, steps), seed, result)
    print(markdown(json.loads(args.output.read_text())))


if __name__ == "__main__":
    main()
