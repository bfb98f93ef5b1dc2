"""The faults of vLLM in docs/upstream.md are there, see tests/test_upstream.py."""

import subprocess
import sys

import pytest
import tiny_engine  # noqa: F401 - its environment
from test_upstream import FAULTS, said_by


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


# In a process of its own: an engine leaves a process group behind.
@pytest.mark.parametrize(
    "block", [pytest.param(block, id=title) for title, block in FAULTS if title.startswith("vLLM")]
)
def test_fault_is_still_there(block, tmp_path):
    finished = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.splitlines()[-1:] == said_by(block)
