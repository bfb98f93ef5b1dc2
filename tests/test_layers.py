"""The floor plan of the package: what each room may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).resolve().parents[1] / "trl_dapo"

# From the top floor down. A room imports only rooms that stand below it here; a new room must be given a place.
ROOMS = [
    "__main__",
    "command_line",  # parse, call, print
    "__init__",
    "recipes",  # recipes by name, and the task of the quickstart
    "trainer",  # replay, loss, log: the overrides of TRL
    "publishing",  # facts of a run, model card, push
    "report",  # metrics, record, tables, curves
    "evaluation",  # avg@k, maj@k, pass@k
    "streaming",  # refill without rounds
    "refill",  # prompt source, rounds, assembly
    "turns",  # tools, environments, rollout functions
    "vllm_engine",  # generation, requests, canary
    "guards",  # deadlines of rewards, non-finite steps, empty updates
    "checkpoints",  # manifest, state, resume
    "loss",  # normalization, diagnostics
    "ranks",  # rollouts and every exchange between ranks
    "rewards",  # functions with TRL's signature
    "data",  # problems and their checks
    "config",  # fields and their checks
    "grading",  # answers, equivalence, worker pool
    "sampling",  # every decision: stream, planner, judge, ledger, flow, placement
    "trl_seams",  # all that is private of TRL, transformers and vLLM
    "atomic_write",
    "errors",
]
# Rooms that could be packages of their own: the outside packages that they may import beside the standard library.
SELF_CONTAINED = {
    "errors": set(),
    "atomic_write": set(),
    "sampling": {"numpy"},
    "grading": {"sympy"},
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def dotted_name(path):
    """Returns the name of a module inside the package: `refill.rounds`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(path):
    return dotted_name(path).split(".")[0]


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
def test_module_imports_only_rooms_below_its_own(path):
    room = room_of(path)
    for name in imported_names(path):
        top, *rest = name.split(".")
        if top == "trl_dapo":
            is_below = rest[0] == room or ROOMS.index(rest[0]) > ROOMS.index(room)
            assert is_below, f"{room} imports {name}, which stands above it"
        elif room in SELF_CONTAINED:
            assert top in sys.stdlib_module_names or top in SELF_CONTAINED[room], f"{room} imports {name}"


def test_every_room_has_a_place_and_the_root_has_few_files():
    assert {room_of(path) for path in modules()} == set(ROOMS)
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_self_contained_rooms_import_without_torch():
    names = [f"trl_dapo.{dotted_name(path)}" for path in modules() if room_of(path) in SELF_CONTAINED]
    names = [name for name in names if not name.endswith("__init__")]
    assert names
    code = f"import sys; [__import__(name) for name in {names!r}]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
