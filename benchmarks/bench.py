"""
Runs the short version of every benchmark and compares its figures with the stored ones.

    python benchmarks/bench.py                             # all of them, under 20 minutes on 2 cores; stores nothing
    python benchmarks/bench.py --only refill streaming     # some of them
    python benchmarks/bench.py --gsm8k FILE.jsonl          # grades GSM8K too
    python benchmarks/bench.py --keep FOLDER               # leaves the short results there
    python benchmarks/bench.py --compare FOLDER            # compares what an earlier run left, and runs nothing

A short version measures some of the cells of the full one, with the same settings, so that each of its figures has a
stored one beside it. What is computed has to be equal; what is measured may differ by its sampling error; of times only
ratios are compared, since no two machines take as long. The exit status is 1 if a figure lies outside.

`BENCHMARKS` is the one place where a benchmark is added.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import Measured, Row, Tolerance, at_most, compare, equal, flatten, median, within_errors, within_factor


HERE = Path(__file__).parent
TIMEOUT_SECONDS = 1800


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark with a short version: `python benchmarks/<name>.py --short --output FILE` writes what the full one stores.

    Attributes:
        name (`str`):
            Of the program and of the stored JSON.
        figures (`Callable[[Any], dict[str, Measured]]`):
            Returns the figures of a record by name, of the stored one and of a short one.
        tolerances (`Sequence[Tolerance]`):
            What they may differ by.
    """

    name: str
    figures: Callable[[Any], dict[str, Measured]]
    tolerances: Sequence[Tolerance]


def _refill(record: Mapping[str, Any]) -> dict[str, Measured]:
    return flatten(record["records"], keys=("num_groups", "stream", "engine", "policy"))


def _grading(record: Mapping[str, Any]) -> dict[str, Measured]:
    results = record["results"]
    kinds = [kind for kind in ("gsm8k_integers", "latex_expressions") if kind in results]
    return flatten({kind: {name: results[kind][name] for name in ("speedup", "right", "trl_right")} for kind in kinds})


def _overhead(record: Mapping[str, Any]) -> dict[str, Measured]:
    return {name: median(values) for name, values in record["figures"].items()}


def _streaming(record: Mapping[str, Any]) -> dict[str, Measured]:
    # Batch by batch: the first ones of a case are the same however many follow.
    return flatten(record["simulated"]["records"], keys=("case", "rate", "is_scarce"))


def _overlap(record: Mapping[str, Any]) -> dict[str, Measured]:
    names = ("times_faster", "over_longer_part")
    return flatten({f"ratio {row['ratio']:g}": {name: row[name] for name in names} for row in record["results"]})


def _splits(record: Mapping[str, Any]) -> dict[str, Measured]:
    rows = record["largest_relative_deviation"]
    return flatten(
        {" x ".join(map(str, row["shape"])): {arm: row[arm] for arm in row if arm != "shape"} for row in rows}
    )


def _scaling(record: Mapping[str, Any]) -> dict[str, Measured]:
    keys = ("ranks", "policy", "model")
    figures = {"decoding": record["decoding"], "wire": [row["seen"] / row["counted"] for row in record["wire"]]}
    # Streaming depends on when a thread is done with its grading.
    in_rounds = [row for row in record["rank_work"] if row["policy"].startswith("rounds")]
    figures["moved"] = [{name: row[name] for name in (*keys[:2], "prompts", "sent", "received")} for row in in_rounds]
    of_batch = {str(row["groups"]): row for row in record["decisions"]}
    # Times by that of the filter in the same run.
    figures["decisions"] = {
        size: {name: row[name] / row["judge"] for name in ("draw", "select and count", "plan, None")}
        for size, row in of_batch.items()
    }
    return flatten(figures, keys=keys)


def _ablation(record: Mapping[str, Any]) -> dict[str, Measured]:
    curves = {arm: {seed: run["curve"] for seed, run in runs.items()} for arm, runs in record["results"].items()}
    points = flatten(curves, keys=("step",))
    return {name: value for name, value in points.items() if name.endswith(("/accuracy", "/completions"))}


def _selection(record: Mapping[str, Any]) -> dict[str, Measured]:
    keys = (
        "section",
        "num_generations",
        "share",
        "num_rows",
        "num_groups",
        "world",
        "seed",
        "arm",
        "window",
        "column",
    )
    cost = [row for row in record["records"] if row["section"] == "cost"]
    # Times by that of the plan in the same run.
    times = {
        f"{row['num_rows']} rows, {row['num_groups']} groups": {
            name: row[f"{name}_ms"] / row["plan_ms"] for name in ("decide", "learn")
        }
        for row in cost
    }
    rest = [row for row in record["records"] if row["section"] in ("passes", "prior")]
    return flatten({"simulated": rest, "times": times}, keys=keys)


def _space(record: Mapping[str, Any]) -> dict[str, Measured]:
    figures = dict(record["figures"])
    # Reading and searching 140 MB, by the time that it takes to make them: two things in one run.
    making = figures["seconds_making_and_writing"]
    ratios = {f"{name} / making": figures[name] / making for name in ("seconds_to_open", "seconds_rare_text")}
    counts = {name: value for name, value in figures.items() if not name.startswith(("seconds", "megabytes"))}
    return flatten(counts | ratios)


BENCHMARKS = (
    Benchmark("refill", _refill, [equal("*")]),
    Benchmark("streaming", _streaming, [equal("*")]),
    # Batches of the short version are four times shorter, so that what each costs weighs more.
    Benchmark("overlap", _overlap, [within_factor("*times_faster", 1.3), within_factor("*over_longer_part", 1.3)]),
    Benchmark(
        "split_invariance",
        _splits,
        # Ours are rounding errors. TRL's is what its denominator is off by, or a rounding error too.
        [at_most("*/batch", 1e-5), at_most("*/group", 1e-5), within_errors("*/TRL", floor=0.01)],
    ),
    Benchmark(
        "overhead",
        _overhead,
        [
            within_errors("off: CPU seconds", floor=0.05),
            within_errors("on: CPU seconds*", floor=0.05),
            within_errors("off: peak memory", floor=0.08),
            within_factor("diagnostics*", 2.0),
        ],
    ),
    Benchmark("grading", _grading, [equal("*right"), within_factor("*speedup", 3.0)]),
    Benchmark(
        "scaling",
        _scaling,
        [
            equal("decoding/*"),
            equal("moved/*"),
            # Headers of TCP come on top of what is counted.
            at_most("wire/*", 1.1),
            within_factor("decisions/*", 4.0),
        ],
    ),
    # A seed of three arms: the same to the digit on the same machine, within the error of 1,024 answers on another.
    Benchmark("ablation", _ablation, [within_errors("*/accuracy", floor=0.06), within_factor("*/completions", 1.3)]),
    Benchmark("selection", _selection, [equal("simulated/*"), within_factor("times/*", 3.0)]),
    Benchmark("space", _space, [within_factor("* / making", 4.0), equal("*")]),
)


def run(benchmark: Benchmark, folder: Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the short version, and returns what it wrote. Raises `RuntimeError` with its last words if it failed."""
    output = folder / f"{benchmark.name}.json"
    command = [sys.executable, str(HERE / f"{benchmark.name}.py"), "--short", "--output", str(output), *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_SECONDS)
    if done.returncode:
        last_words = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"exit status {done.returncode}: {' '.join(last_words)}")
    return read(output)


def read(path: Path) -> dict[str, Any]:
    """Returns a stored record."""
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def compare_records(benchmark: Benchmark, new: Mapping[str, Any]) -> list[Row]:
    """Returns what became of the figures of a short run."""
    stored = read(HERE / f"{benchmark.name}.json")
    return compare(benchmark.figures(stored), benchmark.figures(new), benchmark.tolerances)


def table(rows: Sequence[tuple[str, Row]]) -> str:
    """Returns the rows as Markdown: of each kind of figures the one that is nearest to its bounds."""
    lines = ["| benchmark | figure | stored | now | now / stored | allowed | |", "|---|---|---|---|---|---|---|"]
    for name, row in rows:
        more = f" (and {row.num_figures - 1} more)" if row.num_figures > 1 else ""
        old, new = (_text(measured) for measured in (row.old, row.new))
        ratio = f"{row.new.value / row.old.value:.3f}" if row.old and row.new and row.old.value else ""
        verdict = "holds" if row.holds else "**outside**"
        lines.append(f"| {name} | {row.figure}{more} | {old} | {new} | {ratio} | {row.allowed} | {verdict} |")
    return "\n".join(lines)


def _text(measured: Measured | None) -> str:
    if measured is None:
        return "-"
    return f"{measured.value:.4g}" + (f" +- {measured.error:.2g}" if measured.error else "")


def main() -> None:
    """Runs the benchmarks one after another and prints the table."""
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--gsm8k", type=Path, help="train.jsonl or test.jsonl of GSM8K")
    parser.add_argument("--keep", type=Path, help="folder in which the short results stay")
    parser.add_argument("--compare", type=Path, help="folder of short results to compare instead of running")
    args = parser.parse_args()
    rows: list[tuple[str, Row]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.compare or args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for benchmark in BENCHMARKS:
            if benchmark.name not in args.only:
                continue
            options = ["--gsm8k", str(args.gsm8k)] if args.gsm8k and benchmark.name == "grading" else []
            before, began = _cpu_seconds(), time.perf_counter()
            try:
                record = read(folder / f"{benchmark.name}.json") if args.compare else run(benchmark, folder, options)
                rows += [(benchmark.name, row) for row in compare_records(benchmark, record)]
            except (RuntimeError, OSError, KeyError, subprocess.TimeoutExpired) as error:
                rows.append((benchmark.name, Row(repr(error), 0, None, None, "did not run", holds=False)))
            spent = f"{time.perf_counter() - began:.0f} s, {_cpu_seconds() - before:.0f} of CPU time"
            print(f"{benchmark.name}: {spent}", file=sys.stderr, flush=True)
    print(table(rows))
    outside = [row for _, row in rows if not row.holds]
    print(f"\n{len(rows) - len(outside)} of {len(rows)} hold, {time.perf_counter() - start:.0f} s")
    sys.exit(1 if outside else 0)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
