"""
How dynamic sampling scales from 8 to 1,024 ranks with the paper's batch: what is measured here, and what it amounts to.

    python benchmarks/scaling.py                # about 5 CPU minutes on one core; writes benchmarks/scaling.json
    python benchmarks/scaling.py --overlap      # the simulation of `overlap=True` alone, 3 minutes; the rest stays as it is
    python benchmarks/scaling.py --markdown     # prints the tables of that file and runs nothing
    python benchmarks/scaling.py --short --output FILE     # 1,024 ranks only, and less of the rest

There is no cluster here. So three things are put together:

- measured: what one rank of W does for a batch (CPU seconds), and what it sends and gets (bytes): `lone_rank.py`, the
  product's own `DynamicSampler` with the other ranks foretold; planner, stream, filter and layout alone, for rounds of 512 to
  16,384 groups; and what all-gather and all-to-all put on the wire with 2 and 4 gloo processes, to check the count of bytes.
- simulated: when the engines are done (`streaming_simulation.py`: the decisions are the product's).
- assumed: `ASSUMED`. Engine rates, lengths and the time of training are those of docs/recipes.md.
"""

import argparse
import gc
import json
import pickle
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lone_rank import NUM_REWARDS, NUM_ROWS, PROMPT_TOKENS, LoneRun
from provenance import provenance
from scaling_tables import markdown
from streaming import PAPER
from streaming_engines import Outcomes, Setting, StepCost
from streaming_simulation import POLICIES
from wire_bytes import measure_wire

from trl_dapo.report.batch_metrics import ledger_metrics
from trl_dapo.sampling.judge import GroupJudge, Location, RowFacts
from trl_dapo.sampling.placement import place_groups
from trl_dapo.sampling.prompt_stream import PromptStream
from trl_dapo.sampling.refill_ledger import RefillLedger
from trl_dapo.sampling.refill_planner import RefillPlanner


RESULTS = Path(__file__).with_name("scaling.json")
NUM_RANKS = (8, 32, 128, 512, 1024)
NUM_GROUPS = (512, 1024, 2048, 4096, 8192)  # of a batch, for what does not depend on ranks
RATE = 0.5  # streaming.json has others
# A policy of `streaming_simulation.py`, and the fields of `DAPOConfig` that it stands for.
OPTIONS: dict[str, dict[str, Any]] = {
    "rounds": {},
    "rounds, carry": {"surplus": "carry"},
    "stream": {"refill": "stream"},
    "stream, carry": {"refill": "stream", "surplus": "carry"},
}
NUM_BATCHES, NUM_WARM = 3, 2
# With `overlap=True` some ranks sample and the others train: shares of the ranks that sample.
SHARES = (0.25, 0.5, 0.625, 0.75)
OVERLAPPED = ("stream", "stream, carry")
ASSUMED: dict[str, Any] = {
    "rate": RATE,
    "batch": {name: value for name, value in PAPER.items() if name != "cost"} | {"prompt_tokens": PROMPT_TOKENS},
    "models": {
        # Ranks that share an engine, tokens a second of an engine with all its slots busy, and parameters.
        "7B, an engine on each rank": {"ranks_per_engine": 1, "tokens_per_second": 5000, "parameters": 7.616e9},
        "32B, an engine on 4 ranks": {"ranks_per_engine": 4, "tokens_per_second": 4000, "parameters": 32.76e9},
    },
    "slots": PAPER["num_slots"],
    "seconds_of_a_step_with_one_sequence": 0.020,
    "training_flops_per_rank": 4e14,
    "ranks_per_node": 8,
    "bytes_per_second_of_a_node": 25e9,
    # A collective takes this for each rank: as in a ring of one hop after another.
    "collective_seconds_per_rank": 20e-6,
    # Of TRL 1.16: lengths, truncation and rewards of a round; objects, advantages and figures of a batch.
    "collectives_of_trl": {"round": 4, "batch": 12},
    "bytes_of_text_per_token": 4,
}


def cost_of(model: dict[str, Any]) -> StepCost:
    """Returns the cost of a step: a full engine makes so many tokens a second."""
    begin, slots = ASSUMED["seconds_of_a_step_with_one_sequence"], ASSUMED["slots"]
    return StepCost(begin, (slots / model["tokens_per_second"] - begin) / slots)


def measure_rank(num_ranks: int, policy: str) -> dict[str, Any]:
    """Returns the CPU seconds and bytes of a batch on one of so many ranks: medians over batches after the warm ones."""
    run = LoneRun(Setting(**(PAPER | {"rate": RATE, "num_ranks": num_ranks})), use_vllm=True, **OPTIONS[policy])
    # Its pauses are those of a process that holds much, and fall on whatever is done at the moment.
    gc.collect()
    gc.disable()
    batches = []
    for number in range(NUM_WARM + NUM_BATCHES):
        for counter in (run.watch.seconds, run.ranks.sent, run.ranks.received):
            counter.clear()
        collection = run.next_batch(number)
        batches.append(
            {
                "prompts": len(collection.sampled),
                "rounds": collection.num_rounds,
                "seconds": dict(run.watch.seconds),
                "sent": dict(run.ranks.sent),
                "received": dict(run.ranks.received),
            }
        )
    gc.enable()
    return {"ranks": num_ranks, "policy": policy} | _medians(batches[NUM_WARM:])


def _medians(batches: list[Any]) -> Any:
    if isinstance(batches[0], dict):
        names = sorted({name for batch in batches for name in batch})
        return {name: _medians([batch.get(name, 0) for batch in batches]) for name in names}
    return round(statistics.median(batches), 6)


def measure_decisions(num_groups: int) -> dict[str, Any]:
    """Returns the CPU seconds of what every rank decides for a batch of so many groups, twice as many sampled."""
    generations, num_prompts = PAPER["num_generations"], 2 * num_groups
    planners = [RefillPlanner(num_groups, confidence, 4 * num_groups) for confidence in (0.9, None)]
    for planner in planners:
        planner.observe(num_groups, num_prompts, 100.0)
        planner.observe(num_groups // 2, num_groups, 60.0)
    stream = PromptStream(NUM_ROWS)
    draws = stream.peek(num_prompts)
    facts = [RowFacts(PROMPT_TOKENS, 1000, 0)] * (num_prompts * generations)
    rewards = [[float(row // generations % 2 and row % 2), 0.0] for row in range(len(facts))]
    locations = [Location(0, row * 1024 // len(facts), row % 16) for row in range(len(facts))]
    judge = GroupJudge(filter_columns=[0])
    groups = judge.judge(draws, rewards, facts, locations)

    def collect() -> RefillLedger:
        collection = RefillLedger(num_groups, next_position=0)
        collection.add_round(groups, 1.0)
        return collection

    sources = [[at.rank for at in group.locations] for group in collect().accepted]
    return {
        "groups": num_groups,
        "plan, 0.9": _seconds(lambda: planners[0].plan(num_groups)),
        "plan, None": _seconds(lambda: planners[1].plan(num_groups)),
        "draw": _seconds(lambda: stream.peek(num_prompts)),
        "judge": _seconds(lambda: judge.judge(draws, rewards, facts, locations)),
        "select and count": _seconds(lambda: ledger_metrics(collect())),
        "lay out on 1,024 ranks": _seconds(lambda: place_groups(sources, num_groups, generations, 1024)),
    }


def _seconds(work: Callable[[], Any]) -> float:
    """Returns the least CPU seconds of three times."""
    from trl_dapo.sampling import refill_planner

    spent = []
    for _ in range(3):
        refill_planner._fewest_trials.cache_clear()
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return round(min(spent), 6)


def simulate_decoding(model: str, num_ranks: int, policy: str, num_sampling: int | None = None) -> dict[str, Any]:
    """
    Returns seconds and tokens of a batch, and what its tokens take with all slots of all engines busy.

    Args:
        model (`str`), num_ranks (`int`), policy (`str`):
            One of `ASSUMED["models"]`, the ranks there are, and one of `OPTIONS`.
        num_sampling (`int`, *optional*):
            How many of the ranks sample while the others train. `None`: all of them sample, and then train.
    """
    assumed = ASSUMED["models"][model]
    num_engines = (num_sampling or num_ranks) // assumed["ranks_per_engine"]
    setting = Setting(**(PAPER | {"rate": RATE, "num_ranks": num_engines, "cost": cost_of(assumed)}))
    outcomes = Outcomes(setting)
    run = POLICIES[policy](setting, outcomes)
    batches = [run.next_batch() for _ in range(NUM_WARM + NUM_BATCHES)][NUM_WARM:]
    tokens = statistics.mean(batch.generated_tokens for batch in batches)
    trained = [[sum(outcomes.lengths(position)) for position in batch.trained] for batch in batches]
    num_training = num_ranks - (num_sampling or 0)
    return {
        "model": model,
        "ranks": num_ranks,
        **({} if num_sampling is None else {"sampling": num_sampling}),
        "policy": policy,
        "seconds": round(statistics.mean(batch.seconds for batch in batches), 2),
        "busy_seconds": round(tokens / num_engines / assumed["tokens_per_second"], 2),
        "tokens": round(tokens),
        "trained_tokens": round(statistics.mean(map(sum, trained))),
        # TRL gathers the texts of a batch as objects, padded to those of the rank that has most.
        "padding_of_texts": round(statistics.mean(_padding(lengths, num_training) for lengths in trained), 3),
    }


def _padding(lengths: list[int], num_ranks: int) -> float:
    """Returns how much larger a batch is when each rank's part is as large as the largest; groups dealt over the ranks."""
    parts = [sum(lengths[rank::num_ranks]) for rank in range(min(num_ranks, len(lengths)))]
    return max(parts) * len(parts) / sum(parts)


def simulate_overlap(num_ranks: Sequence[int]) -> list[dict[str, Any]]:
    """Returns what the ranks that sample take for a batch, for each share of the ranks that is whole engines."""
    rows = []
    for model, assumed in ASSUMED["models"].items():
        for count in num_ranks:
            for num_sampling in (share * count for share in SHARES):
                if num_sampling % assumed["ranks_per_engine"] == 0:
                    rows += [simulate_decoding(model, count, policy, int(num_sampling)) for policy in OVERLAPPED]
    return rows


def measure_unpickling() -> float:
    """Returns the CPU seconds that a byte of gathered texts takes to be taken apart."""
    texts = pickle.dumps(["a word or two " * 1500 for _ in range(512)])
    return _seconds(lambda: pickle.loads(texts)) / len(texts)


def measure(num_ranks: Sequence[int], num_groups: Sequence[int], num_processes: Sequence[int]) -> dict[str, Any]:
    """Returns everything that is measured and simulated."""
    work, decoding = [], []
    for count in num_ranks:
        work += [measure_rank(count, policy) for policy in OPTIONS]
        for model, assumed in ASSUMED["models"].items():
            # Streaming has an engine for itself on each rank.
            policies = [name for name in OPTIONS if "stream" not in name or assumed["ranks_per_engine"] == 1]
            decoding += [simulate_decoding(model, count, name) for name in policies]
    grading = json.loads(RESULTS.with_name("grading.json").read_text())["results"]["latex_expressions"]["per_second"]
    return {
        "assumed": ASSUMED,
        "rank_work": work,
        "decisions": [measure_decisions(size) for size in num_groups],
        "decoding": decoding,
        "overlap": simulate_overlap(num_ranks),
        "wire": measure_wire(num_processes),
        "seconds_to_unpickle_a_byte": measure_unpickling(),
        "seconds_to_grade": 1 / grading,
        "num_rewards": NUM_REWARDS,
    }


def main() -> None:
    """Measures, or prints the stored tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--markdown", action="store_true", help="print the tables of the JSON and run nothing")
    parser.add_argument("--short", action="store_true", help="1,024 ranks only, and less of the rest")
    parser.add_argument("--overlap", action="store_true", help="simulate overlap=True alone; the rest stays as it is")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.markdown:
        print(markdown(json.loads(args.output.read_text())))
        return
    if args.overlap:
        record = json.loads(args.output.read_text()) | {"overlap": simulate_overlap(NUM_RANKS)}
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        print(markdown(record))
        return
    record = provenance(("numpy", "torch", "trl"))
    record |= measure((1024,), NUM_GROUPS[:2], (2,)) if args.short else measure(NUM_RANKS, NUM_GROUPS, (2, 4))
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(markdown(record))


if __name__ == "__main__":
    main()
