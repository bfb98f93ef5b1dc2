"""
Dynamic sampling with a tool: examples/dapo_tools.py trained by TRL's GRPO and by ours, over seeds.

    python benchmarks/tools.py                # some ten minutes on one core; resumes where it stopped
    python benchmarks/tools.py --markdown     # prints the tables of the JSON

Both trainers of a seed start from the same warmed-up model, have the same calculator, the same constant learning rate, and take
their optimizer steps on batches of 64 groups of 8, 4 steps a batch.

Figures: accuracy on 128 held-out problems (4 samples each, the same for both) every 4 optimizer steps, with the completions and the
tokens of the model sampled for training until then, and the CPU seconds of the process outside of evaluation. The target of a seed
is the mean of GRPO's last three evaluations; costs to reach it are interpolated between evaluations.
"""

import os
import statistics
import sys
from pathlib import Path
from typing import Any


os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from dapo_tools import DEFAULT_RECIPE, calculate  # noqa: E402
from dynamic_sampling import Arm, main_of  # noqa: E402
from measured import NUM_LAST, MeasuredDAPO, MeasuredGRPO, cost_ratios, end_accuracy, ratio_cell  # noqa: E402

from trl_dapo.recipes.tool_tasks import make_products, prepare_tool_model, product_turns  # noqa: E402
from trl_dapo.rewards import accuracy_reward  # noqa: E402


RESULTS = Path(__file__).with_name("tools.json")
NUM_PROBLEMS, NUM_HELD_OUT = 4000, 128
COSTS = ("step", "completions", "tokens", "cpu_seconds")


class EpisodesOnce:
    """Counts a completion once, and not once for each turn."""

    num_completions: int

    def _tool_call_loop(self, *args: Any, **kwargs: Any) -> Any:
        before = self.num_completions
        looped = super()._tool_call_loop(*args, **kwargs)  # type: ignore[misc]
        self.num_completions = before
        return looped


class ToolsGRPO(EpisodesOnce, MeasuredGRPO):
    """TRL's trainer, measured."""


class ToolsDAPO(EpisodesOnce, MeasuredDAPO):
    """Ours, measured."""


ARMS = {
    "GRPO": Arm(ToolsGRPO, {"epsilon_high": None}),
    "DAPO": Arm(ToolsDAPO),
}


def run(arm: Arm, seed: int, model: str, folder: str) -> dict[str, Any]:
    """Trains one arm and returns its curve."""
    options = ["--eval_steps", "4", "--lr_scheduler_type", "constant", "--num_groups_to_log", "0"]
    trainer = arm.trainer(
        model=model,
        args=arm.arguments(DEFAULT_RECIPE, seed, folder, *options),
        reward_funcs=accuracy_reward,
        train_dataset=make_products(NUM_PROBLEMS, seed),
        eval_dataset=make_products(NUM_HELD_OUT, seed + 1),
        tools=[calculate],
    )
    trainer.train()
    calls = [entry["tools/call_frequency"] for entry in trainer.state.log_history if "tools/call_frequency" in entry]
    return {"curve": trainer.curve, "calls": [calls[0], calls[-1]]}


def markdown(record: dict[str, Any]) -> str:
    """Returns the tables of the arms, over the seeds that both have."""
    results = {arm: record["results"].get(arm, {}) for arm in ARMS}
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in results.values())), key=int)
    curves = {arm: [of_seed[seed]["curve"] for seed in seeds] for arm, of_seed in results.items()}

    lines = [
        f"{len(seeds)} seeds ({', '.join(seeds)}). `end`: mean of the last {NUM_LAST} evaluations.",
        "",
        "| arm | before | end | calls a completion, first and last | completions | tokens | CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, of_seed in curves.items():
        spent = [f"{statistics.mean(curve[-1][cost] for curve in of_seed):,.0f}" for cost in COSTS[1:]]
        calls = [statistics.mean(results[arm][seed]["calls"][end] for seed in seeds) for end in (0, 1)]
        before = statistics.mean(curve[0]["accuracy"] for curve in of_seed)
        end = statistics.mean(map(end_accuracy, of_seed))
        lines.append(
            f"| {arm} | {before:.1%} | {end:.1%} | {calls[0]:.2f}, {calls[1]:.2f} | " + " | ".join(spent) + " |"
        )
    lines += [
        "",
        "To the accuracy with which `GRPO` ends, the cost of `DAPO` over that of `GRPO`: the geometric mean, and each seed (`-`: not "
        "reached).",
        "",
        "| optimizer steps | completions | tokens | CPU seconds |",
        "|---|---|---|---|",
    ]
    cells = [ratio_cell(cost_ratios(curves["DAPO"], curves["GRPO"], cost)) for cost in COSTS]
    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def prepare(model: str, seed: int) -> None:
    """Warms the model of a seed up."""
    prepare_tool_model(model, seed, product_turns)


if __name__ == "__main__":
    main_of(ARMS, run, markdown, RESULTS, str(__doc__), prepare)
