"""The floors of the package: a module imports only from lower ones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).resolve().parents[1] / "trl_dapo"

# Floor of each module or subpackage, or of a module in one that is lower than the rest; a new one must be given one.
FLOORS = {
    "errors": 0,
    "evaluation.k_metrics": 0,
    "field_types": 0,
    "publishing.card_text": 0,
    "replaced": 0,
    "reward_watch": 0,
    "sampling": 0,
    "terminal_text": 0,
    "token_privacy": 0,
    "checkpoints.files": 1,
    "diagnostics": 1,
    "loss_normalization": 1,
    "refill.group_grader": 1,
    "refill.local_groups": 1,
    "refill.streamed_group": 1,
    "rollouts": 1,
    "evaluation.answer_classes": 2,
    "rewards": 2,
    "batch_report": 3,
    "callbacks": 3,
    "checkpoints": 3,
    "collectives": 3,
    "config": 3,
    "curves": 3,
    "data": 3,
    "data_source": 3,
    "evaluation": 3,
    "hub_access": 3,
    "hub_errors": 3,
    "non_finite": 3,
    "preflight": 3,
    "problem_check": 3,
    "publishing": 3,
    "refill": 3,
    "reward_calls": 3,
    "rollout_record": 3,
    "run_checks": 3,
    "trainer": 3,
    "training_run": 3,
    "vllm_arguments": 3,
    "vllm_engine": 3,
    "__init__": 4,
    "__main__": 4,
    "command_line": 4,
}
# Outside packages that a floor may import, beside the standard library.
ALLOWED_ON_FLOOR = {
    0: set(),
    1: {"torch", "safetensors"},
    2: {"math_verify", "latex2sympy2_extended", "antlr4", "sympy", "trl"},
}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py"))


def dotted_name(path):
    """Returns the name of a module inside the package: `refill.stream`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def floor_of(name):
    """Returns the floor of what a name inside the package stands in: a module of its own floor, or its subpackage."""
    parts = name.split(".")
    return next(FLOORS[part] for n in range(len(parts), 0, -1) if (part := ".".join(parts[:n])) in FLOORS)


def imported_names(path):
    """Yields absolute dotted names, relative imports resolved."""
    package = ("trl_dapo", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_lower_floors(path):
    floor = floor_of(dotted_name(path))
    for name in imported_names(path):
        top, *rest = name.split(".")
        if top == "trl_dapo":
            assert floor_of(".".join(rest)) <= floor, f"{path.name} on floor {floor} imports {name}"
        elif floor in ALLOWED_ON_FLOOR:
            allowed = top in sys.stdlib_module_names or top in ALLOWED_ON_FLOOR[floor]
            assert allowed, f"{path.name} on floor {floor} imports {name}"


def test_no_two_rooms_import_each_other_in_a_circle():
    rooms = {dotted_name(path).split(".")[0] for path in modules()} - {"__init__"}
    uses = {room: set() for room in rooms}
    for path in modules():
        room = dotted_name(path).split(".")[0]
        names = [name.split(".") for name in imported_names(path)]
        uses.setdefault(room, set()).update(rest[0] for top, *rest in names if top == "trl_dapo" and rest[0] != room)
    while leaves := [room for room in rooms if not uses[room] & rooms]:
        rooms -= set(leaves)
    assert not rooms, f"these import each other in a circle: {sorted(rooms)}"


def test_only_one_module_imports_math_verify():
    importers = [path.name for path in modules() if any(n.startswith("math_verify") for n in imported_names(path))]
    assert importers == ["symbolic.py"]


def test_ground_floor_imports_without_torch():
    names = [dotted_name(path) for path in modules()]
    ground = [f"trl_dapo.{name}" for name in names if floor_of(name) == 0 and not name.endswith("__init__")]
    assert ground
    code = f"import sys; [__import__(name) for name in {ground!r}]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
