"""
What filling a batch with informative groups costs: our refill policies and those of other frameworks, simulated.

Nothing is generated here. A stream says of each sampled group whether it is informative, and how long its completions
are; a policy decides how many groups each round samples and what becomes of the surplus. Ours are the trainer's own
`RefillPlanner`, `RefillLedger` and `PromptStream`, driven as `DynamicSampler.collect` drives them. The others are
written here from a reading of their code (mid-2026):

- `verl 1x`, `verl 3x` (verl-recipe's DAPO): rounds of 1 or 3 batches until the batch is full, the surplus cut and lost; an
  error after 10 rounds.
- `NeMo-RL 2x`: the same with `batch_multiplier` 2; its comparison allows 11 rounds before the error.
- `ms-swift`: rounds of one batch, 3 retries of which the last is generated but not judged; then the *original* batch trains,
  uninformative groups and all, and the accepted groups are lost.
- `one for one` (OpenRLHF, ROLL): one batch in flight, each rejected group replaced by one new one at once. It has no
  rounds: its "rounds" are the longest chain of replacements, its time that of the slowest chain.

Latency model. Completions have lognormal lengths, clipped at the limit. A round takes

    START_SECONDS + longest completion * SECONDS_PER_TOKEN + tokens / throughput,    throughput = slots / SECONDS_PER_TOKEN

which is the bound of list scheduling: the work spread over the engine's slots, then the longest one to its end. An engine
with `idle slots` has 8 slots for each completion of one batch, so that a larger round is nearly free and a second one dear;
a `saturated` one has one slot for 8 completions.

Figures, each over a whole run from the planner's untrained prior on:

- waste: completions generated per completion trained, over the floor 1/p. Trained are only completions of informative
  groups. Since a policy cannot foresee outcomes, generated * p equals the informative groups found in expectation (Wald),
  and the ratio of these to the trained ones has far less sampling error; `raw_waste` is the plain ratio.
- rounds per step.
- seconds per trained group, over those of the fastest policy that never failed.

Run `python benchmarks/refill.py` (under 5 minutes on one core; no GPU, no torch). It writes `benchmarks/refill.json`.
`--markdown` prints the tables of that file, `--quick` runs a few small cases and writes nothing, `--short` runs some of the
cases as they are in that file and writes to `--output`.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from aims import Check, checks_text
from provenance import git

from trl_dapo.sampling.judge import GroupVerdict
from trl_dapo.sampling.prompt_stream import PromptStream
from trl_dapo.sampling.refill_ledger import RefillLedger, SampledGroup
from trl_dapo.sampling.refill_planner import RefillPlanner


RESULTS = Path(__file__).with_name("refill.json")

SEED = 0
FIXED_RATES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95)
DRIFT = (0.7, 0.15)  # acceptance at the first and at the last step
BETA = (0.4, 0.8)  # law of a prompt's accuracy in the mixed streams
NUM_ROWS = 100_000
NUM_STEPS = {16: 200, 64: 200, 512: 40}  # by groups per batch
SHORT = {16: (2, 4, 9, 10), 64: (4,)}  # streams of `make_streams` by groups per batch: the cases that take seconds

MEDIAN_TOKENS, SIGMA_TOKENS, MAX_TOKENS = 600, 0.8, 4096
SECONDS_PER_TOKEN = 0.02
START_SECONDS = 5.0
SLOTS_PER_COMPLETION = {"saturated": 1 / 8, "idle slots": 8.0}  # slots per completion of one batch, by engine
ENGINES = tuple(SLOTS_PER_COMPLETION)

MAX_ROUNDS = 10
MAX_BATCHES_PER_ROUND = 4
MAX_AGE_BATCHES = 1  # `max_off_policy_steps` at its default: a carried group may train in the next batch

CARRY_AIM = 1.03
REQUEUE_AIMS = {64: 1.15, 512: 1.06}


class Samples(NamedTuple):
    """
    What a stream says of some sampled groups.

    Attributes:
        is_informative (`np.ndarray`):
            Whether each group is informative, shape `(n,)`.
        longest (`np.ndarray`):
            Tokens of the longest completion of each group, shape `(n,)`.
        tokens (`np.ndarray`):
            Tokens of each group, shape `(n,)`.
    """

    is_informative: np.ndarray
    longest: np.ndarray
    tokens: np.ndarray


class SimulatedStream:
    """
    Outcomes of sampled groups. They are drawn afresh whenever a prompt is sampled; only its accuracy stays.

    Args:
        name (`str`):
            Name in the tables.
        num_generations (`int`):
            Completions of a group.
        rates (`Sequence[float]`):
            Acceptance rate of each step.
        accuracies (`np.ndarray`, *optional*):
            Accuracy of each dataset row. A group of such a prompt is informative if some but not all of its completions
            are correct; `rates` then holds the mean of that over the rows.
        seed (`int`, *optional*, defaults to `SEED`):
            Seed of the outcomes.
    """

    def __init__(
        self,
        name: str,
        num_generations: int,
        rates: Sequence[float],
        accuracies: np.ndarray | None = None,
        seed: int = SEED,
    ):
        self.name = name
        self.num_generations = num_generations
        self.rates = np.asarray(rates, dtype=float)
        self.num_rows = NUM_ROWS if accuracies is None else len(accuracies)
        self.chances = None if accuracies is None else _informative_chance(accuracies, num_generations)
        self.rng = np.random.default_rng(seed)

    def sample(self, rows: np.ndarray, step: int) -> Samples:
        """Samples one group for each of the dataset rows."""
        chances = self.rates[step] if self.chances is None else self.chances[rows]
        normals = self.rng.standard_normal((len(rows), self.num_generations), dtype=np.float32)
        lengths = np.clip(MEDIAN_TOKENS * np.exp(np.float32(SIGMA_TOKENS) * normals), 1, MAX_TOKENS)
        return Samples(self.rng.random(len(rows)) < chances, lengths.max(axis=1), lengths.sum(axis=1, dtype=float))


def _informative_chance(accuracies: np.ndarray, num_generations: int) -> np.ndarray:
    """P(0 < Binomial(G, a) < G)."""
    return 1.0 - accuracies**num_generations - (1.0 - accuracies) ** num_generations


def make_streams(num_steps: int, seed: int = SEED) -> list[Callable[[], SimulatedStream]]:
    """Returns makers of the streams, so that every policy meets a fresh one with the same seed."""

    def fixed(rate: float) -> Callable[[], SimulatedStream]:
        return lambda: SimulatedStream(f"{rate:g}", 8, [rate] * num_steps, seed=seed)

    def mixed(num_generations: int) -> Callable[[], SimulatedStream]:
        accuracies = np.random.default_rng(seed).beta(*BETA, size=NUM_ROWS)
        rate = float(_informative_chance(accuracies, num_generations).mean())
        name = f"mixed, G={num_generations} ({rate:.2f})"
        return lambda: SimulatedStream(name, num_generations, [rate] * num_steps, accuracies, seed)

    def drifting() -> SimulatedStream:
        return SimulatedStream(f"{DRIFT[0]:g} to {DRIFT[1]:g}", 8, np.linspace(*DRIFT, num_steps), seed=seed)

    return [*map(fixed, FIXED_RATES), mixed(8), mixed(16), drifting]


def round_seconds(longest: float, tokens: float, num_slots: float) -> float:
    """
    Seconds of a round whose longest completion, or longest chain of completions, has `longest` tokens.

    >>> round_seconds(longest=1000, tokens=8000, num_slots=16)
    35.0
    """
    return START_SECONDS + SECONDS_PER_TOKEN * (longest + tokens / num_slots)


@dataclass
class Tally:
    """
    What a run of one policy cost.

    Attributes:
        num_groups (`int`):
            Groups of a full batch.
        stream (`SimulatedStream`):
            Stream that the run samples.
        num_generated (`int`):
            Groups sampled.
        num_trained (`int`):
            Informative groups trained.
        num_rounds (`int`):
            Rounds.
        num_failed (`int`):
            Steps that did not train a full batch of informative groups.
        found (`list[float]`):
            Informative groups sampled, one value per step, each group weighted by 1/p of its step.
        trained (`list[float]`):
            Informative groups trained, one value per step, each weighted by 1/p of the step that sampled it.
        seconds (`dict[str, float]`):
            Seconds by engine.
    """

    num_groups: int
    stream: SimulatedStream
    num_generated: int = 0
    num_trained: int = 0
    num_rounds: int = 0
    num_failed: int = 0
    found: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ENGINES, 0.0))

    def begin_step(self) -> None:
        """Counts what follows in a new step."""
        self.found.append(0.0)
        self.trained.append(0.0)

    def sampled(self, samples: Samples, step: int) -> None:
        """Counts groups that were sampled."""
        self.num_generated += len(samples.tokens)
        self.found[-1] += float(samples.is_informative.sum()) / self.stream.rates[step]

    def round_ended(self, longest: float, tokens: float, num_rounds: int = 1) -> dict[str, float]:
        """Counts a round, and returns its seconds by engine."""
        self.num_rounds += num_rounds
        completions = self.num_groups * self.stream.num_generations
        seconds = {
            engine: round_seconds(longest, tokens, share * completions)
            for engine, share in SLOTS_PER_COMPLETION.items()
        }
        for engine, value in seconds.items():
            self.seconds[engine] += value
        return seconds

    def sampled_round(self, samples: Samples, step: int) -> dict[str, float]:
        """Counts a round of groups sampled side by side, and returns its seconds by engine."""
        self.sampled(samples, step)
        return self.round_ended(float(samples.longest.max()), float(samples.tokens.sum()))

    def trains(self, num_informative: int, step: int) -> None:
        """Counts informative groups, sampled in `step`, that train."""
        self.num_trained += num_informative
        self.trained[-1] += num_informative / self.stream.rates[step]

    def figures(self, engine: str) -> dict[str, Any]:
        """Returns the figures of the run. `None` where nothing was trained."""
        found, trained = np.array(self.found), np.array(self.trained)
        floor, num_steps = trained.sum(), len(self.found)
        waste = float(found.sum() / floor) if floor else None
        # Standard error of a ratio of sums, the steps taken as independent.
        error = float(np.sqrt(((found - waste * trained) ** 2).sum()) / floor) if floor else None
        return {
            "waste": waste,
            "waste_error": error,
            "raw_waste": float(self.num_generated / floor) if floor else None,
            "completions_per_trained": self.num_generated / self.num_trained if self.num_trained else None,
            "rounds_per_step": self.num_rounds / num_steps,
            "seconds_per_trained_group": self.seconds[engine] / self.num_trained if self.num_trained else None,
            "frac_failed_steps": self.num_failed / num_steps,
        }


def run_ours(
    stream: SimulatedStream,
    num_groups: int,
    num_steps: int,
    surplus: str,
    confidence: float | None,
    engine: str = ENGINES[0],
) -> Tally:
    """
    Our policy, by the trainer's own planner, collection and stream.

    Args:
        stream (`SimulatedStream`):
            Outcomes.
        num_groups (`int`):
            Groups of a full batch.
        num_steps (`int`):
            Batches to fill.
        surplus (`str`):
            `"requeue"` or `"carry"`.
        confidence (`float` or `None`):
            `refill_confidence`.
        engine (`str`, *optional*):
            Engine whose seconds the planner observes. Without effect unless `confidence` is `None`.
    """
    prompts = PromptStream(stream.num_rows, shuffle=False)
    planner = RefillPlanner(
        num_groups,
        confidence,
        max_prompts=MAX_BATCHES_PER_ROUND * num_groups,
        keeps_surplus=surplus == "carry",
    )
    tally = Tally(num_groups, stream)
    carried: list[SampledGroup] = []
    for step in range(num_steps):
        tally.begin_step()
        collection = RefillLedger(
            num_groups,
            next_position=prompts.position,
            keeps_surplus=surplus == "carry",
            carried=[group for group in carried if step - group.policy_step <= MAX_AGE_BATCHES],
        )
        while collection.num_missing and collection.num_rounds < MAX_ROUNDS:
            draws = prompts.peek(planner.plan(collection.num_missing, MAX_ROUNDS - collection.num_rounds).num_prompts)
            prompts.seek(draws[-1].position + 1)
            samples = stream.sample(np.array([draw.index for draw in draws]), step)
            seconds = tally.sampled_round(samples, step)
            planner.observe(int(samples.is_informative.sum()), len(draws), seconds[engine])
            collection.add_round(
                [
                    SampledGroup(
                        draw, GroupVerdict.INFORMATIVE if good else GroupVerdict.ALL_WRONG, [], [], [], [], [], step
                    )
                    for draw, good in zip(draws, samples.is_informative.tolist(), strict=True)
                ]
            )
        prompts.seek(collection.next_position)
        for group in collection.accepted:
            tally.trains(1, group.policy_step)
        tally.num_failed += collection.num_missing > 0
        carried = collection.surplus if surplus == "carry" else []
    return tally


class _Cursor:
    """Takes the next dataset rows, pass after pass."""

    def __init__(self, num_rows: int):
        self.num_rows, self.position = num_rows, 0

    def take(self, num_prompts: int) -> np.ndarray:
        rows = np.arange(self.position, self.position + num_prompts) % self.num_rows
        self.position += num_prompts
        return rows


def run_fixed_rounds(
    stream: SimulatedStream, num_groups: int, num_steps: int, multiplier: int, max_rounds: int
) -> Tally:
    """
    Rounds of `multiplier` batches, accepted groups kept within the step, the surplus lost (verl, NeMo-RL).

    A step that is not full after `max_rounds` is an error: it trains nothing. A real run ends there; this one goes on, to
    count how often it happens.
    """
    cursor, tally = _Cursor(stream.num_rows), Tally(num_groups, stream)
    for step in range(num_steps):
        tally.begin_step()
        num_accepted = num_rounds = 0
        while num_accepted < num_groups and num_rounds < max_rounds:
            samples = stream.sample(cursor.take(multiplier * num_groups), step)
            tally.sampled_round(samples, step)
            num_accepted += int(samples.is_informative.sum())
            num_rounds += 1
        if num_accepted >= num_groups:
            tally.trains(num_groups, step)
        else:
            tally.num_failed += 1
    return tally


def run_ms_swift(stream: SimulatedStream, num_groups: int, num_steps: int, max_retries: int = 3) -> Tally:
    """Rounds of one batch; after `max_retries`, the last of them not judged, the original batch trains."""
    cursor, tally = _Cursor(stream.num_rows), Tally(num_groups, stream)
    for step in range(num_steps):
        tally.begin_step()
        samples = stream.sample(cursor.take(num_groups), step)
        tally.sampled_round(samples, step)
        num_original = num_accepted = int(samples.is_informative.sum())
        for retry in range(max_retries):
            if num_accepted >= num_groups:
                break
            samples = stream.sample(cursor.take(num_groups), step)
            tally.sampled_round(samples, step)
            if retry < max_retries - 1:
                num_accepted += int(samples.is_informative.sum())
        if num_accepted >= num_groups:
            tally.trains(num_groups, step)
        else:
            tally.trains(num_original, step)
            tally.num_failed += 1
    return tally


def run_one_for_one(stream: SimulatedStream, num_groups: int, num_steps: int) -> Tally:
    """One batch in flight; each rejected group is replaced by one new one as soon as it is done (OpenRLHF, ROLL)."""
    cursor, tally = _Cursor(stream.num_rows), Tally(num_groups, stream)
    for step in range(num_steps):
        tally.begin_step()
        chain_tokens = np.zeros(num_groups)
        open_chains, tokens, num_links = np.arange(num_groups), 0.0, 0
        while len(open_chains):
            samples = stream.sample(cursor.take(len(open_chains)), step)
            tally.sampled(samples, step)
            chain_tokens[open_chains] += samples.longest
            tokens += float(samples.tokens.sum())
            open_chains = open_chains[~samples.is_informative]
            num_links += 1
        tally.round_ended(float(chain_tokens.max()), tokens, num_rounds=num_links)
        tally.trains(num_groups, step)
    return tally


Policy = Callable[[SimulatedStream, int, int], Tally]

PEERS: dict[str, Policy] = {
    "verl 1x": lambda *run: run_fixed_rounds(*run, multiplier=1, max_rounds=10),
    "verl 3x": lambda *run: run_fixed_rounds(*run, multiplier=3, max_rounds=10),
    "NeMo-RL 2x": lambda *run: run_fixed_rounds(*run, multiplier=2, max_rounds=11),
    "ms-swift": run_ms_swift,
    "one for one": run_one_for_one,
}
OURS = {
    "requeue 0.9": ("requeue", 0.9),
    "requeue None": ("requeue", None),
    "carry 0.9": ("carry", 0.9),
    "carry None": ("carry", None),
}


def run_policy(name: str, make_stream: Callable[[], SimulatedStream], num_groups: int, num_steps: int) -> list[Tally]:
    """Returns the run of a policy for each engine; only `refill_confidence=None` depends on it."""
    if name in PEERS:
        return [PEERS[name](make_stream(), num_groups, num_steps)] * len(ENGINES)
    surplus, confidence = OURS[name]
    if confidence is not None:
        return [run_ours(make_stream(), num_groups, num_steps, surplus, confidence)] * len(ENGINES)
    return [run_ours(make_stream(), num_groups, num_steps, surplus, confidence, engine) for engine in ENGINES]


def run_all(num_steps: dict[int, int], stream_numbers: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """
    Returns one record per batch size, stream, engine and policy.

    Args:
        num_steps (`dict[int, int]`):
            Steps by groups of a batch.
        stream_numbers (`Iterable[int]`, *optional*):
            Which streams of `make_streams`. `None`: all.
    """
    records = []
    for num_groups, steps in num_steps.items():
        makers = make_streams(steps)
        for number in range(len(makers)) if stream_numbers is None else stream_numbers:
            stream = makers[number]().name
            for policy in (*OURS, *PEERS):
                tallies = run_policy(policy, makers[number], num_groups, steps)
                for engine, tally in zip(ENGINES, tallies, strict=True):
                    where = {"num_groups": num_groups, "stream": stream, "engine": engine, "policy": policy}
                    records.append(where | tally.figures(engine))
    for case in _cases(records):
        best = min(
            (r["seconds_per_trained_group"] for r in case if not r["frac_failed_steps"]),
            default=None,
        )
        for record in case:
            seconds = record["seconds_per_trained_group"]
            record["relative_seconds"] = seconds / best if best and seconds else None
    # Rounded here and not when written, so that the stored figures are those that the checks saw.
    return [{k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()} for record in records]


def _cases(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups the records by batch size, stream and engine."""
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        cases.setdefault((record["num_groups"], record["stream"], record["engine"]), []).append(record)
    return list(cases.values())


def check_aims(records: list[dict[str, Any]]) -> list[Check]:
    """Returns what became of the aims. Waste is compared as measured, without allowance for sampling error."""
    checks = []
    for policy in OURS:
        mine = [r for r in records if r["policy"] == policy]
        for num_groups in sorted({r["num_groups"] for r in mine}):
            aim = CARRY_AIM if policy.startswith("carry") else REQUEUE_AIMS.get(num_groups)
            if aim is None:
                continue
            here = [r for r in mine if r["num_groups"] == num_groups and not _is_repeat(r)]
            misses = [r for r in here if r["waste"] > aim]
            detail = f"worst {_case_text(max(here, key=lambda r: r['waste']))}"
            if misses:
                detail += f"; misses in {len(misses)} of {len(here)} cases"
            checks.append(
                Check(f"{policy}, {num_groups} groups: waste at most {aim:g} of the floor", not misses, detail)
            )
    for policy in OURS:
        losses, num_cases = [], 0
        for case in _cases(records):
            mine = next(r for r in case if r["policy"] == policy)
            if not _is_repeat(mine):
                num_cases += 1
                losses += [(mine, peer) for peer in case if peer["policy"] in PEERS and dominates(peer, mine)]
        detail = f"{num_cases} cases"
        if losses:
            detail = f"loses in {len(losses)} of {num_cases} cases: " + "; ".join(
                f"{_case_text(mine)} in {mine['rounds_per_step']:.2f} rounds, {peer['policy']} "
                f"{peer['waste']:.3f} in {peer['rounds_per_step']:.2f}"
                for mine, peer in losses
            )
        checks.append(Check(f"{policy}: dominated by no peer in (waste, rounds)", not losses, detail))
    return checks


def _is_repeat(record: dict[str, Any]) -> bool:
    """Whether the record is of the same run as that of the first engine: only `None` looks at seconds."""
    return OURS[record["policy"]][1] is not None and record["engine"] != ENGINES[0]


def dominates(peer: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether a peer is no worse in waste and in rounds, and better in one. A peer with failed steps is not counted."""
    if peer["frac_failed_steps"]:
        return False
    is_no_worse = peer["waste"] <= ours["waste"] and peer["rounds_per_step"] <= ours["rounds_per_step"]
    return is_no_worse and (peer["waste"] < ours["waste"] or peer["rounds_per_step"] < ours["rounds_per_step"])


def _case_text(record: dict[str, Any]) -> str:
    engine = "" if OURS[record["policy"]][1] is not None else f", {record['engine']}"
    return (
        f"{record['waste']:.3f} +- {record['waste_error']:.3f} "
        f"({record['num_groups']} groups, p = {record['stream']}{engine})"
    )


def _cell(record: dict[str, Any]) -> str:
    failed = record["frac_failed_steps"]
    if record["waste"] is None:
        return "fails"
    seconds = "-" if record["relative_seconds"] is None else f"{record['relative_seconds']:.2f}"
    text = f"{record['waste']:.2f} / {record['rounds_per_step']:.1f} / {seconds}"
    return text + (f" ({math.ceil(100 * failed)}% bad)" if failed else "")


def tables(records: list[dict[str, Any]], markdown: bool = False) -> str:
    """Returns a table per batch size and engine: waste / rounds per step / relative seconds."""
    blocks = []
    columns = [*OURS, *PEERS]
    titles = sorted({(r["num_groups"], r["engine"]) for r in records}, key=lambda t: (t[0], ENGINES.index(t[1])))
    for num_groups, engine in titles:
        cases = [
            case for case in _cases(records) if (case[0]["num_groups"], case[0]["engine"]) == (num_groups, engine)
        ]
        rows = [["p", *columns]]
        for case in cases:
            by_policy = {record["policy"]: _cell(record) for record in case}
            rows.append([case[0]["stream"], *(by_policy[column] for column in columns)])
        title = f"{num_groups} groups per batch, engine {'saturated' if engine == 'saturated' else 'with idle slots'}"
        if markdown:
            lines = ["| " + " | ".join(row) + " |" for row in rows]
            lines.insert(1, "|" + "---|" * len(rows[0]))
            blocks.append("\n".join([f"**{title}**", "", *lines]))
        else:
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
            blocks.append("\n".join([title, *(line.rstrip() for line in lines)]))
    return "\n\n".join(blocks)


def environment() -> dict[str, Any]:
    """Returns what a reader needs to repeat the run."""
    return {
        "commit": git("rev-parse", "HEAD"),
        "sampling_code_modified": bool(git("status", "--porcelain", "trl_dapo/sampling")),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "seed": SEED,
        "num_steps": {str(size): steps for size, steps in NUM_STEPS.items()},
        "drift": DRIFT,
        "beta": BETA,
        "num_rows": NUM_ROWS,
        "median_tokens": MEDIAN_TOKENS,
        "sigma_tokens": SIGMA_TOKENS,
        "max_tokens": MAX_TOKENS,
        "seconds_per_token": SECONDS_PER_TOKEN,
        "start_seconds": START_SECONDS,
        "slots_per_completion": SLOTS_PER_COMPLETION,
        "max_rounds": MAX_ROUNDS,
        "max_batches_per_round": MAX_BATCHES_PER_ROUND,
        "max_age_batches": MAX_AGE_BATCHES,
    }


def write_results(path: Path, header: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Writes the JSON, one record per line."""
    body = ",\n    ".join(map(json.dumps, records))
    path.write_text(json.dumps(header, indent=2)[:-2] + f',\n  "records": [\n    {body}\n  ]\n}}\n')


def quick_records() -> list[dict[str, Any]]:
    """Returns the records of a few small cases."""
    return run_all({16: 40}, stream_numbers=(2, 4, 9))


def short_records() -> list[dict[str, Any]]:
    """Returns the records of some cases, as long as they are in the stored results."""
    return [record for size, numbers in SHORT.items() for record in run_all({size: NUM_STEPS[size]}, numbers)]


def main() -> None:
    """Runs the benchmark, or prints its stored tables."""
    parser = argparse.ArgumentParser(description="Refill policies on simulated streams.")
    parser.add_argument("--short", action="store_true", help="some of the stored cases, written to --output")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a few small cases, nothing written")
    parser.add_argument("--markdown", action="store_true", help="print the tables of refill.json, run nothing")
    arguments = parser.parse_args()
    if arguments.markdown:
        records = json.loads(RESULTS.read_text())["records"]
        print(checks_text(check_aims(records), markdown=True), tables(records, markdown=True), sep="\n\n")
        return
    header, start = environment(), time.perf_counter()  # of the code as it was imported
    records = quick_records() if arguments.quick else short_records() if arguments.short else run_all(NUM_STEPS)
    seconds = time.perf_counter() - start
    checks = check_aims(records)
    print("Waste over the floor 1/p / rounds per step / seconds per trained group over the fastest policy's.\n")
    print(tables(records), checks_text(checks), f"{seconds:.0f} s", sep="\n\n")
    if not arguments.quick:
        header |= {"seconds": round(seconds), "checks": [check._asdict() for check in checks]}
        write_results(arguments.output, header, records)


if __name__ == "__main__":
    main()
