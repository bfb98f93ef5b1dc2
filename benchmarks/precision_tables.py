"""The tables of `engine_precision.json`."""

from collections.abc import Mapping, Sequence
from typing import Any


FORMATS = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "fp8_e4m3": "FP8 (e4m3)", "fp8_e5m2": "FP8 (e5m2)"}  # fmt: skip
TRAINERS = ("float32", "bfloat16", "float16")


def short_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    Returns a table with a row for each engine: the mean gap from the trainer in each of its formats.

    >>> record = {"weights": "float16", "kv_cache": "float16", "kv_bytes_a_token": 256}
    >>> for row in short_table([record | {"trainer": name, "mean_gap": 0.004} for name in TRAINERS]):
    ...     print(row)
    | engine | KV cache | its bytes a token | float32 | bfloat16 | float16 |
    |---|---|---|---|---|---|
    | float16 | float16 | 256 | 0.004 | 0.004 | 0.004 |
    """
    lines = [f"| engine | KV cache | its bytes a token | {' | '.join(TRAINERS)} |", "|---" * (3 + len(TRAINERS)) + "|"]
    engines = dict.fromkeys((record["weights"], record["kv_cache"], record["kv_bytes_a_token"]) for record in records)
    for weights, kv_cache, num_bytes in engines:
        gaps = {
            record["trainer"]: figure(record["mean_gap"])
            for record in records
            if (record["weights"], record["kv_cache"]) == (weights, kv_cache)
        }
        cells = [FORMATS[weights], FORMATS[kv_cache], f"{num_bytes:,}", *(gaps[name] for name in TRAINERS)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def long_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a table with a row for each pair of engine and trainer, with all figures."""
    names = ("mean_gap", "gap_99", "largest_gap", "kl")
    lines = [
        "| engine | KV cache | trainer | mean gap | 99 % below | largest | KL | beyond the clip |",
        "|---" * 8 + "|",
    ]
    for record in records:
        cells = [FORMATS[record[name]] for name in ("weights", "kv_cache", "trainer")]
        cells += [figure(record[name]) for name in names] + [f"{100 * record['frac_beyond_clip']:.2f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rounded_table(by_model: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Returns a table with a row for each model and format of a cache that is rounded to the nearest."""
    lines = ["| model | keys and values | mean gap | 99 % below | largest | KL | beyond the clip |", "|---" * 7 + "|"]
    for model, records in by_model.items():
        for record in records:
            cells = [model, FORMATS[record["kv_cache"]]]
            cells += [figure(record[name]) for name in ("mean_gap", "gap_99", "largest_gap", "kl")]
            lines.append(f"| {' | '.join(cells)} | {100 * record['frac_beyond_clip']:.2f} % |")
    return lines


def figure(value: float) -> str:
    """
    >>> figure(0.028), figure(0.22), figure(5.4e-06)
    ('0.028', '0.22', '5.4e-06')
    """
    return f"{value:g}" if value >= 1e-3 else f"{value:.1e}"
