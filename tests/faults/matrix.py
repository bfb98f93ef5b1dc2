"""
Writes the table of docs/faults.md from the tests: what goes wrong, when, how it ends, and the test that shows it.

Each line is a marker of a test or of one of its parameters, `pytest.mark.fault(what, moment, outcome)`, read without running
anything.
"""

import ast
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- The table is written by tests/faults/matrix.py. -->\n", "<!-- End of the table. -->"


def faults() -> list[tuple[str, str, str, str]]:
    """Returns what, moment, outcome and file of each marker; the same fault stands together."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            for decorator in getattr(node, "decorator_list", []):
                calls = [call for call in ast.walk(decorator) if isinstance(call, ast.Call)]
                for marker in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
                    if ast.unparse(marker.func) == "pytest.mark.fault":
                        what, moment, outcome = map(ast.literal_eval, marker.args)
                        found.append((what, moment, outcome, path.relative_to(ROOT).as_posix()))
    order = [what for what, *_ in found]
    return sorted(found, key=lambda fault: order.index(fault[0]))


def table() -> str:
    """Returns the table as Markdown."""
    lines = ["| what | when | how it ends | test |", "|---|---|---|---|"]
    before = None
    for what, moment, outcome, path in faults():
        lines.append(f"| {what if what != before else ''} | {moment} | {outcome} | `{path}` |")
        before = what
    return "\n".join(lines) + "\n"


def page_with_table() -> str:
    """Returns the page with the table as it should be."""
    head, _, rest = PAGE.read_text().partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with_table())
