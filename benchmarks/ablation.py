"""
The paper's ladder (Table 1), each part left out of the whole, TRL's own DAPO, and three widths of Clip-Higher, over seeds.

    python benchmarks/ablation.py                 # hours on one core; goes on where it stopped
    python benchmarks/ablation.py --seeds 0 1 &   # and so on: runs are independent, and many processes may fill one file
    python benchmarks/ablation.py --short --output FILE  # a seed of three arms, in minutes
    python benchmarks/ablation.py --markdown      # prints the tables of the JSON
    python benchmarks/ablation.py --figure FILE   # draws them

The task, in `FAMILIES` and `STUDENT`: word problems of which half teach nothing at first (right at once, or never), some
whose right step is rare because the model has a misconception, and solutions that start over so often that one in ten
runs into the length limit. Eight optimizer steps on each generation batch, so that clipping binds.

Every arm of a seed starts from the same warmed-up model and is evaluated on the same problems: differences are paired. The
learning rate is constant, so that any step of a run is also the end of a shorter one. Costs are noted without evaluation;
CPU seconds are what the wall clock shows on an idle core.
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
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from ablation_claims import claims  # noqa: E402
from ablation_figure import draw  # noqa: E402
from ablation_tables import Comparison, against_trl, ladder, leave_one_out, widths  # noqa: E402
from filelock import FileLock  # noqa: E402
from measured import Measured  # noqa: E402
from provenance import provenance  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from trl.rewards import get_soft_overlong_punishment  # noqa: E402

from trl_dapo import DAPOConfig, DAPOTrainer  # noqa: E402
from trl_dapo.atomic_write import atomic_write  # noqa: E402
from trl_dapo.recipes.word_problems import Student, make_problems, prepare_tiny_model  # noqa: E402
from trl_dapo.rewards import accuracy_reward  # noqa: E402


RESULTS = Path(__file__).with_name("ablation.json")
NUM_SEEDS = 8
NUM_PROBLEMS, NUM_HELD_OUT = 4000, 256

# What is asked: "sum" is right at once and "product" never; "subtract" is the misconception.
FAMILIES = {
    "sum": 0.3, "product": 0.2, "subtract": 0.15, "add": 0.1, "multiply": 0.05, "two_step": 0.1, "three_step": 0.1,
}  # fmt: skip
STUDENT = Student(
    families={
        "sum": 0.08, "multiply": 0.2, "add": 0.15, "subtract": 0.22, "two_step": 0.16, "three_step": 0.17, "product": 0.02,
    },
    frac_slips=0.25,
    frac_slips_in={"sum": 0.01, "product": 0.9, "subtract": 0.7},
    misconceptions=frozenset({"subtract"}),
    frac_repeats=0.5,
)  # fmt: skip
LIMIT, CACHE = 72, 14
COMMON = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    "num_generations": 8, "per_device_train_batch_size": 32, "steps_per_generation": 8, "max_steps": 160,
    "max_completion_length": LIMIT, "learning_rate": 1.5e-4, "lr_scheduler_type": "constant", "adam_beta2": 0.99, "beta": 0.0,
    "eval_strategy": "steps", "eval_steps": 40, "eval_on_start": True, "per_device_eval_batch_size": 512,
    "num_generations_eval": 4, "logging_steps": 8, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
}  # fmt: skip

# The parts of Table 1 in its order, and what each changes.
NAIVE = {
    "mask_truncated_completions": False, "epsilon_high": 0.2, "soft_punish_cache": 0, "loss_type": "grpo",
    "dynamic_sampling": False,
}  # fmt: skip
PARTS: dict[str, dict[str, Any]] = {
    "overlong filtering": {"mask_truncated_completions": True},
    "clip-higher": {"epsilon_high": 0.28},
    "soft overlong punishment": {"soft_punish_cache": CACHE},
    "token-level loss": {"loss_type": "dapo"},
    "dynamic sampling": {"dynamic_sampling": True},
}
# Where Clip-Higher should show most: nothing but the misconception, 16 optimizer steps on a generation batch of 64 groups and
# a larger learning rate, so that it is the clip that holds rare right tokens back.
RARE_ONLY = {"steps_per_generation": 16, "learning_rate": 3e-4, "logging_steps": 16}


def with_parts(*names: str) -> dict[str, Any]:
    """Returns the settings of naive GRPO with some of the parts."""
    settings = dict(NAIVE)
    for name in names:
        settings |= PARTS[name]
    return settings


@dataclass(frozen=True)
class Arm:
    """What a run changes of the common settings, and what is asked in it."""

    settings: dict[str, Any]
    families: dict[str, float] = field(default_factory=lambda: FAMILIES)
    is_trl: bool = False


def make_arms() -> dict[str, Arm]:
    """Returns the arms in the order of the tables."""
    arms = {"naive GRPO": Arm(NAIVE)}
    names = list(PARTS)
    for number, name in enumerate(names[:-1], 1):
        arms[f"+ {name}"] = Arm(with_parts(*names[:number]))
    arms["DAPO"] = Arm(with_parts(*names))
    # The whole without dynamic sampling is the rung before it.
    for left_out in names[:-1]:
        arms[f"DAPO - {left_out}"] = Arm(with_parts(*[name for name in names if name != left_out]))
    # Long enough to spend the tokens of the whole.
    arms["TRL"] = Arm(with_parts(*names[:-1]) | {"max_steps": 400}, is_trl=True)
    for epsilon_high in (0.2, 0.28, 0.4):
        settings = with_parts(*names) | RARE_ONLY | {"epsilon_high": epsilon_high}
        arms[f"rare only, epsilon_high {epsilon_high}"] = Arm(settings, families={"subtract": 1.0})
    return arms


ARMS = make_arms()
SHORT_ARMS, SHORT_STEPS = ("naive GRPO", "+ token-level loss", "DAPO"), 40


class AblationTrainer(Measured):
    """Notes the held-out figures that the paper draws."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.judged: list[tuple[int, float, str]] = []

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if not self.model.training:
            lengths, families = map(len, completion_ids_list), [row["family"] for row in inputs]
            self.judged += zip(lengths, rewards[:, 0].tolist(), families, strict=True)
        return rewards

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates with the same completions in the entropy, whatever the arm masks: those that were not cut off."""
        masks, self.mask_truncated_completions = self.mask_truncated_completions, True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.mask_truncated_completions = masks

    def point(self, metrics: dict[str, float]) -> dict[str, float]:
        """Returns accuracy, entropy in nats a token, lengths in tokens, and the share of completions that were cut off."""
        judged, self.judged = self.judged, []
        wrong = [length for length, reward, _ in judged if reward < 1]
        rare = [reward for _, reward, family in judged if family == "subtract"]
        return super().point(metrics) | {
            "accuracy_rare": statistics.mean(rare),
            "entropy": metrics["eval_entropy"],
            "length": metrics["eval_completions/mean_length"],
            "length_wrong": statistics.mean(wrong) if wrong else float("nan"),
            "truncated": metrics["eval_completions/clipped_ratio"],
        }


class AblationDAPO(AblationTrainer, DAPOTrainer):
    """Ours, measured."""


class AblationGRPO(AblationTrainer, GRPOTrainer):
    """TRL's, measured."""


# Of the log, as it goes: share of the growing tokens that are clipped and their probability, and what else the paper draws.
LOGGED = {
    "clipped": "dapo/clip_high/frac_of_positive",
    "clipped_probability": "dapo/clip_high/token_prob_mean",
    "trained_entropy": "dapo/entropy",
    "grad_norm": "grad_norm",
    "informative": "dapo/acceptance_rate",
    "all_wrong": "dapo/frac_all_wrong",
    "all_correct": "dapo/frac_all_correct",
    "long_given_negative": "dapo/length/frac_long_given_negative",
}


def make_trainer(arm: Arm, seed: int, model: str, folder: str, max_steps: int | None) -> AblationTrainer:
    """Returns the trainer of an arm. TRL's is set up as its paper index sets up DAPO."""
    settings = COMMON | arm.settings | {"output_dir": folder, "seed": seed}
    if max_steps is not None:
        settings |= {"max_steps": max_steps, "eval_steps": max_steps}
    data = {
        "train_dataset": make_problems(NUM_PROBLEMS, seed=seed, families=arm.families),
        "eval_dataset": make_problems(NUM_HELD_OUT, seed=seed + 1, families=arm.families),
    }
    if not arm.is_trl:
        return AblationDAPO(model=model, args=DAPOConfig(**settings), reward_funcs=accuracy_reward, **data)
    own = ("soft_punish_cache", "dynamic_sampling")
    args = GRPOConfig(**{name: value for name, value in settings.items() if name not in own})
    punishment = get_soft_overlong_punishment(max_completion_len=LIMIT, soft_punish_cache=CACHE)
    return AblationGRPO(model=model, args=args, reward_funcs=[accuracy_reward, punishment], **data)


def run(arm: Arm, seed: int, model: str, folder: str, max_steps: int | None = None) -> dict[str, Any]:
    """Trains one arm and returns its curve and what it logged."""
    trainer = make_trainer(arm, seed, model, folder, max_steps)
    trainer.train()
    log: dict[str, list[float]] = {}
    for entry in trainer.state.log_history:
        for name, key in LOGGED.items():
            if key in entry:
                log.setdefault(name, []).append(float(f"{entry[key]:.4g}"))
    curve = [{name: round(value, 5) for name, value in point.items()} for point in trainer.curve]
    return {"curve": curve, "log": log}


def store(path: Path, name: str, seed: int, result: dict[str, Any]) -> None:
    """Adds a run to the JSON, which other processes add to as well."""
    with FileLock(path.with_suffix(".lock")):
        record = json.loads(path.read_text())
        record["results"].setdefault(name, {})[str(seed)] = result
        atomic_write(path, json.dumps(record, separators=(",", ":")))


def markdown(record: dict[str, Any]) -> str:
    """Returns the tables of what the JSON has."""
    results = record["results"]
    is_rare = {name: name.startswith("rare") for name in ARMS}
    if record["short"] or not all(results.get(name) for name in ARMS if not is_rare[name]):
        lines = [
            f"{name}, seed {seed}: {100 * run['curve'][-1]['accuracy']:.1f} % after {run['curve'][-1]['step']} steps"
            for name, runs in results.items()
            for seed, run in runs.items()
        ]
        return "\n".join(lines)
    data = Comparison(record)
    parts = {
        "The ladder": ladder(data),
        "What each part adds to the others": leave_one_out(data),
        "DAPO against TRL's own": against_trl(data),
        "The paper's claims": claims(data),
    }
    if all(results.get(name) for name in ARMS if is_rare[name]):
        parts["Widths of Clip-Higher, rare answers alone"] = widths(data)
    return "\n\n".join(f"**{title}**\n\n{text}" for title, text in parts.items())


def main() -> None:
    """Runs what the JSON lacks, seed by seed, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(NUM_SEEDS)))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--short", action="store_true", help="one seed of three arms, 40 steps")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--markdown", action="store_true", help="print the tables of the JSON and run nothing")
    parser.add_argument("--figure", type=Path, help="draw the JSON into this file and run nothing")
    args = parser.parse_args()
    if args.short:
        args.seeds, args.arms = [0], list(SHORT_ARMS)
    if not args.output.exists():
        args.output.write_text(json.dumps({"short": args.short, "results": {}} | provenance(num_cores=1)))
    if args.figure:
        draw(json.loads(args.output.read_text()), args.figure)
        return
    for seed in args.seeds if not args.markdown else []:
        results = json.loads(args.output.read_text())["results"]
        missing = [name for name in args.arms if str(seed) not in results.get(name, {})]
        with tempfile.TemporaryDirectory() as folder:
            model = str(Path(folder, "tiny-model"))
            if missing:
                prepare_tiny_model(model, seed=seed, student=STUDENT)
            for name in missing:
                result = run(ARMS[name], seed, model, folder, SHORT_STEPS if args.short else None)
                store(args.output, name, seed, result)
    print(markdown(json.loads(args.output.read_text())))


if __name__ == "__main__":
    main()
