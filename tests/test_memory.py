"""Memory of a training does not grow."""

import importlib
import itertools
import sys
from pathlib import Path

import pytest
from checkout import ROOT


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module("memory")
    for name in ("memory", "memory_tables"):
        sys.modules.pop(name)


@pytest.fixture
def tables(memory):
    return sys.modules["memory_tables"]


@pytest.mark.bench
def test_growth_is_from_the_first_quarter_after_the_warm_up_to_the_last(tables):
    # Two of ten steps are warm-up; the quarters are (100, 110) and (103, 121).
    growth = tables.Growth.of([10, 20, 100, 110, 130, 90, 95, 99, 103, 121])
    assert (growth.first, growth.last, growth.largest) == (105.0, 112.0, 130.0)
    assert growth.relative == pytest.approx(112 / 105 - 1)


@pytest.mark.bench
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's figures")
def test_memory_of_a_process_is_what_it_takes(memory):
    before = memory.memory_of("self")
    taken = bytearray(64 * 2**20)
    after = memory.memory_of("self")
    assert len(taken) == 64 * 2**20
    for kind in ("rss", "pss", "uss", "anon"):
        assert after[kind] - before[kind] == pytest.approx(64 * 1024, rel=0.05)


@pytest.mark.bench
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's figures")
def test_what_is_held_is_told_from_holes(memory):
    before = memory.allocated()
    large, small = bytearray(48 * 2**20), [object() for _ in range(50_000)]
    held = memory.allocated()
    assert held["malloc"] - before["malloc"] == pytest.approx(48 * 1024, rel=0.05)
    assert held["python"] - before["python"] == pytest.approx(len(small), rel=0.05)
    del large
    assert memory.allocated()["malloc"] - before["malloc"] < 1024


@pytest.mark.bench
def test_figures_of_processes_are_read_in_their_units(tables):
    trainer = {"rss": 2048, "malloc": 1024, "python": 3_000_000}
    series = [
        {
            "trainer": trainer,
            "workers": {"7": {"rss": 4096, "anon": 1024 + 1024 * (step >= 8)}},
            # 512 each, and 768 in the last.
            "completions": 512 * step + 256 * (step == 9),
        }
        for step in range(10)
    ]
    found = tables.growths(series)
    assert {figure: growth.last for figure, growth in found.items()} == {
        ("trainer", "rss"): 2.0,
        ("trainer", "malloc"): 1.0,
        ("trainer", "python"): 3.0,
        ("trainer", "completions"): 768.0,
        ("worker 0", "rss"): 4.0,
        ("worker 0", "anon"): 2.0,
    }
    assert [growth.relative for growth in found.values()] == [0.0, 0.0, 0.0, 0.5, 0.0, 1.0]
    table = tables.markdown({"results": {"run": series}})
    assert "| run | worker 0 | allocated pages, MiB | 1 | 2 | +100.0% | 2 |" in table.splitlines()


@pytest.mark.slow
def test_memory_of_a_run_is_flat(memory, tables, tmp_path):
    from trl_dapo.recipes.word_problems import prepare_tiny_model

    prepare_tiny_model(str(tmp_path), seed=0)
    series = memory.run("DAPOTrainer", 80, str(tmp_path))
    assert len(series) == 20
    for figure, growth in tables.growths(series).items():
        if figure[0].startswith("worker") and figure[1] == "anon":
            continue
        assert growth.relative <= 0.02 or "completions" in figure, (figure, growth)
    for sizes in zip(*([worker["anon"] for worker in sample["workers"].values()] for sample in series), strict=True):
        # A worker's first comparison copies pages that it shared with its server: one step of the curve.
        copied = max(after - before for before, after in itertools.pairwise(sizes))
        assert max(sizes) - copied <= 1.02 * sizes[0], sizes
