"""The trace of a step: calls between modules that were written to be counted by hand, and the step of the tiny model."""

import doctest
import sys
import types
from collections import Counter

import pytest
from checkout import ROOT


sys.path.insert(0, str(ROOT / "benchmarks"))

import step_trace


MODULES = {
    "house.upper": """
import functools
from house import lower

def call_directly():
    return lower.leaf()

def call_twice_through_another_package():
    return list(map(functools.partial(lower.leaf), [1, 2]))

def call_through(call):
    return call(lower.leaf)

def call_within():
    return here()

def here():
    return 1

def make_dataclass_and_read_property():
    return lower.Pair(1, 2).total

def use_generator():
    return sum(lower.generate())

def call_back():
    return lower.call(here)
""",
    "house.lower": """
from dataclasses import dataclass

def leaf(*_):
    return 1

@dataclass
class Pair:
    one: int
    other: int

    @property
    def total(self):
        return self.one + self.other

def generate():
    yield leaf()
    yield 2

def call(function):
    return function()
""",
    "outside": """
def call(function):
    return function()
""",
}


@pytest.fixture
def house(monkeypatch):
    """A package of two modules, and a module of another package."""
    package = types.ModuleType("house")
    modules = {"house": package} | {name: types.ModuleType(name) for name in MODULES}
    package.lower, package.upper = modules["house.lower"], modules["house.upper"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("house.lower", "house.upper", "outside"):
        exec(MODULES[name], modules[name].__dict__)
    return types.SimpleNamespace(upper=package.upper, outside=modules["outside"])


DOWN, UP = ("house.upper", "house.lower"), ("house.lower", "house.upper")


@pytest.mark.parametrize(
    ("function", "crossings", "enters_lower"),
    [
        ("call_directly", {DOWN: 1}, True),
        ("call_twice_through_another_package", {DOWN: 2}, True),
        ("call_within", {}, False),
        ("make_dataclass_and_read_property", {DOWN: 2}, True),
        ("use_generator", {}, True),  # it calls a function of its own module
        ("call_back", {DOWN: 1, UP: 1}, True),
    ],
)
def test_crossings_are_those_counted_by_hand(house, function, crossings, enters_lower):
    function = getattr(house.upper, function)
    with step_trace.CallTracer("house") as tracer:
        function()
    assert tracer.crossings == Counter(crossings)
    assert tracer.num_crossings == sum(crossings.values())
    assert tracer.modules == ({"house.upper", "house.lower"} if enters_lower else {"house.upper"})


def test_frames_of_other_packages_are_looked_through(house):
    with step_trace.CallTracer("house") as tracer:
        house.outside.call(house.upper.call_directly)  # no frame of the house is below the first call
        house.upper.call_through(house.outside.call)
    assert tracer.crossings == Counter({DOWN: 2})


def test_nothing_is_counted_outside_the_trace(house):
    with step_trace.CallTracer("house") as tracer:
        pass
    house.upper.call_directly()
    assert tracer.summary() == {"crossings": 0, "modules_entered": 0, "pairs": [], "modules": []}


def test_example_of_the_tracer():
    assert doctest.testmod(step_trace).failed == 0


def test_traced_step_samples_one_round_and_stays_within_its_bounds():
    trace = step_trace.trace_step()
    assert trace["sampled"]["rounds"] == 1
    calls = Counter()
    for pair in trace["pairs"]:
        assert pair["from"] != pair["to"]
        calls[pair["to"]] += pair["calls"]
    assert calls.total() == trace["crossings"]
    # One round calls the punishment once.
    assert calls["trl_dapo.rewards.overlong"] == 1
    assert trace["crossings"] <= 90
    assert trace["modules_entered"] <= 20
