"""What `selection.json` says: the aims, and a table for each section."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from aims import Check


# Passes over the data: from the beginning of one to the end of another.
WINDOWS = {"pass 1": (0, 1), "passes 1 to 4": (0, 4), "passes 1 to 12": (0, 12), "passes 4 to 12": (3, 12)}


def check_aims(records: Sequence[dict[str, Any]]) -> list[Check]:
    """Returns what became of the aims for which there are records."""
    ours = [r for r in records if r["section"] == "passes" and r["arm"] == "ours"]

    def worst(aim: str, among: Sequence[dict[str, Any]], figure: str, limit: float, at_least: bool = False) -> Check:
        bad = (min if at_least else max)(among, key=lambda r: r[figure])
        misses = [r for r in among if (r[figure] < limit if at_least else r[figure] > limit)]
        detail = f"worst {bad[figure]:.3f} ({_case_text(bad)})"
        return Check(aim, not misses, detail + (f"; misses in {len(misses)} of {len(among)} cases" if misses else ""))

    checks = []
    for share, late, all_passes in ((0.4, 0.60, 0.65), (0.25, 0.45, 0.5)):
        here = [r for r in ours if r["share"] == share]
        for name, limit in (("passes 4 to 12", late), ("passes 1 to 12", all_passes)):
            among = [r for r in here if r["window"] == name]
            if among:
                aim = f"share {share:g}, {name}: at most {limit:g} of blind sampling's completions"
                checks.append(worst(aim, among, "cost_of_blind", limit))
    late = [r for r in ours if r["window"] == "passes 4 to 12"]
    if late:
        checks.append(worst("passes 4 to 12: at most 1.15 of the oracle's completions", late, "of_oracle", 1.15))
    if ours:
        checks.append(worst("never more than 1.02 of blind sampling's completions", ours, "cost_of_blind", 1.02))
        full = [r for r in ours if r["window"] in ("passes 1 to 12", "passes 4 to 12", "passes 1 to 4")]
        aim = "rare successes: at least 0.7 of blind sampling's share"
        checks.append(worst(aim, full, "rare_of_blind", 0.7, at_least=True))
        checks.append(worst("calibration error at most 0.05", ours, "calibration_error", 0.05))
    prior = [r for r in records if r["section"] == "prior" and r["column"] in ("another model", "added noise")]
    if prior:
        flat = [r | {"first": r["first_pass"]["cost_of_blind"]} for r in prior]
        checks.append(worst("column of correlation 0.7: at most 0.75 in the first pass", flat, "first", 0.75))
        flat = [r | {"first": r["groups_of_one_passes"]["cost_of_blind"]} for r in prior]
        aim = "column of correlation 0.7: at most 0.75 for as many groups as blind sampling's first pass"
        checks.append(worst(aim, flat, "first", 0.75))
    for num_groups in (64, 16):
        rounds = [
            r
            for r in records
            if r["section"] == "rounds" and r["arm"] == "ours" and r["num_groups"] == num_groups
            if r["window"] == "passes 2 to 12"
        ]
        if rounds:
            aim = f"requeue, {num_groups} groups: at most half of today's completions given back, from the second pass on"
            checks.append(worst(aim, rounds, "of_today", 0.5))
    cost = [r for r in records if r["section"] == "cost"]
    flat = [r | {"ms": r["decide_ms"] + r["plan_ms"]} for r in cost if r["num_groups"] == 64]
    flat = [r for r in flat if r["num_rows"] == 1_000_000]
    if flat:
        checks.append(
            worst("10^6 prompts, 64 groups: under 1 ms to decide on draws and plan a round", flat, "ms", 1.0)
        )
        checks.append(worst("10^7 prompts: under 200 MB", cost, "megabytes", 200.0))
    return checks


def _case_text(record: dict[str, Any]) -> str:
    names = {"num_generations": "G", "share": "share", "num_rows": "prompts", "num_groups": "groups", "world": "world"}
    names |= {"column": "column", "window": "", "seed": "seed"}
    parts = [f"{label} {record[name]}".strip() for name, label in names.items() if name in record]
    return ", ".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def passes_table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the table of `passes`."""
    cases: dict[tuple[Any, ...], dict[tuple[str, str], dict[str, Any]]] = {}
    for r in records:
        if r["section"] == "passes":
            key = tuple(r[name] for name in ("num_generations", "share", "num_rows", "num_groups", "world", "seed"))
            cases.setdefault(key, {})[r["arm"], r["window"]] = r
    titles = "G, share, prompts, groups, world, blind, streaks 1-12, 4-12, ours 1, 1-4, 1-12, 4-12, oracle 1-12, 4-12"
    rows = [f"{titles}, rare: streaks, ours, oracle, recall, calibration error".split(", ")]
    for (size, share, num_rows, num_groups, world, seed), case in cases.items():

        def figure(arm: str, name: str, of: str = "cost_of_blind", case: dict[Any, Any] = case) -> str:
            return f"{case[arm, name][of]:.2f}" if (arm, name) in case else "-"

        late = "passes 1 to 12" if ("ours", "passes 1 to 12") in case else "passes 1 to 4"
        name = world if not seed else f"{world}, seed {seed}"
        row = [str(size), f"{share:g}", f"{num_rows:,}", str(num_groups), name, figure("blind", late, "cost")]
        row += [figure("streaks", window) for window in ("passes 1 to 12", "passes 4 to 12")]
        row += [figure("ours", window) for window in WINDOWS]
        row += [figure("oracle", window) for window in ("passes 1 to 12", "passes 4 to 12")]
        row += [figure(arm, late, "rare_of_blind") for arm in ("streaks", "ours", "oracle")]
        rows.append([*row, figure("ours", late, "recall"), f"{case['ours', late]['calibration_error']:.3f}"])
    return _table(rows)


def prior_table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the table of `prior`."""
    titles = (
        "G, share, column, correlation, best kind alone, pass 1, its recall, its rare, 1, its rare, its draws, 2, 4"
    )
    rows = [titles.split(", ")]
    for r in records:
        if r["section"] == "prior":
            first, equal = r["first_pass"], [r[f"groups_of_{count}_passes"] for count in ("one", "two", "four")]
            known = ["-" if r[name] is None else f"{r[name]:.2f}" for name in ("correlation", "best_kind")]
            row = [str(r["num_generations"]), f"{r['share']:g}", r["column"], *known]
            row += [f"{first[name]:.2f}" for name in ("cost_of_blind", "recall", "rare_of_blind")]
            row += [f"{equal[0][name]:.2f}" for name in ("cost_of_blind", "rare_of_blind", "draws_of_blind")]
            rows.append(row + [f"{figures['cost_of_blind']:.2f}" for figures in equal[1:]])
    return _table(rows)


def rules_table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the table of `rules`."""
    rows = [["G", "share", "rule", "exploration", "1-12", "4-12", "rare 1-12", "4-12", "recall 1-12", "4-12"]]
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for r in records:
        if r["section"] == "rules":
            key = (r["num_generations"], r["share"], r["rule"], r["exploration_share"])
            found.setdefault(key, {})[r["window"]] = r
    for (size, share, rule, exploration_share), windows in found.items():
        values = [
            f"{windows[name][of]:.2f}"
            for of in ("cost_of_blind", "rare_of_blind", "recall")
            for name in ("passes 1 to 12", "passes 4 to 12")
        ]
        rows.append([str(size), f"{share:g}", rule, f"{exploration_share:g}", *values])
    return _table(rows)


def rounds_table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the table of `rounds`."""
    arms = ("blind", "all prompts", "one rate for all", "ours", "ours, 0.85", "oracle")
    rows = [["G", "share", "groups", "window", *(f"{arm}" for arm in arms)]]
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for r in records:
        if r["section"] == "rounds":
            key = (r["num_generations"], r["share"], r["num_groups"], r["window"])
            found.setdefault(key, {})[r["arm"]] = r
    for (size, share, num_groups, name), case in found.items():
        cells = [
            f"{100 * case[arm]['given_back']:.1f} % ({case[arm]['of_today']:.2f}), {case[arm]['rounds']:.2f}"
            for arm in arms
        ]
        rows.append([str(size), f"{share:g}", str(num_groups), name, *cells])
    return _table(rows)


def reliability_table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the table of `reliability`."""
    found: dict[str, dict[int, str]] = {}
    for r in records:
        if r["section"] == "reliability":
            cell = f"{r['predicted']:.2f}: {r['found']:.2f}"
            found.setdefault(r["world"], {})[min(9, int(10 * r["predicted"]))] = cell
    rows = [["world", *(f"{low / 10:g} to {(low + 1) / 10:g}" for low in range(10))]]
    return _table(rows + [[world, *(cells.get(low, "-") for low in range(10))] for world, cells in found.items()])


def learning_figures(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each task and arm the means over seeds, paired with blind sampling."""
    curves: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for r in records:
        if r["section"] == "learning":
            curves.setdefault((r["task"], r["arm"]), {})[r["seed"]] = r
    figures = []
    for (task, arm), by_seed in curves.items():
        to_80, to_95, finals, spent, rares = [], [], [], [], []
        for seed, record in by_seed.items():
            blind = curves[task, "blind"][seed]
            first, last = blind["curve"][0][1], blind["curve"][-1][1]
            for part, ratios in ((0.8, to_80), (0.95, to_95)):
                goal = first + part * (last - first)
                cost = completions_to(record["curve"], goal)
                ratios.append(math.nan if cost is None else cost / (completions_to(blind["curve"], goal) or math.nan))
            finals.append(100 * (record["curve"][-1][1] - last))
            spent.append(record["curve"][-1][0] / blind["curve"][-1][0])
            rares.append(record["rare"] / blind["rare"])
        figures.append(
            {
                "task": task,
                "arm": arm,
                "to_80": float(np.mean(to_80)),
                "to_95": float(np.mean(to_95)),
                "to_95_error": float(np.std(to_95, ddof=1) / math.sqrt(len(to_95))),
                "final_points": float(np.mean(finals)),
                "final_error": float(np.std(finals, ddof=1) / math.sqrt(len(finals))),
                "completions": float(np.mean(spent)),
                "rare_of_blind": float(np.mean(rares)),
                "passes": float(np.mean([r["passes"] for r in by_seed.values()])),
            }
        )
    return figures


def completions_to(curve: Sequence[Sequence[float]], accuracy: float) -> float | None:
    """
    Returns the cost at which a curve of (cost, accuracy) first reaches an accuracy, interpolated; `None`: never.

    >>> completions_to([(0, 0.25), (10, 0.75)], 0.5)
    5.0
    """
    for (cost, before), (next_cost, after) in itertools.pairwise(curve):
        if after >= accuracy > before:
            return cost + (accuracy - before) / (after - before) * (next_cost - cost)
    return None


def learning_table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the table of `learning`."""
    rows = [["task", "arm", "to 80 %", "to 95 %", "final accuracy", "completions", "rare", "passes"]]
    for f in learning_figures(records):
        row = [f["task"], f["arm"], f"{f['to_80']:.2f}", f"{f['to_95']:.2f} +- {f['to_95_error']:.2f}"]
        row += [f"{f['final_points']:+.1f} +- {f['final_error']:.1f}", f"{f['completions']:.2f}"]
        rows.append([*row, f"{f['rare_of_blind']:.2f}", f"{f['passes']:.1f}"])
    return _table(rows)


def cost_table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the table of `cost`."""
    titles = (
        "prompts, groups, decide ms, plan ms, learn ms, median of all ms, stream ms, memory MB, checkpoint MB, save s"
    )
    rows = [titles.split(", ")]
    for r in records:
        if r["section"] == "cost":
            times = [f"{r[name]:.2f}" for name in ("decide_ms", "plan_ms", "learn_ms", "median_ms", "stream_ms")]
            sizes = [f"{r['megabytes']:.0f}", f"{r['checkpoint_megabytes']:.1f}", f"{r['save_seconds']:.2f}"]
            rows.append([f"{r['num_rows']:,}", str(r["num_groups"]), *times, *sizes])
    return _table(rows)


TABLES = {
    "passes": passes_table,
    "prior": prior_table,
    "rules": rules_table,
    "rounds": rounds_table,
    "reliability": reliability_table,
    "learning": learning_table,
    "cost": cost_table,
}


def tables(records: Sequence[dict[str, Any]]) -> str:
    """Returns the tables of the sections for which there are records."""
    present = [name for name in TABLES if any(r["section"] == name for r in records)]
    return "\n\n".join(f"**{name}**\n\n{TABLES[name](records)}" for name in present)
