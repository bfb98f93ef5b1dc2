"""
Does it pay to foresee which prompts teach? The quickstart task on few problems, which come up many times, over seeds.

    python benchmarks/many_passes.py                # an hour or two on one core; resumes where it stopped
    python benchmarks/many_passes.py --markdown     # prints the tables of the JSON

All arms of a seed start from the same warmed-up model, train on the same 512 problems with the same constant learning rate,
and take their optimizer steps on batches of 64 groups of 8, 4 steps a batch:

- `GRPO`: TRL's `GRPOTrainer`, 160 steps.
- `blind`: `DAPOTrainer` by default, 80 steps.
- `selective`: with `selective_rollout=True`, 80 steps; `selective, 0.3`: with `exploration_share=0.3`.
- `decayed`: the same with a learning rate that falls to 0 at the end of the arm, in budgets that cost about as many completions:
  GRPO 120 steps, the others 48.

Figures: accuracy on 256 held-out problems, none of which trains (4 samples each, the same for all arms of a seed), with the
completions and tokens sampled for training until then, and the CPU seconds of the process outside of evaluation. The target
of a seed is the mean of GRPO's last three evaluations; costs to reach it are interpolated between evaluations.
"""

import itertools
import os
import statistics
import sys
from pathlib import Path
from typing import Any


os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from dynamic_sampling import RECIPE, Arm, main_of  # noqa: E402
from measured import NUM_LAST, MeasuredDAPO, MeasuredGRPO, cost_ratios, end_accuracy, ratio_cell  # noqa: E402

from trl_dapo.data.held_out import prompt_key, without_prompts  # noqa: E402
from trl_dapo.recipes.word_problems import make_problems  # noqa: E402
from trl_dapo.rewards import accuracy_reward  # noqa: E402


RESULTS = Path(__file__).with_name("many_passes.json")
NUM_PROBLEMS, NUM_HELD_OUT = 512, 256
# Steps of the table of accuracy by completions.
AT_COMPLETIONS = 5_000
COSTS = ("step", "completions", "tokens", "cpu_seconds")
SAMPLING = ("acceptance_rate", "trained_accuracy", "frac_rare_success", "rollout_efficiency", "data_passes")
SELECTION = ("calibration_error", "completions_of_blind", "rare_of_blind")

_DECAYED = {"lr_scheduler_type": "linear"}
ARMS = {
    "GRPO": Arm(MeasuredGRPO, {"epsilon_high": None, "max_steps": 160, "eval_steps": 20}),
    "blind": Arm(MeasuredDAPO, {"max_steps": 80, "eval_steps": 10}),
    "selective": Arm(MeasuredDAPO, {"max_steps": 80, "eval_steps": 10, "selective_rollout": True}),
    "selective, 0.3": Arm(
        MeasuredDAPO, {"max_steps": 80, "eval_steps": 10, "selective_rollout": True, "exploration_share": 0.3}
    ),
    "GRPO, decayed": Arm(MeasuredGRPO, {"epsilon_high": None, "max_steps": 120, "eval_steps": 60} | _DECAYED),
    "blind, decayed": Arm(MeasuredDAPO, {"max_steps": 48, "eval_steps": 24} | _DECAYED),
    "selective, decayed": Arm(MeasuredDAPO, {"max_steps": 48, "eval_steps": 24, "selective_rollout": True} | _DECAYED),
}


def run(arm: Arm, seed: int, model: str, folder: str) -> dict[str, Any]:
    """Trains one arm and returns its curve, and the means of what it logged over the second half."""
    options = ["--lr_scheduler_type", "constant", "--num_groups_to_log", "0"]
    args = arm.arguments(RECIPE, seed, folder, *options)
    held_out = make_problems(NUM_HELD_OUT, seed=seed + 1)
    problems = make_problems(2 * NUM_PROBLEMS, seed=seed)
    problems = without_prompts(problems, problems["prompt"], {prompt_key(prompt) for prompt in held_out["prompt"]})
    trainer = arm.trainer(
        model=model,
        args=args,
        reward_funcs=accuracy_reward,
        train_dataset=problems.select(range(NUM_PROBLEMS)),
        eval_dataset=held_out,
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if 2 * entry["step"] > args.max_steps]
    names = [f"dapo/{name}" for name in SAMPLING] + [f"dapo/selection/{name}" for name in SELECTION]
    means = {}
    for name in names:
        values = [entry[name] for entry in history if entry.get(name) is not None]
        if values:
            means[name] = round(statistics.mean(values), 4)
    return {"curve": trainer.curve, "second_half": means}


def _accuracy_after(curve: list[dict[str, float]], completions: float) -> float | None:
    """Returns the accuracy after so many completions; `None`: the run ended before."""
    for before, after in itertools.pairwise(curve):
        if before["completions"] <= completions <= after["completions"]:
            share = (completions - before["completions"]) / (after["completions"] - before["completions"])
            return before["accuracy"] + share * (after["accuracy"] - before["accuracy"])
    return None


def markdown(record: dict[str, Any]) -> str:
    """Returns the tables of the arms, over the seeds that all of them have."""
    measured = {arm: record["results"][arm] for arm in ARMS if arm in record["results"]}
    is_decayed = {arm: arm.endswith("decayed") for arm in measured}
    results = {arm: of_seed for arm, of_seed in measured.items() if not is_decayed[arm]}
    most = max(map(len, results.values()))
    # An arm with fewer seeds has tables of its own, beside the others on the same seeds.
    lines = _tables_of({arm: of_seed for arm, of_seed in results.items() if len(of_seed) == most})
    if any(len(of_seed) < most for of_seed in results.values()):
        lines += ["", *_tables_of(results)]
    decayed = {arm: of_seed for arm, of_seed in measured.items() if is_decayed[arm]}
    if decayed:
        seeds = _common_seeds(decayed)
        lines += ["", f"With a learning rate that falls to 0, {len(seeds)} seeds ({', '.join(seeds)}):", ""]
        lines += [
            "| arm | before | after | each seed | completions | tokens | CPU seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        for arm, of_seed in decayed.items():
            ends = [of_seed[seed]["curve"][-1] for seed in seeds]
            before = statistics.mean(of_seed[seed]["curve"][0]["accuracy"] for seed in seeds)
            each = ", ".join(f"{100 * end['accuracy']:.1f}" for end in ends)
            cells = [f"{statistics.mean(end[cost] for end in ends):,.0f}" for cost in COSTS[1:]]
            after = statistics.mean(end["accuracy"] for end in ends)
            lines.append(f"| {arm} | {before:.1%} | {after:.1%} | {each} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _tables_of(results: dict[str, Any]) -> list[str]:
    """Returns the tables of arms with a constant learning rate, over the seeds that all of them have."""
    seeds = _common_seeds(results)
    curves = {arm: [of_seed[seed]["curve"] for seed in seeds] for arm, of_seed in results.items()}

    lines = [
        f"{len(seeds)} seeds ({', '.join(seeds)}). `end`: mean of the last {NUM_LAST} evaluations.",
        "",
        "| arm | before | end | completions | tokens | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for arm, of_seed in curves.items():
        spent = [statistics.mean(curve[-1][cost] for curve in of_seed) for cost in COSTS[1:]]
        before = statistics.mean(curve[0]["accuracy"] for curve in of_seed)
        end = statistics.mean(map(end_accuracy, of_seed))
        lines.append(f"| {arm} | {before:.1%} | {end:.1%} | " + " | ".join(f"{value:,.0f}" for value in spent) + " |")
    lines += [
        "",
        "To the accuracy with which `GRPO` ends, each arm's cost over that of `GRPO` until it first gets there: the geometric mean, and each "
        "seed (`-`: not reached).",
        "",
        "| arm | optimizer steps | completions | tokens | CPU seconds |",
        "|---|---|---|---|---|",
    ]
    for arm, of_seed in curves.items():
        cells = [ratio_cell(cost_ratios(of_seed, curves["GRPO"], cost)) for cost in COSTS]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    spent = [AT_COMPLETIONS * number for number in (1, 2, 3, 4)]
    lines += ["", "Accuracy after so many completions, interpolated between evaluations; mean over seeds:", ""]
    lines += [f"| arm | {' | '.join(f'{value:,}' for value in spent)} |", "|---" * (len(spent) + 1) + "|"]
    for arm, of_seed in curves.items():
        cells = []
        for value in spent:
            reached = [_accuracy_after(curve, value) for curve in of_seed]
            cells.append("-" if None in reached else f"{statistics.mean(reached):.1%}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", "Means over the second half of the steps:", ""]
    names = [f"dapo/{name}" for name in SAMPLING] + [f"dapo/selection/{name}" for name in SELECTION]
    lines += [f"| arm | {' | '.join(f'`{name}`' for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for arm, of_seed in results.items():
        values = [[of_seed[seed]["second_half"].get(name) for seed in seeds] for name in names]
        cells = ["-" if None in of_name else f"{statistics.mean(of_name):.3f}" for of_name in values]
        if arm != "GRPO":
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def _common_seeds(results: dict[str, Any]) -> list[str]:
    """Returns the seeds that all arms have."""
    return sorted(set.intersection(*(set(of_seed) for of_seed in results.values())), key=int)


if __name__ == "__main__":
    main_of(ARMS, run, markdown, RESULTS, str(__doc__))
