"""Memory of a training does not grow."""

import importlib
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module("memory")
    sys.modules.pop("memory")


def test_growth_is_from_the_first_quarter_after_the_warm_up_to_the_last(memory):
    mebibyte = 1024
    # Two of ten steps are warm-up; the quarters are (100, 110) and (103, 121).
    growth = memory.Growth.of([mebibyte * value for value in (10, 20, 100, 110, 130, 90, 95, 99, 103, 121)])
    assert (growth.first, growth.last, growth.largest) == (105.0, 112.0, 130.0)
    assert growth.relative == pytest.approx(112 / 105 - 1)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's figures")
def test_memory_of_a_process_is_what_it_takes(memory):
    before = memory.memory_of("self")
    taken = bytearray(64 * 2**20)
    after = memory.memory_of("self")
    assert len(taken) == 64 * 2**20
    for kind in ("rss", "pss", "uss", "anon"):
        assert after[kind] - before[kind] == pytest.approx(64 * 1024, rel=0.05)


@pytest.mark.slow
def test_memory_of_a_run_is_flat(memory, tmp_path):
    from word_problems import prepare_tiny_model

    prepare_tiny_model(str(tmp_path), seed=0)
    series = memory.run("DAPOTrainer", 80, str(tmp_path))
    assert len(series) == 20
    for process, growth in memory.growths(series).items():
        assert growth.relative <= 0.02, (process, growth)
