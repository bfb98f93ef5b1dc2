"""
What it saves to foresee which groups can teach: `selective_rollout` on simulated prompts of hidden pass rates.

Nothing is generated here. Each prompt has a pass rate that nobody sees; a group of G completions has a binomial number of
correct ones, and is informative if that is neither 0 nor G. Batches are filled as the trainer does it with
`surplus="requeue"`, by its own `RefillPlanner`, `PromptSelection` and `PassRates`: groups beyond the batch go back to the
stream, are sampled again when their turn comes, and count as completions both times. What a draw finds is fixed by its
position in the stream and the pass rate, so that all arms are compared on the same luck. Arms:

- `blind`: every draw is sampled; rounds by one acceptance rate for all (today's default).
- `streaks`: GRESO, a prompt with z uninformative groups in a row is sampled with probability 0.5^z, at least 0.05.
- `ours`: `PromptSelection`, which knows only what its groups found; rounds by the prompts' own probabilities.
- `oracle`: the same selection by the true pass rates (but for the noise of the visit to come).

Sections of the record:

- `passes`: pass rates with a Beta law, which gives blind sampling the informative share; unless said otherwise 12 passes of
  blind sampling add 2 to all log-odds, and each visit has noise of standard deviation 0.5.
- `prior`: a column with a pass rate is known beforehand, correlated by 0.7 with the true one.
- `rules`: other ways to turn predictions into probabilities to be sampled, in the same worlds.
- `rounds`: completions given back, by planner.
- `reliability`: predicted against found.
- `learning`: a softmax policy that really learns (`selection_learner.py`): accuracy on held-out prompts per completion, with
  one learning rate for all arms. `GRPO` is without refill, and gets 4 times as many steps.
- `cost`: time and memory of the predictor.

Figures: `cost` is completions generated per completion trained. `rare` is the share of the trained groups that have few
correct completions (an eighth of the group, at least 1). Both are told over those of `blind`. `recall` is informative groups
found per pass, over those of `blind`. All over a window of passes of the arm itself.

Run `python benchmarks/selection.py` (8 to 25 minutes on one core; no GPU, no torch). It writes `benchmarks/selection.json`.
`--markdown` prints the tables of that file, `--short` runs some of the cases as they are in that file and writes to
`--output`, `--quick` runs a few small cases and writes nothing, `--only` runs one section.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from aims import checks_text
from provenance import git, provenance
from selection_learner import Learner
from selection_rules import RULES
from selection_tables import TABLES, WINDOWS, check_aims, passes_table, tables
from selection_worlds import (
    BlindSelection,
    OracleRates,
    StreakSelection,
    TableStream,
    World,
    noisy_column,
)

from trl_dapo.sampling.judge import max_rare_count
from trl_dapo.sampling.pass_rates import Outcomes, PassRates, rate_bins
from trl_dapo.sampling.prompt_selection import GroupOutcomes, PromptSelection
from trl_dapo.sampling.prompt_stream import PromptStream
from trl_dapo.sampling.refill_planner import RefillPlanner


RESULTS = Path(__file__).with_name("selection.json")

NUM_ROWS = 17_000
NUM_PASSES = 12
MAX_BATCHES_PER_ROUND, MAX_ROUNDS = 4, 10
USUAL = {"drift": 2.0, "noise": 0.5}
WORLDS = {
    "usual": USUAL,
    "still": {},
    "fast": {"drift": 4.0, "noise": 1.0},
    "each its own way": {"drift": 2.0, "noise": 0.3, "walk": 2.0},
}
SHARES = (0.2, 0.25, 0.4, 0.55, 0.7)


class Run(NamedTuple):
    """
    What each batch of a run cost, one row a batch.

    Attributes:
        passes (`np.ndarray`):
            Passes over the data when the batch began.
        figures (`np.ndarray`):
            Groups sampled, groups used, informative ones trained, rare successes among these, rounds, draws passed, and
            rounds that were not cut by the largest size and filled the batch, and all such rounds.
        curve (`list[tuple[float, float, float]]`):
            Groups sampled and accuracy, now and then; empty where nothing learns.
    """

    passes: np.ndarray
    figures: np.ndarray
    curve: list[tuple[float, float]]

    def total(self, start: float, stop: float) -> np.ndarray:
        """Returns the sums over the batches that began in these passes."""
        return self.figures[(self.passes >= start) & (self.passes < stop)].sum(axis=0)


def simulate(
    world: Any,
    selection: Any,
    num_groups: int,
    num_passes: float = math.inf,
    num_steps: float = math.inf,
    eval_steps: int = 0,
    confidence: float = 0.9,
    refills: bool = True,
) -> Run:
    """
    Fills batches until the passes or the steps are over.

    Args:
        world (`World` or `Learner`):
            Hidden pass rates.
        selection (`PromptSelection` or alike):
            Says which draws are sampled.
        num_groups (`int`):
            Groups of a full batch.
        num_passes (`float`, *optional*):
            Passes over the data.
        num_steps (`float`, *optional*):
            Batches.
        eval_steps (`int`, *optional*, defaults to `0`):
            The accuracy is noted after each so many batches. 0: never.
        confidence (`float`, *optional*, defaults to `0.9`):
            `refill_confidence`.
        refills (`bool`, *optional*, defaults to `True`):
            `False`: GRPO, one round of a batch, whatever it finds.
    """
    stream, size = selection.stream, world.num_generations
    planner = RefillPlanner(num_groups, confidence, max_prompts=MAX_BATCHES_PER_ROUND * num_groups)
    passes, figures, curve, num_sampled_before = [], [], [], 0
    while stream.position < num_passes * stream.num_rows and len(figures) < num_steps:
        start, missing = stream.position, num_groups
        num_rounds = num_sampled = num_full = num_free = 0
        parts = []
        while missing and num_rounds < MAX_ROUNDS:
            chances = selection.chances() if selection.chances else None
            plan = planner.plan(missing, MAX_ROUNDS - num_rounds, chances)
            draws = selection.draw(plan.num_prompts if refills else num_groups)
            positions = np.array([draw.position for draw in draws])
            indices = np.array([draw.index for draw in draws])
            counts = world.sample(positions, indices)
            is_informative = (counts > 0) & (counts < size)
            planner.observe(int(is_informative.sum()), len(draws))
            found = np.cumsum(is_informative)
            is_full = found[-1] >= missing
            if plan.num_prompts < planner.max_prompts:
                num_free, num_full = num_free + 1, num_full + int(is_full)
            used = int(np.searchsorted(found, missing)) + 1 if is_full else len(draws)
            parts.append([values[:used] for values in (positions, indices, counts, is_informative)])
            missing -= int(is_informative[:used].sum())
            num_sampled, num_rounds = num_sampled + len(draws), num_rounds + 1
            if not refills:
                break
        positions, indices, counts, is_informative = (np.concatenate(part) for part in zip(*parts, strict=True))
        stream.seek(int(positions[-1]) + 1)
        is_rare = is_informative & (counts <= max_rare_count(size))
        scored = np.full(len(counts), float(size))
        selection.learn(GroupOutcomes(indices, counts.astype(float), scored, is_informative, is_rare))
        world.learn(indices[is_informative], counts[is_informative], num_groups)
        passes.append(start / stream.num_rows)
        trained = [is_informative.sum(), is_rare.sum()]
        figures.append([num_sampled, len(indices), *trained, num_rounds, stream.position - start, num_full, num_free])
        num_sampled_before += num_sampled
        if eval_steps and len(figures) % eval_steps == 0:
            curve.append((float(num_sampled_before), world.accuracy()))
    return Run(np.array(passes), np.array(figures, dtype=float), curve)


def make_selection(arm: str, world: Any, column: np.ndarray | None = None, **options: Any) -> Any:
    """Returns what draws the prompts of an arm."""
    stream = TableStream(world.num_rows, seed=world.seed)
    if arm == "blind":
        return BlindSelection(stream)
    if arm == "streaks":
        return StreakSelection(stream)
    if arm == "oracle":
        return PromptSelection(stream, OracleRates(world), world.seed, **options)
    kinds, means = (None, None) if column is None else rate_bins(column)
    rates = PassRates(world.num_rows, world.num_generations, kinds=kinds, prior_rates=means)
    return RULES.get(arm, PromptSelection)(stream, rates, world.seed, **options)


def window(run: Run, blind: Run, start: float, stop: float) -> dict[str, float]:
    """Returns the figures of some passes, and what they are of those of blind sampling."""
    ours, theirs = run.total(start, stop), blind.total(start, stop)

    def ratio(above: int, below: int) -> float:
        return (ours[above] / ours[below]) / (theirs[above] / theirs[below])

    return {
        "cost": ours[0] / ours[2],
        "cost_of_blind": ratio(0, 2),
        "used_of_blind": ratio(1, 2),
        "rare": ours[3] / ours[2],
        "rare_of_blind": ratio(3, 2),
        "recall": ratio(2, 5),
        "given_back": ours[0] / ours[1] - 1.0,
        "rounds": ours[4] / max(1, len(run.passes[(run.passes >= start) & (run.passes < stop)])),
        "fill_rate": ours[6] / ours[7] if ours[7] else math.nan,
    }


def at_equal_groups(run: Run, blind: Run, num_trained: float) -> dict[str, float]:
    """Returns what so many trained groups cost, and how many of them are rare successes, over those of blind sampling."""

    def until(one: Run, figure: int) -> float:
        return float(np.interp(num_trained, one.figures[:, 2].cumsum(), one.figures[:, figure].cumsum()))

    return {
        "cost_of_blind": until(run, 0) / until(blind, 0),
        "rare_of_blind": until(run, 3) / until(blind, 3),
        "draws_of_blind": until(run, 5) / until(blind, 5),
    }


def run_passes(cases: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields one record per case, arm and window."""
    for case in cases:
        make = partial(
            World, case["num_rows"], case["num_generations"], case["share"], seed=case["seed"], **WORLDS[case["world"]]
        )
        runs, errors = {}, {}
        for arm in ("blind", "streaks", "oracle", "ours"):
            world = make()
            selection = make_selection(arm, world)
            runs[arm] = simulate(world, selection, case["num_groups"], case["num_passes"])
            if isinstance(selection, PromptSelection):
                errors[arm] = selection.reliability.calibration_error
        for arm, run in runs.items():
            for name, (start, stop) in WINDOWS.items():
                if stop <= case["num_passes"]:
                    figures = window(run, runs["blind"], start, stop)
                    of_oracle = figures["cost"] / window(runs["oracle"], runs["blind"], start, stop)["cost"]
                    record = {
                        "section": "passes",
                        **case,
                        "arm": arm,
                        "window": name,
                        **figures,
                        "of_oracle": of_oracle,
                    }
                    yield record | ({"calibration_error": errors[arm]} if arm in errors else {})


def passes_cases(short: bool) -> list[dict[str, Any]]:
    """Returns the cases of `passes`: all sizes of groups and informative shares, then one thing at a time."""
    usual = {"num_rows": NUM_ROWS, "num_groups": 64, "num_passes": NUM_PASSES, "world": "usual", "seed": 0}

    def case(num_generations: int, share: float, **other: Any) -> dict[str, Any]:
        return {"num_generations": num_generations, "share": share} | usual | other

    if short:
        return [case(16, 0.4)]
    return [
        *(case(size, share) for size in (8, 16) for share in SHARES),
        *(case(16, share, world=world) for world in WORLDS if world != "usual" for share in (0.25, 0.4)),
        *(case(16, share, num_groups=16) for share in (0.25, 0.4)),
        *(case(16, 0.4, seed=seed) for seed in (1, 2)),
        *(case(size, 0.4, num_rows=512, num_groups=16) for size in (8, 16)),
        case(16, 0.4, num_rows=4000),
        case(16, 0.4, num_rows=100_000, num_groups=256),
        case(16, 0.4, num_rows=1_000_000, num_groups=512, num_passes=4),
    ]


def run_prior(short: bool) -> Iterator[dict[str, Any]]:
    """Yields one record per world and column."""
    for size, share in [(16, 0.4)] if short else [(16, 0.4), (16, 0.25), (8, 0.4), (8, 0.25)]:
        make = partial(World, NUM_ROWS, size, share, **USUAL)
        blind_world = make()
        blind = simulate(blind_world, make_selection("blind", blind_world), 64, 5)
        first = make()
        columns: dict[str, np.ndarray | None] = {"none": None}
        columns |= {kind: noisy_column(first, kind, 0.7) for kind in ("another model", "added noise")}
        columns["measured, k = 4"] = first.rng.binomial(4, first.rates(np.arange(NUM_ROWS))) / 4
        columns["useless"] = first.rng.random(NUM_ROWS)
        for name, column in columns.items():
            world = make()
            selection = make_selection("ours", world, column)
            run = simulate(world, selection, 64, 8)
            one_pass = float(blind.total(0, 1)[2])
            rates = first.rates(np.arange(NUM_ROWS))
            yield {
                "section": "prior",
                "num_generations": size,
                "share": share,
                "column": name,
                "correlation": None if column is None else float(np.corrcoef(column, rates)[0, 1]),
                "best_kind": None if column is None else best_kind(first, column),
                "first_pass": window(run, blind, 0, 1),
                **{
                    f"groups_of_{count}_passes": at_equal_groups(run, blind, number * one_pass)
                    for count, number in (("one", 1), ("two", 2), ("four", 4))
                },
                "calibration_error": selection.reliability.calibration_error,
            }


def best_kind(world: World, column: np.ndarray) -> float:
    """
    Returns the completions per trained one of who samples the best kind of prompts alone, over those of blind sampling: what
    the column tells at most in one pass. Kinds are those of `rate_bins` with 1 % of the prompts or more.
    """
    chances, _ = world.chances(np.arange(world.num_rows))
    kinds, _ = rate_bins(column)
    means = [chances[kinds == kind].mean() for kind in np.unique(kinds) if (kinds == kind).mean() >= 0.01]
    return float(chances.mean() / max(means))


def run_rules() -> Iterator[dict[str, Any]]:
    """Yields one record per world, rule and exploration share."""
    for size, share in [(16, 0.4), (8, 0.25)]:
        make = partial(World, NUM_ROWS, size, share, **USUAL)
        blind_world = make()
        blind = simulate(blind_world, make_selection("blind", blind_world), 64, NUM_PASSES)
        rules = [("ours", exploration_share) for exploration_share in (0.05, 0.1, 0.2, 0.4)]
        rules += [(rule, 0.1) for rule in RULES if rule not in ("one rate for all", "all prompts")]
        for rule, exploration_share in rules:
            world = make()
            run = simulate(world, make_selection(rule, world, exploration_share=exploration_share), 64, NUM_PASSES)
            where = {
                "section": "rules",
                "num_generations": size,
                "share": share,
                "rule": rule,
                "exploration_share": exploration_share,
            }
            for name in ("passes 1 to 12", "passes 4 to 12"):
                yield where | {"window": name} | window(run, blind, *WINDOWS[name])


def run_rounds() -> Iterator[dict[str, Any]]:
    """Yields one record per world, batch size, planner and window."""
    for size, share in [(16, 0.4), (16, 0.55), (16, 0.7), (8, 0.4), (8, 0.55), (8, 0.7)]:
        for num_groups in (64, 16):
            make = partial(World, 8000, size, share, **USUAL)
            runs = {}
            for arm in ("blind", "all prompts", "one rate for all", "ours", "ours, 0.85", "oracle"):
                world, confidence = make(), 0.85 if arm == "ours, 0.85" else 0.9
                selection = make_selection(arm.split(",")[0], world)
                runs[arm] = simulate(world, selection, num_groups, NUM_PASSES, confidence=confidence)
            for arm, run in runs.items():
                for name, (start, stop) in {"pass 1": (0, 1), "passes 2 to 12": (1, 12)}.items():
                    figures = window(run, runs["blind"], start, stop)
                    today = window(runs["blind"], runs["blind"], start, stop)["given_back"]
                    yield {
                        "section": "rounds",
                        "num_generations": size,
                        "share": share,
                        "num_groups": num_groups,
                        "arm": arm,
                        "window": name,
                        "given_back": figures["given_back"],
                        "of_today": figures["given_back"] / today,
                        "rounds": figures["rounds"],
                        "fill_rate": figures["fill_rate"],
                    }


TASKS = {
    "half solved": {"num_rows": 2000, "num_generations": 16, "known": 0.45, "sharpness": 3.0, "num_steps": 600},
    "hard": {"num_rows": 2000, "num_generations": 16, "known": 0.3, "sharpness": 4.0, "num_steps": 600},
    "small groups": {"num_rows": 2000, "num_generations": 8, "known": 0.45, "sharpness": 3.0, "num_steps": 400},
    "few passes": {"num_rows": 8000, "num_generations": 16, "known": 0.3, "sharpness": 4.0, "num_steps": 200},
}


def run_learning() -> Iterator[dict[str, Any]]:
    """Yields one record per task, arm and seed: its curve of accuracy against completions."""
    arms: list[tuple[str, dict[str, float]]] = [("blind", {}), ("GRPO", {}), ("streaks", {}), ("oracle", {})]
    arms += [("ours", {"exploration_share": share}) for share in (0.05, 0.1, 0.2, 0.4)]
    arms += [(rule, {}) for rule in ("threshold 0.5", "square, no rare value", "square up to 1", "Thompson 0.5")]
    for task, described in TASKS.items():
        options = dict(described)
        num_steps = options.pop("num_steps")
        for seed in range(8):
            for arm, how in arms:
                learner = Learner(seed=seed, **options)  # type: ignore[arg-type]
                start = learner.accuracy()
                # GRPO samples less in a step, and gets more steps.
                is_grpo = arm == "GRPO"
                steps = 4 * num_steps if is_grpo else num_steps
                selection = make_selection("blind" if is_grpo else arm, learner, **how)
                run = simulate(
                    learner, selection, 32, num_steps=steps, eval_steps=num_steps // 40, refills=not is_grpo
                )
                sums = run.total(0, math.inf)
                yield {
                    "section": "learning",
                    "task": task,
                    "seed": seed,
                    "arm": arm if "exploration_share" not in how else f"{arm}, {how['exploration_share']:g}",
                    "passes": float(sums[5] / learner.num_rows),
                    "rare": float(sums[3] / sums[2]),
                    "curve": [(0.0, round(start, 5)), *((sampled, round(value, 5)) for sampled, value in run.curve)],
                }


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Appends the CPU seconds that its block takes."""
    start = time.process_time()
    yield
    seconds.append(time.process_time() - start)


def run_reliability() -> Iterator[dict[str, Any]]:
    """Yields what was found where so much was predicted, over the last groups of 12 passes."""
    for world_name in WORLDS:
        world = World(NUM_ROWS, 16, 0.4, **WORLDS[world_name])
        selection = make_selection("ours", world)
        simulate(world, selection, 64, NUM_PASSES)
        for row in selection.reliability.table():
            yield {"section": "reliability", "world": world_name, **row}


def run_cost(short: bool) -> Iterator[dict[str, Any]]:
    """Yields the time and memory of the predictor."""
    for num_rows, num_groups in (
        [(100_000, 64)] if short else [(100_000, 64), (1_000_000, 64), (1_000_000, 512), (10_000_000, 64)]
    ):
        rates = PassRates(num_rows, 16, kinds=np.arange(num_rows) % 17, prior_rates=np.arange(17) / 16)
        rng = np.random.default_rng(0)
        for start in range(0, num_rows, 100_000):
            indices = np.arange(start, start + 100_000)
            counts = rng.binomial(16, rng.beta(0.2, 0.3, 100_000))
            rates.observe(Outcomes(indices, counts * 1.0, np.full(100_000, 16.0), (counts > 0) & (counts < 16)))
        selection = PromptSelection(PromptStream(num_rows), rates)
        planner = RefillPlanner(num_groups, 0.9, 4 * num_groups)
        seconds: dict[str, list[float]] = {"stream": [], "decide": [], "plan": [], "learn": []}
        for _ in range(100):
            # The stream is no part of the predictor.
            with timed(seconds["stream"]):
                selection._peek_from(selection.stream.position, 4 * num_groups)
            with timed(seconds["decide"]):
                list(zip(range(2 * num_groups), selection.chances(), strict=False))
            with timed(seconds["plan"]):
                plan = planner.plan(num_groups, chances=selection.chances())
            indices = np.array([draw.index for draw in selection.draw(plan.num_prompts)])
            counts = rng.binomial(16, rng.beta(0.2, 0.3, len(indices)))
            is_informative = (counts > 0) & (counts < 16)
            is_rare = is_informative & (counts <= max_rare_count(16))
            scored = np.full(len(indices), 16.0)
            with timed(seconds["learn"]):
                selection.learn(GroupOutcomes(indices, counts * 1.0, scored, is_informative, is_rare))
        clock = time.process_time()
        state = selection.state_dict()
        save = time.process_time() - clock
        clock = time.process_time()
        selection.load_state_dict(state)
        yield {
            "section": "cost",
            "num_rows": num_rows,
            "num_groups": num_groups,
            "num_prompts": plan.num_prompts,
            # Other work on the machine slows some rounds down, in CPU time too.
            **{f"{name}_ms": 1000 * float(np.percentile(seconds[name], 10)) for name in ("decide", "plan", "learn")},
            # Most draws were looked at for the batch before.
            "stream_ms": 1000 * float(np.mean(seconds["stream"])),
            "median_ms": 1000
            * float(np.median(np.sum([seconds[name] for name in ("decide", "plan", "learn")], axis=0))),
            "megabytes": rates.num_bytes / 1e6,
            "checkpoint_megabytes": len(json.dumps(state)) / 1e6,
            "save_seconds": save,
            "load_seconds": time.process_time() - clock,
        }


# Sections of the short version, each a part of what the full one stores.
SHORT = ("passes", "prior", "cost")
SECTIONS: dict[str, Callable[[bool], Iterator[dict[str, Any]]]] = {
    "passes": lambda short: run_passes(passes_cases(short)),
    "prior": run_prior,
    "rules": lambda short: run_rules(),
    "rounds": lambda short: run_rounds(),
    "reliability": lambda short: run_reliability(),
    "learning": lambda short: run_learning(),
    "cost": run_cost,
}


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Rounds the figures of a record, so that the stored ones are those that the checks saw."""
    return {
        key: round(value, 5) if isinstance(value, float) else rounded(value) if isinstance(value, dict) else value
        for key, value in record.items()
    }


def quick_records() -> list[dict[str, Any]]:
    """Returns the records of a few small cases."""
    case = {
        "num_generations": 16,
        "share": 0.4,
        "num_rows": 1500,
        "num_groups": 16,
        "num_passes": 4,
        "world": "usual",
        "seed": 0,
    }
    return [rounded(record) for record in run_passes([case])]


def main() -> None:
    """Runs the benchmark, or prints its stored tables."""
    parser = argparse.ArgumentParser(description="Selection of prompts on simulated pass rates.")
    parser.add_argument("--short", action="store_true", help="some of the stored cases, written to --output")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=SECTIONS, help="one section; the others are kept as they are in --output")
    parser.add_argument("--quick", action="store_true", help="a few small cases, nothing written")
    parser.add_argument("--markdown", action="store_true", help="print the tables of selection.json, run nothing")
    arguments = parser.parse_args()
    if arguments.markdown:
        records = json.loads(RESULTS.read_text())["records"]
        print(checks_text(check_aims(records), markdown=True), tables(records), sep="\n\n")
        return
    if arguments.quick:
        print(passes_table(quick_records()))
        return
    stored = json.loads(arguments.output.read_text()) if arguments.only and arguments.output.exists() else {}
    sections = dict(stored.get("sections", {}))
    records = [r for r in stored.get("records", []) if r["section"] != arguments.only]
    for name in [arguments.only] if arguments.only else SHORT if arguments.short else SECTIONS:
        start = time.perf_counter()
        new = [rounded(record) for record in SECTIONS[name](arguments.short)]
        sections[name] = provenance(("numpy",)) | {
            "sampling_code_modified": bool(git("status", "--porcelain", "trl_dapo/sampling")),
            "seconds": round(time.perf_counter() - start),
        }
        records += new
        print(TABLES[name](new), f"{sections[name]['seconds']} s", sep="\n\n", flush=True)
    records.sort(key=lambda r: list(SECTIONS).index(r["section"]))
    checks = check_aims(records)
    print(checks_text(checks, markdown=True))
    header = {"sections": sections, "checks": [check._asdict() for check in checks]}
    body = ",\n    ".join(map(json.dumps, records))
    arguments.output.write_text(json.dumps(header, indent=2)[:-2] + f',\n  "records": [\n    {body}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
