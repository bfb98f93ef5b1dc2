"""Tables and the plot of `streaming.json`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


BASE = "rounds"
# What a record is asked for: `stream` against `rounds` everywhere, and where slots are scarce.
NEVER_SLOWER, SCARCE, SCARCE_CARRY = 1.03, 0.85, 0.75
TRAINED_BY = ("rounds", "stream", "first finished", "all informative groups")


def ratio(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """
    The ratio of two sums over the same batches, and its standard error, the batches taken as independent.

    >>> ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    (0.5, 0.0)
    """
    total = sum(base)
    quotient = sum(values) / total
    squares = sum((value - quotient * other) ** 2 for value, other in zip(values, base, strict=True))
    return quotient, math.sqrt(squares * len(base) / (len(base) - 1)) / total


def engine_seconds(taken: Mapping[str, Sequence[float]], step: Mapping[str, Any]) -> list[float]:
    """Returns what the steps of each batch take at the calibrated cost of a step."""
    each = zip(taken["steps"], taken["running"], strict=True)
    return [step["to_begin"] * steps + step["per_sequence"] * running for steps, running in each]


def table(rows: Iterable[Sequence[str]]) -> str:
    """Returns rows as a Markdown table, the first one as its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * (lines[0].count(" | ") + 1))
    return "\n".join(lines)


def vllm_table(part: Mapping[str, Any]) -> str:
    """Returns what a batch took on vLLM, by engine, rate and policy."""
    ratios = ["CPU / rounds", "engine time / rounds", "tokens / rounds"]
    rows = [["slots, p", "policy", "wall s", "CPU s", "steps", "tokens", "aborted", *ratios]]
    for record in sorted(part["records"], key=lambda record: (record["slots"], record["rate"])):
        base = record["policies"][BASE]
        for name, taken in record["policies"].items():
            size = len(taken["steps"])
            means = {figure: sum(values) / size for figure, values in taken.items() if figure in _MEANS}
            engine, engine_base = (engine_seconds(of, part["step_cpu_seconds"]) for of in (taken, base))
            pairs = [(taken["cpu_seconds"], base["cpu_seconds"]), (engine, engine_base)]
            pairs.append((taken["tokens"], base["tokens"]))
            ratios = ["1" if name == BASE else _ratio_text(*pair) for pair in pairs]
            cells = [f"{means[figure]:{form}}" for figure, form in _MEANS.items()]
            rows.append([f"{record['slots']}, {record['rate']}", name, *cells, *ratios])
    return table(rows)


_MEANS = {"wall_seconds": ".2f", "cpu_seconds": ".2f", "steps": ".0f", "tokens": ",.0f", "aborted": ",.0f"}


def simulated_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns seconds and tokens of a batch over those of rounds, by setting and policy."""
    names = [name for name in records[0]["policies"] if name != BASE]
    rows = [["batch, engines", "p", "rounds, s", *names]]
    titles = list(dict.fromkeys(record["case"] for record in records))
    for record in sorted(records, key=lambda record: (titles.index(record["case"]), record["rate"])):
        base = record["policies"][BASE]
        cells = []
        for name in names:
            taken = record["policies"][name]
            tokens, _ = ratio(taken["tokens"], base["tokens"])
            cells.append(f"{_ratio_text(taken['seconds'], base['seconds'])} / {tokens:.2f}")
        seconds = sum(base["seconds"]) / len(base["seconds"])
        rows.append([record["case"], str(record["rate"]), f"{seconds:.3g}", *cells])
    return table(rows)


def lengths_table(lengths: Mapping[str, Any]) -> str:
    """Returns the lengths of the completions that train."""
    rows = [["trained by", "mean", "median", "longer than 2,048"]]
    for name in TRAINED_BY:
        of = lengths[name]
        rows.append([name, f"{of['mean']:.0f}", f"{of['median']:.0f}", f"{100 * of['frac_long']:.1f} %"])
    return table(rows)


def overlap_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the grading of a batch, and how much of it is hidden behind decoding."""
    rows = [
        [
            "slots",
            "grading, s: rounds",
            "stream",
            "of wall: rounds",
            "hidden: rounds",
            "stream",
            "wall, stream / rounds",
        ]
    ]
    for record in records:
        rounds, stream = record["policies"]["rounds"], record["policies"]["stream"]
        grading = [sum(of["seconds_grading"]) / len(of["seconds_grading"]) for of in (rounds, stream)]
        share = sum(rounds["seconds_grading"]) / sum(rounds["wall_seconds"])
        hidden = ratio(
            [a * b for a, b in zip(stream["grading_hidden"], stream["seconds_grading"], strict=True)],
            stream["seconds_grading"],
        )[0]
        cells = [f"{100 * share:.0f} %", "0 %", f"{100 * hidden:.0f} %"]
        wall = _ratio_text(stream["wall_seconds"], rounds["wall_seconds"])
        rows.append([str(record["slots"]), *(f"{seconds:.2f}" for seconds in grading), *cells, wall])
    return table(rows)


def check_aims(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns each aim, and in how many cases it holds. Where slots are scarce a batch does not fit into them."""
    cases = []
    for source in ("vllm", "simulated"):
        for record in results.get(source, {}).get("records", []):
            seconds = {
                name: taken["seconds"]
                if source == "simulated"
                else engine_seconds(taken, results[source]["step_cpu_seconds"])
                for name, taken in record["policies"].items()
            }
            title = record["case"] if source == "simulated" else f"vLLM, {record['slots']} slots"
            over = {name: ratio(values, seconds[BASE])[0] for name, values in seconds.items()}
            cases.append((f"{title}, p = {record['rate']}", record["is_scarce"], over))
    scarce = [case for case in cases if case[1]]
    return [
        (f"stream at most {NEVER_SLOWER} of rounds", _verdict(cases, "stream", NEVER_SLOWER)),
        (f"stream at most {SCARCE} where slots are scarce", _verdict(scarce, "stream", SCARCE)),
        (f"stream, carry at most {SCARCE_CARRY} where slots are scarce", _verdict(scarce, "stream, carry", SCARCE_CARRY)),
    ]  # fmt: skip


def _verdict(cases: Sequence[tuple[str, bool, Mapping[str, float]]], policy: str, most: float) -> str:
    misses = [case for case in cases if case[2][policy] > most]
    title, _, over = max(cases, key=lambda case: case[2][policy])
    answer = "yes" if not misses else f"**no**, in {len(misses)} of {len(cases)} cases"
    return f"{answer}; most: {over[policy]:.2f} ({title})"


def _ratio_text(values: Sequence[float], base: Sequence[float]) -> str:
    quotient, error = ratio(values, base)
    return f"{quotient:.2f} +- {error:.2f}"


def markdown(results: Mapping[str, Any]) -> str:
    """Returns all tables that there are results for."""
    measured, simulated = results.get("vllm", {}), results.get("simulated", {})
    blocks = []
    if measured and simulated:
        blocks.append(table([["aim", "holds"], *check_aims(results)]))
    if measured.get("records"):
        blocks.append(vllm_table(measured))
    if simulated.get("records"):
        blocks.append(simulated_table(simulated["records"]))
    if simulated.get("lengths"):
        blocks.append(lengths_table(simulated["lengths"]))
    if measured.get("overlap"):
        blocks.append(overlap_table(measured["overlap"]))
    return "\n\n".join(blocks)


def draw_lengths(lengths: Mapping[str, Any], path: Path) -> None:
    """Draws the distributions of the lengths of trained completions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    styles = {"rounds": ("C0", "-", 4.0), "stream": ("C1", "--", 2.0), "first finished": ("C3", "-", 2.0)}
    for name, (color, style, width) in styles.items():
        of = lengths[name]
        total = sum(of["counts"])
        label = f"{name} (mean {of['mean']:.0f})"
        shares = [count / total for count in of["counts"]]
        axes.stairs(shares, lengths["edges"], color=color, linestyle=style, linewidth=width, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of a trained completion")
    axes.set_ylabel("share")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
