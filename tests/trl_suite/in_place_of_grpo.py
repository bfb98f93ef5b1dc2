"""
A plugin of pytest that runs tests of `GRPOTrainer` with `DAPOTrainer` in its place, and writes down how each ended.

    pytest -p in_place_of_grpo --trainer defaults --outcomes out.json tests/test_grpo_trainer.py
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torchvision_of_any_build  # noqa: F401 - before transformers
from trl import import_utils


# TRL's trainer itself; ours with dynamic sampling off; ours as it is.
MODES = ("grpo", "sampling_off", "defaults")


def trainer_and_config(mode):
    """Returns the classes that a mode has in the places of `GRPOTrainer` and `GRPOConfig`."""
    if mode == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        return GRPOTrainer, GRPOConfig
    from trl_dapo import DAPOConfig, DAPOTrainer

    return DAPOTrainer, DAPOConfig if mode == "defaults" else _without_sampling(DAPOConfig)


def _without_sampling(config):
    @dataclass
    class SamplingOffConfig(config):
        dynamic_sampling: bool = False

    # Checkpoints pickle the arguments, so their class has to be found by its name.
    SamplingOffConfig.__qualname__ = "SamplingOffConfig"
    globals()["SamplingOffConfig"] = SamplingOffConfig
    return SamplingOffConfig


def pytest_addoption(parser):
    group = parser.getgroup("in place of GRPOTrainer")
    group.addoption("--trainer", choices=MODES, default="grpo", help="what stands for GRPOTrainer")
    group.addoption("--outcomes", help="JSON file for outcome and message of each test")
    group.addoption("--only", help="JSON file with the names of the tests that run")


def pytest_configure(config):
    # Tests of another release than the installed one may ask for checks that it does not have.
    vars(import_utils).setdefault("__getattr__", _check_of_a_package)
    # Workers of pytest-xdist send their reports to one process, which writes them.
    if config.getoption("--outcomes") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(config.getoption("--outcomes"))))


def _check_of_a_package(name):
    if name.startswith("is_") and name.endswith("_available"):
        return lambda: False
    raise AttributeError(f"module 'trl.import_utils' has no attribute {name!r}")


def pytest_collection_modifyitems(config, items):
    """Leaves the chosen tests, and puts the classes into their modules."""
    if config.getoption("--only"):
        chosen = set(json.loads(Path(config.getoption("--only")).read_text()))
        items[:] = [item for item in items if name_of(item.nodeid) in chosen]
    trainer, arguments = trainer_and_config(config.getoption("--trainer"))
    for module in {item.module for item in items}:
        if not (hasattr(module, "GRPOTrainer") and hasattr(module, "GRPOConfig")):
            raise pytest.UsageError(
                f"{module.__name__} does not import GRPOTrainer and GRPOConfig: nothing to replace"
            )
        module.GRPOTrainer, module.GRPOConfig = trainer, arguments


def name_of(nodeid):
    """
    Returns the name of a test without its file.

    >>> name_of("tests/test_x.py::TestY::test_z[a::b]")
    'TestY::test_z[a::b]'
    """
    return nodeid.split("::", 1)[1]


class Outcomes:
    """Collects how each test ended: passed, failed, skipped or xfailed, with the message."""

    def __init__(self, path):
        self.path = path
        self.found = {}

    def pytest_runtest_logreport(self, report):
        outcome = "xfailed" if report.skipped and hasattr(report, "wasxfail") else report.outcome
        # A test has three reports; what fails in one of them fails.
        if report.when == "call" or outcome != "passed":
            self.found[name_of(report.nodeid)] = {"outcome": outcome, "message": _message(report)}

    def pytest_sessionfinish(self):
        self.path.write_text(json.dumps(self.found, indent=1))


def _message(report):
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return crash.message
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr or "")
