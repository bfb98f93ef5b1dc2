"""The examples in docstrings are true."""

import doctest
import importlib

import pytest
from test_layers import PACKAGE, modules


NAMES = [".".join(("trl_dapo", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in modules()]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("__init__")])
def test_docstring_examples_hold(name):
    if name == "trl_dapo.report.notebook_progress":
        pytest.importorskip("IPython")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
