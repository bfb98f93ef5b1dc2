"""The ablation's arms and arithmetic, and that its tables in the documentation are those of the stored results."""

import importlib
import itertools
import json
import math
import sys
from types import SimpleNamespace

import pytest
from checkout import ROOT


BENCHMARKS = ROOT / "benchmarks"
NAMES = ("ablation", "ablation_tables", "ablation_claims", "ablation_figure", "measured")


@pytest.fixture(scope="module")
def modules():
    """Returns the benchmark's modules, which are scripts and import each other as such."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    for name in NAMES:
        sys.modules.pop(name)


def curve(*accuracies, tokens=100.0, seconds=1.0):
    """Returns an evaluation every 10 steps, each with so many tokens and seconds more."""
    return [
        {"step": 10 * n, "accuracy": accuracy, "tokens": n * tokens, "cpu_seconds": n * seconds, "completions": n}
        for n, accuracy in enumerate(accuracies)
    ]


@pytest.mark.bench
def test_each_rung_adds_its_part_and_each_arm_lacks_its_own(modules):
    arms = modules.ablation.ARMS
    whole = {
        "mask_truncated_completions": True, "epsilon_high": 0.28, "soft_punish_cache": 14, "loss_type": "dapo",
        "dynamic_sampling": True,
    }  # fmt: skip
    assert arms["DAPO"].settings == whole
    assert arms["DAPO - clip-higher"].settings == whole | {"epsilon_high": 0.2}
    assert arms["DAPO - soft overlong punishment"].settings == whole | {"soft_punish_cache": 0}
    assert arms["DAPO - token-level loss"].settings == whole | {"loss_type": "grpo"}
    assert arms["DAPO - overlong filtering"].settings == whole | {"mask_truncated_completions": False}
    assert arms["TRL"].settings == whole | {"dynamic_sampling": False, "max_steps": 400}
    ladder = [arms[name].settings for name in modules.ablation_tables.LADDER]
    for before, after in itertools.pairwise(ladder):
        assert sum(before[name] != after[name] for name in whole) == 1
    assert arms[modules.ablation_tables.left_out("dynamic sampling")].settings == ladder[-2]


@pytest.mark.bench
def test_half_of_the_groups_teach_nothing_at_first(modules):
    families = modules.ablation.FAMILIES
    assert sum(families.values()) == pytest.approx(1.0)
    assert families["sum"] + families["product"] == pytest.approx(0.5)


@pytest.mark.bench
def test_interval_is_students(modules):
    interval = modules.ablation_tables.Interval.of([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.3027, standard deviation 1.
    assert interval.mean == 2.0
    assert interval.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-3)
    assert interval.text(1) == "2.0 ± 2.5"
    assert math.isnan(modules.ablation_tables.Interval.of([1.0]).half)


@pytest.mark.bench
@pytest.mark.parametrize(
    ("mean", "half", "claimed", "verdict"),
    [(2.0, 1.0, 1, "held"), (2.0, 1.0, -1, "opposite"), (-2.0, 1.0, -1, "held"), (1.0, 2.0, 1, "not seen")],
)
def test_verdict_is_that_of_the_interval(modules, mean, half, claimed, verdict):
    assert modules.ablation_tables.Interval(mean, half).verdict(claimed) == verdict
    assert modules.ablation_tables.Interval(mean, math.nan).verdict(claimed) == "not seen"


@pytest.mark.bench
def test_budgets_are_equal_by_hand(modules):
    tables = modules.ablation_tables
    # DAPO spends 300 tokens a leg, TRL 100: with DAPO's 600 TRL has taken 6 legs of 10 steps.
    mine = {"0": {"curve": curve(0.3, 0.5, 0.6, tokens=300.0)}, "1": {"curve": curve(0.3, 0.4, 0.7, tokens=300.0)}}
    its = {seed: {"curve": curve(0.3, 0.4, 0.44, 0.46, 0.5, 0.52, 0.54, 0.56)} for seed in "01"}
    data = tables.Comparison({"results": {"DAPO": mine, "TRL": its}})
    # After 20 steps: 0.6 and 0.7 against 0.44.
    assert tables.budget_gain(data, "step").mean == pytest.approx((0.16 + 0.26) / 2)
    # After 600 tokens: against 0.54.
    assert tables.budget_gain(data, "tokens").mean == pytest.approx((0.06 + 0.16) / 2)
    # To 0.5, 0.2 above the start: 10 steps or 10 + 10 / 3, against 40; 300 or 400 tokens, against 400.
    assert tables.ratios_to_reach(data, 0.2, "step") == (pytest.approx([10 / 40, (10 + 10 / 3) / 40]), 2)
    assert tables.ratios_to_reach(data, 0.2, "tokens") == (pytest.approx([300 / 400, 400 / 400]), 2)
    assert tables.ratios_to_reach(data, 0.35, "step") == ([], 2)


@pytest.mark.bench
def test_largest_drop_is_from_the_best_before(modules):
    assert modules.ablation_tables.largest_drop({"curve": curve(0.3, 0.5, 0.45, 0.6, 0.52, 0.58)}) == pytest.approx(
        0.08
    )


@pytest.mark.bench
def test_differences_are_paired(modules):
    tables = modules.ablation_tables
    results = {
        "DAPO": {seed: {"curve": curve(0.3, value)} for seed, value in (("0", 0.5), ("1", 0.7), ("2", 0.9))},
        "naive GRPO": {seed: {"curve": curve(0.3, value)} for seed, value in (("0", 0.4), ("1", 0.6))},
    }
    data = tables.Comparison({"results": results})
    gain = data.difference("DAPO", "naive GRPO", "accuracy")
    # Seed 2 has no partner. The spread between seeds is not in the difference.
    assert gain.mean == pytest.approx(0.1)
    assert gain.half == pytest.approx(0.0, abs=1e-9)


def test_documentation_shows_the_tables_of_the_ablation(modules):
    record = json.loads(modules.ablation.RESULTS.read_text())
    assert modules.ablation.markdown(record) in (BENCHMARKS / "README.md").read_text()
    assert all(len(record["results"][name]) >= modules.ablation.NUM_SEEDS for name in modules.ablation_tables.LADDER)
