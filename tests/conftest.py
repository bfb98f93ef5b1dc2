import functools
import gc
import os
import sys
from pathlib import Path

import pytest


# Before any import of torch: see the Makefile. CI=1 keeps TRL from sending telemetry out of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CI", "1")

ROOT = Path(__file__).resolve().parents[1]
# The Space is a folder of its own on the Hub, and no package.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "hub" / "space")]


def pytest_collection_finish():
    """
    Takes what is imported out of garbage collection: `train()` collects at its start, 0.2 s with transformers and TRL loaded.

    And looks each package up once: accelerate reads the metadata of PEFT several times in each optimizer step.
    """
    gc.collect()
    gc.freeze()
    if "accelerate" in sys.modules:
        from accelerate.utils import imports

        imports._is_package_available = functools.cache(imports._is_package_available)


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk():
    """Leaves out the flush of written files: thousands of them are 10 % of the suite, and only a loss of power asks for it."""

    def fsync(descriptor):
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


# Metrics that reward functions of tests log.
_OF_TESTS = {"mine", "eval_mine", "calls", "eval_calls", "my_metric", "eval_my_metric"}


@pytest.fixture(autouse=True)
def _every_logged_metric_is_in_the_reference(monkeypatch):
    """Fails any test in whose runs a `DAPOTrainer` logs a metric that docs/metrics.md does not explain."""
    trainer = sys.modules.get("trl_dapo.trainer")
    if trainer is None:
        yield
        return
    from trl_dapo.report.metric_reference import is_explained

    log, names = trainer.DAPOTrainer.log, set()

    def log_and_keep(self, *args, **kwargs):
        log(self, *args, **kwargs)
        names.update(self.state.log_history[-1] if self.state.log_history else ())

    monkeypatch.setattr(trainer.DAPOTrainer, "log", log_and_keep)
    yield
    unknown = sorted(name for name in names - _OF_TESTS if not is_explained(name))
    assert not unknown, f"explain {unknown} in trl_dapo/report/metric_reference.py, and write docs/metrics.md again"


@pytest.fixture(autouse=True)
def _curves_are_drawn_for_tests_that_look_at_them(request, monkeypatch):
    """Leaves them out at the ends of all other runs: half a second each."""
    if "trl_dapo.trainer" in sys.modules and request.node.get_closest_marker("curves") is None:
        monkeypatch.setattr("trl_dapo.publishing.published_trainer.draw_curves", lambda facts, folder: False)


@pytest.fixture
def shared_data() -> Path:
    """Real data that lies beside some checkouts; a test that wants it is skipped where it does not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared data beside the checkout")
    return folder
