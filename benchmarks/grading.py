"""
Gradings per second of `accuracy_reward` beside TRL's, on the same completions, in one run.

    python benchmarks/grading.py --gsm8k FILE.jsonl     # writes benchmarks/grading.json
    python benchmarks/grading.py --short --output FILE  # fewer rounds, and without --gsm8k only the LaTeX expressions
"""

import argparse
import json
import logging
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from provenance import git, provenance  # noqa: E402


Sample = tuple[str, str, bool]  # gold, completion, whether it is correct
NUM_SHORT_ROUNDS = 3

FILLER = (
    "Let us write down what is given and go through it step by step. The first condition relates the two unknown "
    "quantities, so that we may replace one of them; the second then leaves an equation in a single unknown. "
)


def gsm8k_integers(path: Path, num_samples: int, rng: random.Random) -> list[Sample]:
    """GSM8K's own solutions with the answer in a box, every second one off by one."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    samples = []
    for index, row in enumerate(rng.sample(rows, num_samples)):
        rationale, _, gold = row["answer"].rpartition("#### ")
        gold = gold.replace(",", "")
        answer = int(gold) + index % 2
        samples.append((gold, rf"{rationale}So the answer is $\boxed{{{answer}}}$.", index % 2 == 0))
    return samples


def expressions(num_samples: int, rng: random.Random) -> list[Sample]:
    """Distinct answers in LaTeX: each kind in another form than the gold, every second one wrong."""

    def pair() -> Iterator[tuple[str, str, str]]:
        """Yields a gold, an equal answer and another one."""
        while True:
            a, b, c = rng.randint(2, 40), rng.randint(2, 40), rng.choice([2, 3, 5, 6, 7, 10])
            yield rf"{a}\sqrt{{{c}}}", rf"\sqrt{{{a * a * c}}}", rf"\sqrt{{{a * a * c + 1}}}"
            yield rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{3 * a}\pi}}{{{3 * b}}}", rf"\frac{{{a + 1}\pi}}{{{b}}}"
            yield f"(x+{a})(x-{b})", f"x^2+{a}x-{b}x-{a * b}", f"x^2+{a}x-{b}x+{a * b}"
            yield f"({a}, {-b})", rf"\left({a},-{b}\right)", f"({-b}, {a})"
            yield rf"\{{{a}, {a + b}, {c - 41}\}}", rf"\{{{c - 41}, {a}, {a + b}\}}", rf"\{{{c - 41}, {a}\}}"
            yield rf"[{a}, {a + b})", rf"\left[{a}, {a + b}\right)", rf"({a}, {a + b}]"
            yield rf"\frac{{{a}+\sqrt{{{c}}}}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}+\frac{{\sqrt{{{c}}}}}{{{b}}}", f"{a}"
            yield f"y = {a}x + {b}", f"y - {b} = {a}x", f"y = {b}x + {a + b}"
            yield rf"{a}^{{n+1}}", rf"{a} \cdot {a}^n", rf"{a}^n+{b}"
            yield rf"\frac{{x}}{{x^2+{a}x}}", rf"\frac{{1}}{{x+{a}}}", rf"\frac{{1}}{{x+{a + 1}}}"
            yield rf"{a}\ln {c}", rf"\ln {c}^{{{a}}}", rf"\ln {c}^{{{a + 1}}}"
            yield f"{a}+{b}i", f"{b}i+{a}", f"{a}-{b}i"

    samples: list[Sample] = []
    seen = set()
    for gold, equal, other in pair():
        answer = equal if len(samples) % 2 == 0 else other
        if (gold, answer) in seen:
            continue
        seen.add((gold, answer))
        # In delimiters, so that TRL reads the gold as it is meant.
        samples.append((f"${gold}$", rf"{FILLER * 3}So the answer is $\boxed{{{answer}}}$.", len(samples) % 2 == 0))
        if len(samples) == num_samples:
            return samples
    raise AssertionError("unreachable")


def timed(reward: Callable[..., list[float | None]], samples: list[Sample]) -> tuple[float, float]:
    """Seconds that a reward function takes, and the share of samples it gets right."""
    completions: list[Any] = [[{"role": "assistant", "content": text}] for _, text, _ in samples]
    golds = [gold for gold, _, _ in samples]
    start = time.perf_counter()
    rewards = reward(completions=completions, solution=golds)
    seconds = time.perf_counter() - start
    return seconds, statistics.mean(
        value == is_right for value, (_, _, is_right) in zip(rewards, samples, strict=True)
    )


def quickstart_share(seconds_per_grading: float) -> dict[str, float]:
    """Cost of grading one optimizer step of the quickstart, over the seconds that such a step takes."""
    runs = json.loads((ROOT / "benchmarks" / "dynamic_sampling.json").read_text())["results"]["requeue"].values()
    ends = [run["curve"][-1] for run in runs]
    step_seconds = statistics.mean(end["cpu_seconds"] / end["step"] for end in ends)
    gradings = statistics.mean(end["completions"] / end["step"] for end in ends)
    return {
        "step_seconds": step_seconds,
        "gradings_per_step": gradings,
        "share": gradings * seconds_per_grading / step_seconds,
        "share_of_one_grading": seconds_per_grading / step_seconds,
    }


def main() -> None:
    """Runs both rewards in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--gsm8k", type=Path, help="train.jsonl or test.jsonl of GSM8K; needed without --short")
    parser.add_argument("--short", action="store_true", help=f"{NUM_SHORT_ROUNDS} rounds; GSM8K may be missing")
    parser.add_argument("--num_samples", type=int, default=240, help="completions per kind and round")
    parser.add_argument(
        "--num_rounds", type=int, default=9, help="rounds; each has its own samples, and TRL's turn first"
    )
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "grading.json")
    args = parser.parse_args()
    if args.gsm8k is None and not args.short:
        parser.error("--gsm8k is missing: a train.jsonl or test.jsonl of GSM8K")
    if args.short:
        args.num_rounds = NUM_SHORT_ROUNDS
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)

    from trl.rewards import accuracy_reward as trl_reward

    from trl_dapo.grading import pool
    from trl_dapo.rewards import accuracy_reward

    # The pool that the reward uses, with so many workers, started before the clock.
    pool._shared = pool.GradingPool(num_workers=args.num_workers)
    start = time.perf_counter()
    pool.shared_pool().compare([(f"{n}x", f"x+{n - 1}x") for n in range(64)])
    start_seconds = time.perf_counter() - start
    timed(trl_reward, expressions(24, random.Random(-1)))

    results: dict[str, Any] = {}
    makers: dict[str, Callable[[random.Random], list[Sample]]] = {
        "gsm8k_integers": lambda rng: gsm8k_integers(args.gsm8k, args.num_samples, rng),
        "latex_expressions": lambda rng: expressions(args.num_samples, rng),
    }
    if args.gsm8k is None:
        del makers["gsm8k_integers"]
    for kind, make in makers.items():
        rounds = []
        for seed in range(args.num_rounds):
            samples = make(random.Random(seed))
            pool.shared_pool()._known.clear()  # every answer is new
            trl_seconds, trl_right = timed(trl_reward, samples)
            seconds, right = timed(accuracy_reward, samples)
            again_seconds, _ = timed(accuracy_reward, samples)
            rounds.append(
                {
                    "trl_per_second": len(samples) / trl_seconds,
                    "per_second": len(samples) / seconds,
                    "per_second_seen_before": len(samples) / again_seconds,
                    "speedup": trl_seconds / seconds,
                    "trl_right": trl_right,
                    "right": right,
                }
            )
        results[kind] = {key: statistics.median(entry[key] for entry in rounds) for key in rounds[0]}
        results[kind]["speedup_least"] = min(entry["speedup"] for entry in rounds)
        results[kind]["speedup_greatest"] = max(entry["speedup"] for entry in rounds)
    results["start_seconds"] = start_seconds
    if args.gsm8k is not None:
        results["quickstart"] = quickstart_share(1 / results["gsm8k_integers"]["per_second"])

    record = provenance(("trl", "math-verify", "latex2sympy2_extended", "sympy")) | {
        "grading_code_modified": bool(git("status", "--porcelain", "trl_dapo/grading", "trl_dapo/rewards")),
        "load_average": os.getloadavg()[0],
        "arguments": {"num_samples": args.num_samples, "num_rounds": args.num_rounds, "num_workers": args.num_workers},
        "results": results,
    }
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    for kind in makers:
        row = results[kind]
        print(
            f"{kind}: {row['per_second']:.0f}/s, TRL {row['trl_per_second']:.0f}/s, {row['speedup']:.2f} times "
            f"({row['speedup_least']:.2f} to {row['speedup_greatest']:.2f}); seen before {row['per_second_seen_before']:.0f}/s; "
            f"right {row['right']:.1%}, TRL {row['trl_right']:.1%}"
        )
    print(f"start of the workers: {start_seconds:.2f} s")
    if "quickstart" in results:
        print("quickstart: " + ", ".join(f"{key} {value:.3g}" for key, value in results["quickstart"].items()))


if __name__ == "__main__":
    main()
