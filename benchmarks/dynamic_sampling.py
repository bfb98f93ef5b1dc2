"""
Dynamic sampling for real: the quickstart task trained by TRL's GRPO, by a fixed refill and by ours, over seeds.

    python benchmarks/dynamic_sampling.py                # hours on one core; resumes where it stopped
    python benchmarks/dynamic_sampling.py --markdown     # prints the tables of the JSON

Every arm of a seed starts from the same warmed-up model and takes its optimizer steps on batches of 64 groups of 8:

- `GRPO`: TRL's `GRPOTrainer` as it is, 60 steps; `GRPO, 120 steps`: the same for twice as long, so that it may spend what
  the refills of the others cost.
- `fixed 1x`, `fixed 3x`: rounds of 1 or 3 batches until the batch is full, the surplus cut and its prompts lost, as verl's
  recipe does it; all else is `DAPOTrainer`.
- `requeue`: `DAPOTrainer` by default. `carry`: with `surplus="carry", refill_confidence=None`.

Figures: held-out accuracy (256 problems, 4 samples each, the same for all arms of a seed) every 20 optimizer steps, with
the completions and tokens sampled for training until then and the CPU seconds of the process (one thread), evaluation
left out. CPU seconds are what the wall clock shows on an idle core, and do not depend on what else the machine does.
"""

import argparse
import json
import os
import statistics
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
sys.path.insert(0, str(ROOT / "benchmarks"))

from measured import MeasuredDAPO, MeasuredGRPO, cost_to_reach  # noqa: E402
from provenance import provenance  # noqa: E402
from trl import ModelConfig, TrlParser  # noqa: E402

from trl_dapo import DAPOConfig  # noqa: E402
from trl_dapo.command_line.training_run import TrainingScriptArguments  # noqa: E402
from trl_dapo.recipes.word_problems import make_problems, prepare_tiny_model  # noqa: E402
from trl_dapo.rewards import accuracy_reward  # noqa: E402
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan  # noqa: E402


RESULTS = Path(__file__).with_name("dynamic_sampling.json")
RECIPE = ROOT / "examples" / "recipes" / "quickstart.yaml"
NUM_PROBLEMS, NUM_HELD_OUT = 4000, 256
EVAL_STEPS = 20


class FixedRounds(RefillPlanner):
    """Rounds of so many prompts, whatever is missing."""

    num_prompts = 0

    def plan(self, num_needed: int, rounds_left: int | None = None, chances: Any = None) -> RoundPlan:
        """Returns the one round there is."""
        return RoundPlan(self.num_prompts, num_needed, self.acceptance_rate, float("nan"))


class FixedRefillDAPO(MeasuredDAPO):
    """Ours with verl's refill: rounds of a fixed size, and the prompts of the surplus are lost."""

    num_batches = 1

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dynamic_sampler.refill.planner.__class__ = FixedRounds
        self.dynamic_sampler.refill.planner.num_prompts = self.num_batches * self.args.num_groups_per_batch

    def _collect_batch(self, sampler: Any) -> Any:
        batch = super()._collect_batch(sampler)
        sampler.source.seek(batch.ledger.sampled[-1].draw.position + 1)
        return batch


class TripleRefillDAPO(FixedRefillDAPO):
    """verl's recipe: three batches a round."""

    num_batches = 3


@dataclass(frozen=True)
class Arm:
    """A trainer, and what its configuration changes."""

    trainer: Callable[..., Any]
    overrides: dict[str, Any] = field(default_factory=dict)

    def arguments(self, recipe: Path, seed: int, folder: str, *options: str) -> DAPOConfig:
        """Returns the configuration of a recipe with these options, evaluated by steps, as this arm changes it."""
        command = ["--config", str(recipe), "--output_dir", folder, "--seed", str(seed), "--disable_tqdm", "true"]
        parser = TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig))
        _, args, _ = parser.parse_args_and_config([*command, "--eval_strategy", "steps", *options])
        for name, value in self.overrides.items():
            setattr(args, name, value)
        return args


ARMS = {
    "GRPO": Arm(MeasuredGRPO, {"epsilon_high": None}),
    "GRPO, 120 steps": Arm(MeasuredGRPO, {"epsilon_high": None, "max_steps": 120}),
    "fixed 1x": Arm(FixedRefillDAPO),
    "fixed 3x": Arm(TripleRefillDAPO),
    "requeue": Arm(MeasuredDAPO),
    "carry": Arm(MeasuredDAPO, {"surplus": "carry", "refill_confidence": None}),
}


def run(arm: Arm, seed: int, model: str, folder: str) -> dict[str, Any]:
    """Trains one arm and returns its curve."""
    trainer = arm.trainer(
        model=model,
        args=arm.arguments(RECIPE, seed, folder, "--eval_steps", str(EVAL_STEPS)),
        reward_funcs=accuracy_reward,
        train_dataset=make_problems(NUM_PROBLEMS, seed=seed),
        eval_dataset=make_problems(NUM_HELD_OUT, seed=seed + 1),
    )
    trainer.train()
    history = trainer.state.log_history
    shares = [entry["dapo/acceptance_rate"] for entry in history if "dapo/acceptance_rate" in entry]
    return {
        "curve": trainer.curve,
        "acceptance_rate": statistics.mean(shares) if shares else None,
        "data_passes": max((entry.get("dapo/data_passes", 0.0) for entry in history), default=0.0),
    }


def markdown(record: dict[str, Any]) -> str:
    """Returns the table of the arms, averaged over the seeds that all of them have."""
    results = record["results"]
    seeds = sorted({seed for arm in ARMS for seed in results.get(arm, {})}, key=int)
    seeds = [seed for seed in seeds if all(seed in results.get(arm, {}) for arm in ARMS)]
    lines = [
        f"{len(seeds)} seeds ({', '.join(seeds)}); ratios are the geometric mean over seeds of the arm over `requeue`.",
        "",
        "| arm | before | after | gain per seed | completions | CPU seconds | ratio of completions | ratio of CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ARMS:
        curves = [results[name][seed]["curve"] for seed in seeds]
        ends = [curve[-1] for curve in curves]
        base_ends = [results["requeue"][seed]["curve"][-1] for seed in seeds]
        gains = ", ".join(f"{100 * (curve[-1]['accuracy'] - curve[0]['accuracy']):+.1f}" for curve in curves)
        ratios = [
            statistics.geometric_mean(end[cost] / other[cost] for end, other in zip(ends, base_ends, strict=True))
            for cost in ("completions", "cpu_seconds")
        ]
        before = statistics.mean(curve[0]["accuracy"] for curve in curves)
        after = statistics.mean(end["accuracy"] for end in ends)
        completions = statistics.mean(end["completions"] for end in ends)
        seconds = statistics.mean(end["cpu_seconds"] for end in ends)
        lines.append(
            f"| {name} | {before:.1%} | {after:.1%} | {gains} | {completions:,.0f} | {seconds:.0f} | {ratios[0]:.2f} | "
            f"{ratios[1]:.2f} |"
        )
    lines += [
        "",
        "To the accuracy with which `GRPO` ends, each arm's cost over that of `GRPO`, per seed (`-`: not reached, or by "
        "`GRPO` itself only after it was higher):",
        "",
        "| arm | optimizer steps | completions | CPU seconds |",
        "|---|---|---|---|",
    ]
    for name in [name for name in ARMS if name != "GRPO"]:
        cells = []
        for cost in ("step", "completions", "cpu_seconds"):
            ratios = []
            for seed in seeds:
                end = results["GRPO"][seed]["curve"][-1]
                reached = cost_to_reach(results[name][seed]["curve"], end["accuracy"], cost)
                ratios.append("-" if reached is None else f"{reached / end[cost]:.2f}")
            cells.append(", ".join(ratios))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main_of(
    arms: dict[str, Arm],
    train: Callable[..., Any],
    table: Callable[..., str],
    results: Path,
    about: str,
    prepare: Callable[..., None] = prepare_tiny_model,
) -> None:
    """
    Runs what the JSON lacks, seed by seed, and prints the tables.

    Args:
        arms (`dict[str, Arm]`):
            The arms by their names.
        train (`Callable`):
            Trains an arm, given seed, model and folder, and returns what is kept of it.
        table (`Callable`):
            Returns the tables of a record.
        results (`Path`):
            The JSON.
        about (`str`):
            What the program says of itself; the first sentence is that of the help.
        prepare (`Callable`, *optional*):
            Writes the warmed-up model that all arms of a seed start from, given its folder and the seed.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms))
    parser.add_argument("--output", type=Path, default=results)
    parser.add_argument("--markdown", action="store_true", help="print the tables of the JSON and run nothing")
    args = parser.parse_args()
    record = json.loads(args.output.read_text()) if args.output.exists() else {"results": {}}
    if args.markdown:
        print(table(record))
        return
    record |= provenance(num_cores=1)
    for seed in args.seeds:
        missing = [name for name in args.arms if str(seed) not in record["results"].get(name, {})]
        with tempfile.TemporaryDirectory() as folder:
            model = str(Path(folder, "tiny-model"))
            if missing:
                prepare(model, seed=seed)
            for name in missing:
                record["results"].setdefault(name, {})[str(seed)] = train(arms[name], seed, model, folder)
                args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))


if __name__ == "__main__":
    main_of(ARMS, run, markdown, RESULTS, str(__doc__))
