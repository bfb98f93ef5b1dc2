"""The benchmarks' own arithmetic, and that their tables in the documentation are those of the stored results."""

import importlib
import json
import sys

import pytest
from checkout import ROOT


BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def dynamic_sampling(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module("dynamic_sampling")
    sys.modules.pop("dynamic_sampling")


@pytest.mark.bench
def test_cost_to_reach_an_accuracy_is_interpolated_at_the_first_crossing(dynamic_sampling):
    curve = [{"accuracy": accuracy, "step": step} for step, accuracy in ((0, 0.5), (20, 0.7), (40, 0.65), (60, 0.8))]
    assert dynamic_sampling.cost_to_reach(curve, 0.6, "step") == pytest.approx(10.0)
    assert dynamic_sampling.cost_to_reach(curve, 0.75, "step") == pytest.approx(40 + 20 * 0.1 / 0.15)
    assert dynamic_sampling.cost_to_reach(curve, 0.9, "step") is None


def test_documentation_shows_the_tables_of_dynamic_sampling(dynamic_sampling):
    record = json.loads(dynamic_sampling.RESULTS.read_text())
    assert dynamic_sampling.markdown(record) in (BENCHMARKS / "README.md").read_text()


def test_documentation_shows_the_table_of_splits():
    readme = (BENCHMARKS / "README.md").read_text()
    for row in json.loads((BENCHMARKS / "split_invariance.json").read_text())["largest_relative_deviation"]:
        ranks, micro_batch, accumulation, num_updates = row["shape"]
        cells = " | ".join(f"{row[arm]:.1e}" for arm in ("batch", "group", "TRL"))
        assert f"| {ranks} x {micro_batch} x {accumulation}, {num_updates} | {cells} |" in readme
