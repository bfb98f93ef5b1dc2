import pytest
from matrix import PAGE, faults, page_with_table


def test_page_lists_the_faults_that_are_tested():
    assert PAGE.read_text() == page_with_table(), "run tests/faults/matrix.py"


@pytest.mark.parametrize(
    "named",
    [
        ("kill -9", "generation"), ("kill -9", "grading"), ("kill -9", "optimizer"), ("kill -9", "checkpoint"),
        ("kill -9", "push"), ("full disk", "checkpoint"), ("full disk", "record"), ("full disk", "card"),
        ("full disk", "not finite"), ("raises", "grading"), ("hangs", "grading"), ("NaN", "grading"),
        ("wrong count or type", "grading"), ("workers are killed", "grading"), ("one of two ranks", "generation"),
        ("trainer whose completions come from a vLLM server", "weight sync"), ("trainer and vLLM server", "optimizer"),
        ("vLLM server that comes back with old weights", "answer"), ("vLLM server that does not come back", "loads"),
        ("restarts with old weights", "between the look"), ("in the middle of a line", "sampling"),
    ],
)  # fmt: skip
def test_no_fault_is_missing(named):
    assert any(named[0] in what and named[1] in moment for what, moment, *_ in faults()), named
