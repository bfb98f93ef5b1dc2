"""`make bench`: what it compares, what it allows, and that no benchmark is left out."""

import doctest
import json
import math
import re
import sys

import pytest
from checkout import ROOT


sys.path.insert(0, str(ROOT / "benchmarks"))

import bench
import comparison
import precision_tables
import refill
import scaling_tables
import streaming
import streaming_tables
from comparison import Measured, at_most, compare, equal, median, within_errors, within_factor


BENCHMARKS = ROOT / "benchmarks"
# Benchmarks without a short version, and why.
NOT_SHORT = {
    "adapter_sync": "needs vLLM; `tests/with_vllm/test_adapter.py` counts the bytes of a tiny model",
    "dynamic_sampling": "hours of training, of which a part says nothing",
    "engine_precision": "needs vLLM; tests/with_vllm/test_precision.py trains a tiny model with each engine",
    "gpu": "needs a GPU",
    "host_cost": "needs vLLM; tests/with_vllm/test_light_rounds.py weighs a round of a tiny model",
    "hidden_rates": "minutes of training; `tests/test_selective_rollout.py` trains on a smaller world",
    "many_passes": "hours of training, of which a part says nothing",
    "memory": "a run that is short enough has not warmed up; `tests/test_memory.py` weighs a tiny one",
    "overlap_accuracy": "minutes of training, of which a part says nothing",
    "quickstart": "minutes, and `make test-slow` runs it",
    "resume": "half an hour of killed trainings; `tests/faults/` kills shorter ones",
    "speculation": "needs vLLM; `tests/with_vllm/test_speculation.py` samples from a tiny model",
    "tools": "minutes of training, of which a part says nothing; tests/test_agent_examples.py runs the example",
    "step_trace": "takes seconds; tests/test_step_trace.py holds its numbers",
}


def test_every_benchmark_has_a_short_version_or_a_reason():
    # What takes options is a program; the other modules are parts of one.
    takes_options = re.compile(r"ArgumentParser\(|^    main_of\(", re.MULTILINE)
    programs = {path.stem for path in BENCHMARKS.glob("*.py") if takes_options.search(path.read_text())}
    registered = {benchmark.name for benchmark in bench.BENCHMARKS}
    assert programs - {"bench"} == registered | NOT_SHORT.keys()
    assert not registered & NOT_SHORT.keys()
    for name in registered:
        source = (BENCHMARKS / f"{name}.py").read_text()
        assert '"--short"' in source
        assert '"--output"' in source


@pytest.mark.parametrize("benchmark", bench.BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_stored_results_agree_with_themselves(benchmark):
    rows = bench.compare_records(benchmark, bench.read(BENCHMARKS / f"{benchmark.name}.json"))
    assert [row for row in rows if not row.holds] == []
    assert len(rows) == len(benchmark.tolerances)


def test_computed_figures_are_those_that_are_stored():
    """The real programs on one of their short cases each; a changed decision of the product shows here first."""
    (of_refill,) = [benchmark for benchmark in bench.BENCHMARKS if benchmark.name == "refill"]
    records = refill.run_all({16: refill.NUM_STEPS[16]}, stream_numbers=(4,))
    rows = bench.compare_records(of_refill, {"records": records})
    # 9 policies on 2 engines, 8 figures each.
    assert [(row.num_figures, row.holds) for row in rows] == [(144, True)]
    (of_streaming,) = [benchmark for benchmark in bench.BENCHMARKS if benchmark.name == "streaming"]
    title = "8 x 4, 1 rank of 8 slots (as vLLM)"
    options, _ = streaming.simulated_cases(streaming.measured_cost())[title]
    record = streaming.simulate(title, options, 0.5, 3)
    rows = bench.compare_records(of_streaming, {"simulated": {"records": [record]}})
    assert [(row.num_figures, row.holds) for row in rows] == [(6 * 3 * 3, True)]


@pytest.mark.bench
@pytest.mark.parametrize(
    "module", [comparison, precision_tables, scaling_tables, streaming_tables], ids=lambda module: module.__name__
)
def test_docstring_examples_hold(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def one(old, new, tolerance):
    (row,) = compare({"x": old}, {"x": new}, [tolerance])
    return row.holds


@pytest.mark.bench
def test_tolerances_hold_up_to_their_bounds():
    assert one(Measured(2.0), Measured(2.0001), equal("x"))
    assert not one(Measured(2.0), Measured(2.001), equal("x"))
    assert not one(Measured(-2.0), Measured(-2.001), equal("x"))
    assert one(Measured(0.0), Measured(0.0), equal("x"))
    assert not one(Measured(0.0), Measured(1e-9), equal("x"))
    assert one(Measured(3.0), Measured(5.9), within_factor("x", 2.0))
    assert not one(Measured(3.0), Measured(1.4), within_factor("x", 2.0))
    # 4 standard errors of a difference of 0.03 and 0.04: 0.2.
    assert one(Measured(1.0, 0.03), Measured(1.19, 0.04), within_errors("x"))
    assert not one(Measured(1.0, 0.03), Measured(1.21, 0.04), within_errors("x"))
    assert one(Measured(1.0), Measured(1.04), within_errors("x", floor=0.05))
    assert one(Measured(3e-7), Measured(9e-6), at_most("x", 1e-5))
    assert not one(Measured(3e-7), Measured(2e-5), at_most("x", 1e-5))
    for tolerance in (equal("x"), within_factor("x", 2.0), within_errors("x", floor=1.0), at_most("x", 1.0)):
        assert not one(Measured(1.0), Measured(math.nan), tolerance)


@pytest.mark.bench
def test_the_figure_furthest_outside_is_shown():
    old = {"a": Measured(1.0), "b": Measured(1.0), "c": Measured(1.0)}
    new = {"a": Measured(1.1), "b": Measured(2.5), "c": Measured(2.2)}
    (row,) = compare(old, new, [within_factor("*", 2.0)])
    assert (row.figure, row.num_figures, row.holds) == ("b", 3, False)


@pytest.mark.bench
def test_what_cannot_be_compared_does_not_hold():
    rows = compare({"a": Measured(1.0)}, {"a": Measured(1.0), "b": Measured(1.0)}, [equal("*"), equal("c")])
    assert {(row.figure, row.allowed, row.holds) for row in rows} == {
        ("b", "not stored", False),
        ("a", "equal", True),
        ("c", "not measured", False),
    }
    (row, _) = compare({"a": Measured(1.0)}, {"a": Measured(1.0)}, [equal("b")])
    assert (row.allowed, row.holds) == ("no tolerance", False)


@pytest.mark.bench
def test_error_of_the_median_by_hand():
    # Standard deviation of 1, 2, 3, 4, 10: sqrt((9 + 4 + 1 + 0 + 36) / 4).
    expected = math.sqrt(math.pi / 2) * math.sqrt(12.5) / math.sqrt(5)
    assert median([4.0, 1.0, 10.0, 3.0, 2.0]) == (3.0, pytest.approx(expected))


@pytest.mark.bench
def test_program_compares_what_was_kept_and_fails_when_a_figure_is_outside(tmp_path, monkeypatch, capsys):
    record = json.loads((BENCHMARKS / "split_invariance.json").read_text())
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "split_invariance", "--compare", str(tmp_path)])

    def status():
        (tmp_path / "split_invariance.json").write_text(json.dumps(record))
        with pytest.raises(SystemExit) as ended:
            bench.main()
        return ended.value.code

    assert status() == 0
    assert "3 of 3 hold" in capsys.readouterr().out
    record["largest_relative_deviation"][0]["batch"] = 1e-3
    assert status() == 1
    printed = capsys.readouterr().out
    assert "| split_invariance | 1 x 16 x 1 x 1/batch (and 11 more) |" in printed
    assert "**outside**" in printed


@pytest.mark.bench
def test_benchmark_that_fails_is_a_row_and_not_the_end(monkeypatch, capsys):
    broken = bench.Benchmark("no_such_program", lambda record: {}, [equal("*")])
    monkeypatch.setattr(bench, "BENCHMARKS", (broken,))
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 1
    assert "No such file or directory" in capsys.readouterr().out
