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


@pytest.fixture
def shared_data() -> Path:
    """Real data that lies beside some checkouts; a test that wants it is skipped where it does not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared data beside the checkout")
    return folder
