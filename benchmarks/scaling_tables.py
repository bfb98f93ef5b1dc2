"""What a rollout step takes by number of ranks, put together from `scaling.json`, and its tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from streaming_tables import table


MORE_RANKS = "more ranks"
# What a step is made of, and what to do where it is the largest part.
PARTS = {
    "decoding": MORE_RANKS,
    "longest completions": '`refill="stream", surplus="carry"`; then more groups a batch, or ranks that share an engine',
    "grading": 'more `num_workers`; `refill="stream"`',
    "decisions": "-",
    "texts": "-",
    "network": "-",
    "training": MORE_RANKS,
}
# With `overlap=True` these are of the ranks that sample, and the others of those that train.
SAMPLING_PARTS = ("decoding", "longest completions", "grading", "decisions")
# Seconds of a rank that are not counted among the decisions of a batch: the one by itself, the other is of the simulation.
APART = ("exchanges", "not ours")


def budget(record: Mapping[str, Any], decoding: Mapping[str, Any]) -> dict[str, float]:
    """
    Returns the seconds of a rollout step by part.

    Args:
        record (`Mapping[str, Any]`):
            `scaling.json`.
        decoding (`Mapping[str, Any]`):
            One of its simulated settings. With `sampling`, the other ranks train.
    """
    assumed, work = record["assumed"], find(record["rank_work"], decoding)
    model, num_ranks = assumed["models"][decoding["model"]], decoding["ranks"] - decoding.get("sampling", 0)
    rows_per_rank = math.ceil(work["prompts"] / num_ranks * assumed["batch"]["num_generations"])
    text_bytes = decoding["trained_tokens"] * assumed["bytes_of_text_per_token"] * decoding["padding_of_texts"]
    received = sum(work["received"].get(operation, 0) for operation in ("gather", "move")) + text_bytes
    of_trl = assumed["collectives_of_trl"]
    num_collectives = work["rounds"] * of_trl["round"] + of_trl["batch"] + work["sent"].get("gathers", 0) + 1
    training = 10 * model["parameters"] * decoding["trained_tokens"] / num_ranks / assumed["training_flops_per_rank"]
    is_stream = decoding["policy"].startswith("stream")
    # The exchanges of streaming come between the steps of the engine, one with each at most.
    num_exchanges = decoding["seconds"] / assumed["seconds_of_a_step_with_one_sequence"] if is_stream else 0
    return {
        "decoding": decoding["busy_seconds"],
        "longest completions": max(0.0, decoding["seconds"] - decoding["busy_seconds"]),
        # Behind decoding, where groups are graded one by one.
        "grading": 0.0 if is_stream else rows_per_rank * record["seconds_to_grade"],
        "decisions": decision_seconds(work) + num_exchanges * exchange_seconds(work),
        "texts": text_bytes * record["seconds_to_unpickle_a_byte"],
        "network": received * assumed["ranks_per_node"] / assumed["bytes_per_second_of_a_node"]
        + num_collectives * num_ranks * assumed["collective_seconds_per_rank"],
        "training": training,
    }


def find(rows: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the row for the same ranks and policy."""
    names = ("ranks", "policy")
    return next(row for row in rows if all(row[name] == like[name] for name in names))


def exchange_seconds(work: Mapping[str, Any]) -> float:
    """Returns the CPU seconds of one exchange of news while groups are streamed; 0 in rounds."""
    num_exchanges = work["sent"].get("exchanges", 0)
    return (work["seconds"]["exchanges"] / num_exchanges) if num_exchanges else 0.0


def decision_seconds(work: Mapping[str, Any]) -> float:
    """Returns the CPU seconds of a rank for a batch, without the exchanges of streaming."""
    return sum(seconds for part, seconds in work["seconds"].items() if part not in APART)


def work_table(record: Mapping[str, Any]) -> str:
    """Returns what each rank does and moves for a batch."""
    head = ["ranks", "refill", "prompts", "CPU, ms", "most of it", "an exchange, ms", "gets: numbers", "rollouts"]
    rows = [head]
    for work in record["rank_work"]:
        parts = {part: s for part, s in work["seconds"].items() if part not in (*APART, "collect")}
        most = max(parts, key=lambda part: parts[part])
        each = exchange_seconds(work)
        cells = [f"{1000 * decision_seconds(work):.0f}", f"{most}, {1000 * parts[most]:.0f}"]
        cells += [f"{1000 * each:.2f}" if each else "-", size_text(work["received"].get("gather", 0))]
        cells.append(size_text(work["received"].get("move", 0)))
        rows.append([f"{work['ranks']:,}", work["policy"], f"{work['prompts']:,.0f}", *cells])
    return table(rows)


def step_table(record: Mapping[str, Any], model: str) -> str:
    """Returns the seconds of a rollout step by part, what is largest, and the share of 8 ranks' speed that is kept."""
    rows = [["ranks", "refill", *PARTS, "together", "kept", "largest"]]
    first: dict[str, float] = {}
    for decoding in record["decoding"]:
        if decoding["model"] == model:
            parts = budget(record, decoding)
            together = sum(parts.values())
            cost = together * decoding["ranks"]
            kept = first.setdefault(decoding["policy"], cost) / cost
            cells = [f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}" for seconds in parts.values()]
            cells += [f"{together:,.0f}", f"{100 * kept:.0f} %", largest(parts)]
            rows.append([f"{decoding['ranks']:,}", decoding["policy"], *cells])
    return table(rows)


def overlapped(record: Mapping[str, Any], decoding: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the seconds of a batch of the ranks that sample and of those that train, with `overlap=True`."""
    parts = budget(record, decoding)
    sampling = sum(parts[part] for part in SAMPLING_PARTS)
    return sampling, sum(parts.values()) - sampling


def overlap_table(record: Mapping[str, Any], model: str) -> str:
    """Returns a step with the share of sampling ranks that is fastest, beside one in which all ranks sample and then train."""
    rows = [
        ["ranks", "refill", "in turn", "ranks that sample", "sampling", "training", "with overlap", "times as fast"]
    ]
    measured = [row for row in record["overlap"] if row["model"] == model]
    for num_ranks, policy in dict.fromkeys((row["ranks"], row["policy"]) for row in measured):
        of_share = [row for row in measured if (row["ranks"], row["policy"]) == (num_ranks, policy)]
        best = min(of_share, key=lambda row: max(overlapped(record, row)))
        sampling, training = overlapped(record, best)
        in_turn = best_in_turn(record, best)
        cells = [f"{seconds:,.0f}" for seconds in (sampling, training, max(sampling, training))]
        cells.append(f"{in_turn / max(sampling, training):.2f}")
        rows.append([f"{num_ranks:,}", policy, f"{in_turn:,.0f}", f"{best['sampling']:,}", *cells])
    return table(rows)


def best_in_turn(record: Mapping[str, Any], overlapping: Mapping[str, Any]) -> float:
    """Returns the seconds of a step in which all ranks sample and then train: streamed, or in rounds where engines are shared."""
    rounds = overlapping["policy"].replace("stream", "rounds")
    steps = {
        row["policy"]: sum(budget(record, row).values())
        for row in record["decoding"]
        if (row["model"], row["ranks"]) == (overlapping["model"], overlapping["ranks"])
    }
    return steps[overlapping["policy"] if overlapping["policy"] in steps else rounds]


def largest(parts: Mapping[str, float]) -> str:
    """Returns the part that takes most."""
    return max(parts, key=lambda part: parts[part])


def bottlenecks(record: Mapping[str, Any]) -> list[tuple[str, str, int | None, str]]:
    """Returns, for each model and policy, the first part to be largest that more ranks do not help, and from where on."""
    found = []
    for model in record["assumed"]["models"]:
        for policy in dict.fromkeys(d["policy"] for d in record["decoding"] if d["model"] == model):
            mine = [d for d in record["decoding"] if (d["model"], d["policy"]) == (model, policy)]
            parts = {decoding["ranks"]: largest(budget(record, decoding)) for decoding in mine}
            limits = [(ranks, part) for ranks, part in sorted(parts.items()) if PARTS[part] != MORE_RANKS]
            found.append((model, policy, *(limits[0] if limits else (None, "none"))))
    return found


def bottleneck_table(record: Mapping[str, Any]) -> str:
    """Returns what stops scaling first, and what to set."""
    rows = [["engines", "refill", "first bottleneck", "at ranks", "what to set"]]
    for model, policy, ranks, part in bottlenecks(record):
        rows.append([model, policy, part, "-" if ranks is None else f"{ranks:,}", PARTS.get(part, "-")])
    return table(rows)


def decision_table(record: Mapping[str, Any]) -> str:
    """Returns the milliseconds of each decision by groups of a batch."""
    names = [name for name in record["decisions"][0] if name != "groups"]
    rows = [["groups of a batch", *names]]
    for sizes in record["decisions"]:
        rows.append([f"{sizes['groups']:,}", *(f"{1000 * sizes[name]:.1f}" for name in names)])
    return table(rows)


def wire_table(record: Mapping[str, Any]) -> str:
    """Returns counted bytes beside those that the loopback saw."""
    rows = [["processes", "counted", "on the wire", "more"]]
    for row in record["wire"]:
        more = f"{100 * (row['seen'] / row['counted'] - 1):.1f} %"
        rows.append([str(row["ranks"]), size_text(row["counted"]), size_text(row["seen"]), more])
    return table(rows)


def markdown(record: Mapping[str, Any]) -> str:
    """Returns all tables, with their titles."""
    blocks = [bottleneck_table(record)]
    for model in record["assumed"]["models"]:
        blocks += [f"**A rollout step, {model}**, in seconds:", step_table(record, model)]
    for model in record["assumed"]["models"]:
        blocks += [f"**With `overlap=True`, {model}**, in seconds:", overlap_table(record, model)]
    blocks += ["**What each rank does and gets for a batch**:", work_table(record)]
    blocks += ["**Decisions alone**, CPU milliseconds:", decision_table(record)]
    if record["wire"]:
        blocks += ["**Bytes of a batch between processes** (64 groups of 8):", wire_table(record)]
    return "\n\n".join(blocks)


def size_text(num_bytes: float) -> str:
    """
    Bytes to read.

    >>> size_text(2_500_000)
    '2.5 MB'
    """
    if num_bytes < 1:
        return "0"
    power = min(int(math.log10(num_bytes) // 3), 4)
    return f"{num_bytes / 1000**power:.{0 if power == 0 else 1}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
