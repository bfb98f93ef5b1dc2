"""
docs/results.md and the results in README.md: every number is in a stored result, and every result has its command.

`stored_facts` makes the facts of the stored files, in the words of these pages. A number that is in none of the facts fails. So
a new sentence needs a fact here, made from the file that has it.
"""

import itertools
import json
import math
import re
import statistics
import subprocess
import sys

import pytest
import yaml
from checkout import ROOT
from documentation import section


sys.path.insert(0, str(ROOT / "benchmarks"))

import ablation_tables as ablation
import memory_tables as memory
import overlap_accuracy as late
import precision_tables as precision
import scaling_tables as tables
from measured import cost_ratios, cost_to_reach

from trl_dapo import DAPOConfig


BENCHMARKS = ROOT / "benchmarks"
RECIPES = ROOT / "examples" / "recipes"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "results.md"
TITLES = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)


def stored(name):
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def percent(share):
    return f"{100 * share:.1f} %"


def quickstart_facts():
    results = stored("quickstart")
    recipe = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    before, after = results["accuracy_before"], results["accuracy_after"]
    return [
        f"on {results['hardware'].split()[0]} CPU cores",
        f"seed {recipe['seed']}",
        f"{100 * before:.1f} -> {percent(after)}",
        f"from {100 * before:.1f} to {percent(after)}",
    ]


def dynamic_sampling_facts():
    curves = {
        arm: [run["curve"] for _, run in sorted(runs.items())]
        for arm, runs in stored("dynamic_sampling")["results"].items()
    }

    def mean(arm, figure, place=-1):
        return statistics.mean(curve[place][figure] for curve in curves[arm])

    def ratio(arm, base, figure):
        pairs = zip(curves[arm], curves[base], strict=True)
        return statistics.geometric_mean(ours[-1][figure] / theirs[-1][figure] for ours, theirs in pairs)

    rows = [
        f"| {percent(mean(arm, 'accuracy', 0))} | {percent(mean(arm, 'accuracy'))} | {mean(arm, 'completions'):,.0f} | "
        f"{mean(arm, 'cpu_seconds'):.0f} |"
        for arm in curves
    ]
    ahead = [
        100 * (ours[-1]["accuracy"] - theirs[-1]["accuracy"])
        for ours, theirs in zip(curves["requeue"], curves["GRPO"], strict=True)
    ]
    steps = [
        reach(ours, theirs[-1]["accuracy"]) for ours, theirs in zip(curves["requeue"], curves["GRPO"], strict=True)
    ]
    shares = [100 * reached / theirs[-1]["step"] for reached, theirs in zip(steps, curves["GRPO"], strict=True)]
    return [
        *rows,
        f"{curves['GRPO'][0][-1]['step']:.0f} optimizer steps",
        f"{curves['GRPO, 120 steps'][0][-1]['step']:.0f} steps",
        # `NUM_HELD_OUT`, and what the recipe samples for each.
        "256 problems with 4 samples",
        "rounds of 3 batches",
        f"{min(ahead):.1f} to {max(ahead):.1f} points",
        f"{min(shares):.0f} to {max(shares):.0f} % of the steps",
        f"{100 * (1 - mean('requeue', 'completions') / mean('fixed 3x', 'completions')):.0f} % fewer completions",
        f"saves {100 * (1 - ratio('carry', 'requeue', 'completions')):.0f} % of the completions",
        f"{100 * (mean('requeue', 'accuracy') - mean('carry', 'accuracy')):.1f} points lower",
    ]


def many_passes_facts():
    curves = {
        arm: [run["curve"] for _, run in sorted(runs.items())]
        for arm, runs in stored("many_passes")["results"].items()
    }

    def completions(arm):
        return statistics.mean(curve[-1]["completions"] for curve in curves[arm])

    # With a constant learning rate: the mean of the last three evaluations.
    ends = {
        arm: statistics.mean(
            point["accuracy"] for curve in of_arm for point in curve[-1 if "decayed" in arm else -3 :]
        )
        for arm, of_arm in curves.items()
    }
    share = statistics.geometric_mean(cost_ratios(curves["selective"], curves["GRPO"], "completions"))
    return [
        f"{len(curves['GRPO'])} seeds",
        f"takes {share:.2f} of the completions",
        # `NUM_PROBLEMS` of the program.
        "512 problems",
        f"{100 * (1 - completions('selective') / completions('blind')):.0f} % fewer completions",
        f"at {100 * ends['selective']:.1f} against {percent(ends['blind'])}",
        *(f"at {percent(ends[arm])}" for arm in ("GRPO", "GRPO, decayed", "selective, decayed")),
        *(f"after {completions(arm):,.0f}" for arm in ("GRPO, decayed", "selective, decayed")),
    ]


def tools_facts():
    curves = {
        arm: [run["curve"] for _, run in sorted(runs.items())] for arm, runs in stored("tools")["results"].items()
    }
    targets = [statistics.mean(point["accuracy"] for point in curve[-3:]) for curve in curves["GRPO"]]
    ends = {
        arm: statistics.mean(point["accuracy"] for curve in of_arm for point in curve[-3:])
        for arm, of_arm in curves.items()
    }

    def ratio(cost):
        costs = [
            [cost_to_reach(curve, target, cost) for curve, target in zip(curves[arm], targets, strict=True)]
            for arm in ("DAPO", "GRPO")
        ]
        return statistics.geometric_mean(mine / its for mine, its in zip(*costs, strict=True))

    return [
        f"{len(targets)} seeds",
        f"at {100 * ends['DAPO']:.1f} against {percent(ends['GRPO'])}",
        f"after {ratio('step'):.2f} of its optimizer steps",
        f"with {ratio('completions'):.2f} times its completions",
        f"{ratio('cpu_seconds'):.2f} of its CPU time",
    ]


def hidden_rates_facts():
    def means(figure):
        found = [r for r in stored("hidden_rates")["results"] if r["num_rows"] == 4000 and r["window"] == "all passes"]
        each = [[r[figure] for r in found if r["share"] == share] for share in (0.25, 0.4)]
        return " and ".join(f"{statistics.mean(values):.2f}" for values in each)

    return [
        "4,000 prompts, 12 passes",
        "25 and 40 % of the groups",
        f"samples {means('completions')}",
        f"keeps {means('rare')}",
    ]


def reach(curve, accuracy):
    """The step at which a straight line between two evaluations first comes to an accuracy."""
    for before, after in itertools.pairwise(curve):
        if before["accuracy"] < accuracy <= after["accuracy"]:
            share = (accuracy - before["accuracy"]) / (after["accuracy"] - before["accuracy"])
            return before["step"] + share * (after["step"] - before["step"])
    raise AssertionError("not reached")


def refill_facts():
    records = stored("refill")["records"]
    cases = {}
    for record in records:
        cases.setdefault((record["num_groups"], record["stream"], record["engine"]), {})[record["policy"]] = record
    carry = [case[policy]["waste"] for case in cases.values() for policy in ("carry 0.9", "carry None")]
    fastest = [
        min((r for r in case.values() if r["seconds_per_trained_group"]), key=lambda r: r["seconds_per_trained_group"])
        for case in cases.values()
    ]
    num_fastest = sum(record["policy"] == "carry None" for record in fastest)
    wastes = {
        size: [case["requeue 0.9"]["waste"] for key, case in cases.items() if key[0] == size] for size in (64, 512)
    }
    # The upper ends are rounded up.
    spans = {size: f"{100 * min(of) - 100:.0f} to {math.ceil(100 * max(of) - 100)} %" for size, of in wastes.items()}
    return [
        f"within {100 * max(carry) - 100:.1f} % of",
        f"{num_fastest} of {len(cases)} settings",
        # The default of `refill_confidence`.
        "(`requeue`, 0.9)",
        f"{spans[64]} more than the least at 64 groups a batch",
        f"{spans[512]} at 512",
    ]


def scaling_facts():
    """What may be said of scaling: where it stops with the paper's batch, and what a rank decides and gets."""
    record = stored("scaling")
    batch = record["assumed"]["batch"]
    most = max(tables.decision_seconds(work) for work in record["rank_work"] if work["policy"] == "rounds")
    exchange = max(map(tables.exchange_seconds, record["rank_work"]))
    shares = {
        decoding["ranks"]: tables.budget(record, decoding)["longest completions"]
        / sum(tables.budget(record, decoding).values())
        for decoding in record["decoding"]
        if (decoding["policy"], decoding["model"]) == ("rounds", "7B, an engine on each rank")
    }
    gains = {}
    for row in record["overlap"]:
        if (row["policy"], row["model"]) == ("stream", "7B, an engine on each rank"):
            gain = tables.best_in_turn(record, row) / max(tables.overlapped(record, row))
            gains[row["ranks"]] = max(gain, gains.get(row["ranks"], 0))
    return [
        f"({batch['num_groups']} x {batch['num_generations']}, up to {batch['max_tokens']:,} tokens)",
        f"{min(shares):,} to {max(shares):,} ranks",
        f"at most {most:.1f} CPU seconds a batch",
        f"{1000 * exchange:.1f} ms",
        *(f"{100 * share:.0f} % of the step at {ranks:,} ranks" for ranks, share in shares.items()),
        *(f"{gain:.2f} times as fast on {ranks:,} ranks" for ranks, gain in gains.items()),
        *(f"{gain:.2f} times on {ranks:,}" for ranks, gain in gains.items()),
    ]


def ablation_facts():
    record = stored("ablation")
    data = ablation.Comparison(record)
    budgets = {cost: ablation.budget_gain(data, cost) for cost in ("step", "tokens")}
    # To gain 8 points.
    ratios = {cost: statistics.geometric_mean(ablation.ratios_to_reach(data, 0.08, cost)[0]) for cost in budgets}
    parts = (
        ("DAPO", "+ token-level loss", "accuracy"),
        ("DAPO", "DAPO - soft overlong punishment", "truncated"),
        (ablation.RARE.format("0.28"), ablation.RARE.format("0.2"), "accuracy"),
    )
    return [
        f"{len(ablation.seeds_of(record, ['DAPO', 'TRL']))} seeds, paired, with 95 % intervals",
        *(f"{data.difference(*part).text(signed=True)}" for part in parts),
        *(gain.text(signed=True) for gain in budgets.values()),
        f"To gain 8 points it takes {ratios['step']:.2f} of TRL's steps and {ratios['tokens']:.2f} of its tokens",
    ]


def killed_run_facts():
    facts = ["killed with -9"]
    for trials in stored("resume")["results"].values():
        # Those that were killed before there was a checkpoint began anew.
        resumed = [trial for trial in trials.values() if trial["resumed_from"] > 0]
        same = sum(trial["steps"] == 0 and trial["weights"] == 0 for trial in resumed)
        facts.append(f"{same} of {len(resumed)}")
    return facts


def overlap_facts():
    rows = stored("overlap")["results"]
    ratios, faster = (
        [f"{row[name]:{form}}" for row in rows] for name, form in (("ratio", "g"), ("times_faster", ".2f"))
    )
    facts = [
        f"is {', '.join(faster[:-1])} and {faster[-1]} times faster",
        f"takes {', '.join(ratios[:-1])} and {ratios[-1]} times as long",
        f"at most {max(row['over_longer_part'] for row in rows):.2f} times the longer",
    ]
    record = stored("overlap_accuracy")
    for steps in late.STEPS_PER_BATCH:
        seeds = len(late.accuracies(record, "on time", steps))
        facts.append(f"| {steps} | {seeds} |")
        facts += [f"{statistics.mean(late.accuracies(record, 'on time', steps).values()):.1f} %"]
        facts += [late.paired_text(record, arm, steps) for arm in late.ARMS[1:]]
        on_ablation = statistics.mean(late.accuracies(record, "on time", steps, "ablation").values())
        facts.append(f"{on_ablation:.1f} %")
        facts += [late.paired_text(record, arm, steps, "ablation") for arm in late.ARMS[1:3]]
    worst = max(
        abs(statistics.mean(late.differences(record, arm, steps, "ablation")))
        for steps in late.STEPS_PER_BATCH
        for arm in late.ARMS[1:3]
    )
    runs = stored("ablation")["results"]["DAPO"]
    begin = statistics.mean(runs[str(seed)]["curve"][0]["accuracy"] for seed in range(late.NUM_SEEDS))
    facts += [f"within {worst:.1f} points", f"right in {100 * begin:.1f} %"]
    return [*filter(None, facts), "64 optimizer steps of 32 completions"]


def memory_facts():
    record = stored("memory")
    ours, its = (memory.growths(record["results"][name]) for name in ("DAPOTrainer", "GRPOTrainer"))
    return [
        f"The quickstart over {record['num_steps']} optimizer steps",
        f"malloc changes by {abs(ours['trainer', 'malloc'].relative):.1%}".replace("%", " %"),
        f"Python's blocks by {ours['trainer', 'python'].relative:+.1%}".replace("%", " %"),
        f"resident memory changes by {ours['trainer', 'rss'].relative:+.1%}".replace("%", " %"),
        f"batch samples change by {ours['trainer', 'completions'].relative:+.0%}".replace("%", " %"),
        f"by {its['trainer', 'rss'].relative:+.1%}".replace("%", " %"),
    ]


def stored_facts():
    parts = (
        quickstart_facts,
        dynamic_sampling_facts,
        many_passes_facts,
        tools_facts,
        hidden_rates_facts,
        ablation_facts,
        killed_run_facts,
        memory_facts,
        overlap_facts,
        refill_facts,
        scaling_facts,
    )
    return [fact for part in parts for fact in part()]


def numbers_without_a_source(text, facts):
    """Returns the numbers of a text that stand in none of the facts, nor in code, links and names."""
    text = " ".join(re.sub(r"\]\([^)]*\)", "]", text).split())
    for fact in sorted(facts, key=len, reverse=True):
        text = re.sub(rf"(?<![\d.,]){re.escape(fact)}", " ", text)
    return re.findall(r"\d[\d.,]*", re.sub(r"`[^`]*`", " ", text))


def test_every_number_of_the_page_is_in_a_stored_result():
    text = "".join(section(PAGE, title) for title in TITLES)
    assert numbers_without_a_source(text, stored_facts()) == []


def test_every_number_of_the_readme_is_in_a_stored_result():
    facts = [*stored_facts(), f"{stored('scaling')['rank_work'][-1]['ranks']:,} ranks"]
    assert numbers_without_a_source(section(README, "Results"), facts) == []
    (rise,) = re.findall(r"Held-out accuracy rises (.* %) \(seed 0\)", section(README, "Quickstart"))
    assert rise in stored_facts()


def test_every_number_elsewhere_that_a_benchmark_gave_is_stored():
    grading = stored("grading")["results"]
    speeds = [grading[kind]["speedup"] for kind in ("gsm8k_integers", "latex_expressions")]
    page = " ".join((ROOT / "docs" / "grading.md").read_text().split())
    assert f"{speeds[0]:.0f} times TRL's speed on GSM8K's integers" in page
    assert f"{speeds[1]:.1f} times on LaTeX" in page
    rollouts = (ROOT / "docs" / "rollouts.md").read_text()
    assert f"open in {stored('space')['figures']['seconds_to_open']:.1f} s" in rollouts


def test_gaps_of_number_formats_are_those_that_are_stored():
    record, page = stored("engine_precision"), (ROOT / "docs" / "vllm.md").read_text()
    tables = (BENCHMARKS / "README.md").read_text()
    assert "\n".join(precision.short_table(record["records"]["SmolLM2-135M"])) in page
    assert "\n".join(precision.rounded_table(record["rounded"])) in tables
    for of_model in record["records"].values():
        assert "\n".join(precision.long_table(of_model)) in tables
    found = {(one["weights"], one["kv_cache"], one["trainer"]): one for one in record["records"]["SmolLM2-135M"]}
    sixteen, brain = (found[name, name, name]["mean_gap"] for name in ("float16", "bfloat16"))
    first, second = (found["bfloat16", name, "bfloat16"] for name in ("fp8_e4m3", "fp8_e5m2"))
    near = {one["kv_cache"]: one["mean_gap"] for one in record["rounded"]["SmolLM2-135M"]}
    facts = [
        f"has {100 * sixteen / brain:.0f} % of the gap of bfloat16 on both sides",
        f"{first['mean_gap']:g} nats with e4m3 and {second['mean_gap']:g} with e5m2, against {brain:g} with bfloat16",
        f"With e4m3 {100 * first['frac_beyond_clip']:.0f} % of the tokens are beyond the clip",
        f"it is {near['fp8_e4m3']:g} nats with e4m3 and {near['fp8_e5m2']:g} with e5m2",
        f"`vllm_max_logp_gap={DAPOConfig('out').vllm_max_logp_gap}`",
    ]
    assert [fact for fact in facts if fact not in " ".join(page.split())] == []
    # What the page says of the limit.
    assert brain < DAPOConfig("out").vllm_max_logp_gap / 5
    assert first["mean_gap"] < DAPOConfig("out").vllm_max_logp_gap < second["mean_gap"]


def test_costs_of_the_host_are_those_that_are_stored():
    # In a process of its own: it sets what vLLM reads of the environment.
    command = [sys.executable, str(BENCHMARKS / "host_cost.py"), "--markdown"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert printed.strip() in (BENCHMARKS / "README.md").read_text()
    rows = [row for row in stored("host_cost")["results"] if "resident" in row]
    assert [row["arm"] for row in rows] == ["GRPOTrainer", "rounds", "stream", "server"]
    theirs, *ours = [row["resident"] for row in rows]
    assert {round(mine / theirs, 1) for mine in ours} == {0.3}
    alive = [row["alive"] for row in stored("host_cost")["results"] if "lengths" in row and "alive" in row]
    # The aim for completions as long as the paper's.
    assert (min(alive), max(alive)) == (8.4, 9.0)
    assert max(alive) <= 12


def test_a_number_that_no_file_has_is_found():
    facts = ["5.0 %", "12 of 66 settings"]
    assert numbers_without_a_source("It saves 5.0 % in 12 of 66 settings.", facts) == []
    assert numbers_without_a_source("It saves 15.0 % in 12 of 66 settings.", facts) == ["15.0"]
    assert numbers_without_a_source("In 13 of 66 settings, with `x=3`, [see](page2.md).", facts) == ["13", "66"]


@pytest.mark.parametrize("title", TITLES)
def test_every_result_has_its_command(title):
    commands = re.findall(r"`(python benchmarks/(\w+)\.py|make (\w+))", section(PAGE, title))
    assert commands, f"{title} names no command"
    for _, program, target in commands:
        if program:
            assert (BENCHMARKS / f"{program}.py").exists()
            assert (BENCHMARKS / f"{program}.json").exists()
        else:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
