"""
`selective_rollout` in the real trainer, on prompts whose pass rates nobody sees, beside the simulation of the same world.

    python benchmarks/hidden_rates.py               # some 10 minutes on one core
    python benchmarks/hidden_rates.py --markdown    # prints the tables of the JSON

`DAPOTrainer` trains a model of 5,000 parameters that samples one token; its learning rate is 0. The reward of a completion is
drawn by the hidden pass rate of its prompt, in the worlds of `selection.py`: U-shaped rates, 12 passes of blind sampling add
2 to all log-odds, and each visit has noise of standard deviation 0.5. So everything between the configuration and the log
line is real, and only what the policy can do is given. 192 prompts in batches of 8 groups, 4,000 in batches of 64; groups of 8.

Figures: completions sampled per trained group, over those of the same run without selection (`completions`), and the share
of rare successes among trained groups, likewise (`rare`); for all passes and from the fourth on. `said` is what the trainer's
own metrics say of the same at the end, without knowing the run without selection.
"""

import argparse
import collections
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
from provenance import provenance  # noqa: E402
from selection import USUAL, make_selection, simulate, window  # noqa: E402
from selection_worlds import World  # noqa: E402
from tiny import numbered_prompts, tiny_model, tiny_tokenizer, training_arguments  # noqa: E402

from trl_dapo import DAPOConfig, DAPOTrainer  # noqa: E402


RESULTS = Path(__file__).with_name("hidden_rates.json")
NUM_PASSES, NUM_GENERATIONS = 12, 8
# Prompts and groups of a batch.
SIZES = {192: 8, 4000: 64}
SHARES = (0.25, 0.4)
WINDOWS = {"all passes": (0, NUM_PASSES), "from the 4th": (3, NUM_PASSES)}
SAID = ("calibration_error", "completions_of_blind", "rare_of_blind")


class HiddenRatesTrainer(DAPOTrainer):
    """Notes what each batch cost, and lets the world of hidden rates move on."""

    world: World

    def _collect_batch(self, sampler: Any) -> Any:
        start = sampler.source.metrics["data_passes"]
        batch = super()._collect_batch(sampler)
        ledger = batch.ledger
        trained = np.array([group.draw.index for group in ledger.accepted])
        self.world.learn(trained, trained, ledger.num_groups)
        num_rare = sum(group.is_rare_success for group in ledger.accepted)
        self.noted.append((start, len(ledger.sampled), len(ledger.accepted), num_rare))
        if sampler.source.metrics["data_passes"] >= NUM_PASSES:
            self.control.should_training_stop = True
        return batch


def drawn_reward(world: World) -> Any:
    """Returns a reward function that draws the correct completions of each group from a hidden pass rate."""
    visits: collections.Counter[int] = collections.Counter()

    def accuracy(row: list[int], **kwargs: Any) -> list[float]:
        rewards: list[float] = []
        for number in row[::NUM_GENERATIONS]:
            rng = np.random.default_rng((world.seed, 3, number, visits[number]))
            visits[number] += 1
            log_odds = world.log_odds[number] + world.shift + world.noise * rng.standard_normal()
            rewards += (rng.random(NUM_GENERATIONS) < 1.0 / (1.0 + np.exp(-log_odds))).astype(float).tolist()
        return rewards

    return accuracy


def train(num_rows: int, share: float, seed: int, is_selective: bool) -> tuple[np.ndarray, dict[str, float]]:
    """Returns what each batch cost, and the predictor's own figures at the end."""
    world = World(num_rows, NUM_GENERATIONS, share, seed=seed, **USUAL)
    num_groups = SIZES[num_rows]
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "num_generations": NUM_GENERATIONS,
            "per_device_train_batch_size": NUM_GENERATIONS * num_groups,
            "max_completion_length": 1,
            "soft_punish_cache": 0,
            "max_steps": 100_000,
            "learning_rate": 0.0,
            "logging_steps": 1,
            "selective_rollout": is_selective,
            "seed": seed,
        }
        trainer = HiddenRatesTrainer(
            model=tiny_model(),
            reward_funcs=drawn_reward(world),
            args=DAPOConfig(**training_arguments(folder, **options)),
            train_dataset=numbered_prompts(num_rows),
            processing_class=tiny_tokenizer(),
        )
        trainer.world, trainer.noted = world, []
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "dapo/rounds" in entry]
    said = {name: logs[-1].get(f"dapo/selection/{name}") for name in SAID}
    return np.array(trainer.noted), said


def measure(num_rows: int, share: float, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the figures of the trainer and of the simulation in one world."""
    blind, _ = train(num_rows, share, seed, is_selective=False)
    ours, said = train(num_rows, share, seed, is_selective=True)
    simulated = {}
    for arm in ("blind", "ours"):
        world = World(num_rows, NUM_GENERATIONS, share, seed=seed, **USUAL)
        simulated[arm] = simulate(world, make_selection(arm, world), SIZES[num_rows], NUM_PASSES)
    for name, (start, stop) in WINDOWS.items():

        def total(noted: np.ndarray, start: float = start, stop: float = stop) -> np.ndarray:
            return noted[(noted[:, 0] >= start) & (noted[:, 0] < stop), 1:].sum(axis=0)

        mine, its = total(ours), total(blind)
        expected = window(simulated["ours"], simulated["blind"], start, stop)
        yield {
            "num_rows": num_rows,
            "share": share,
            "seed": seed,
            "window": name,
            "completions": (mine[0] / mine[1]) / (its[0] / its[1]),
            "rare": (mine[2] / mine[1]) / (its[2] / its[1]),
            "simulated_completions": expected["cost_of_blind"],
            "simulated_rare": expected["rare_of_blind"],
            "said": said,
        }


def markdown(record: dict[str, Any]) -> str:
    """Returns the table, means over seeds with the smallest and the largest."""
    lines = [
        "| prompts | informative share | passes | completions | simulated | rare | simulated | said: completions | rare | "
        "calibration error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = sorted({(r["num_rows"], r["share"], r["window"]) for r in record["results"]})
    for case in cases:
        found = [r for r in record["results"] if (r["num_rows"], r["share"], r["window"]) == case]

        def cell(values: list[float]) -> str:
            return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

        cells = [cell([r[name] for r in found]) for name in ("completions", "simulated_completions")]
        cells += [cell([r[name] for r in found]) for name in ("rare", "simulated_rare")]
        for name in ("completions_of_blind", "rare_of_blind", "calibration_error"):
            cells.append(f"{statistics.mean(r['said'][name] for r in found):.3f}")
        lines.append(f"| {case[0]:,} | {case[1]} | {case[2]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs all worlds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--markdown", action="store_true", help="print the table of the JSON and run nothing")
    args = parser.parse_args()
    if args.markdown:
        print(markdown(json.loads(args.output.read_text())))
        return
    record = {**provenance(num_cores=1), "results": []}
    for num_rows in args.sizes:
        for share in SHARES:
            for seed in args.seeds:
                record["results"] += measure(num_rows, share, seed)
                args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(markdown(record))


if __name__ == "__main__":
    main()
