"""The floors of the package: a module imports only from lower ones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).resolve().parents[1] / "trl_dapo"

# Floor of each module or subpackage; a new module must be given one.
FLOORS = {
    "errors": 0,
    "field_types": 0,
    "k_metrics": 0,
    "sampling": 0,
    "checkpoint_files": 1,
    "terminal_text": 0,
    "checkpoint_weights": 3,
    "token_privacy": 0,
    "diagnostics": 1,
    "loss_normalization": 1,
    "rollouts": 1,
    "rewards": 2,
    "completion_log": 3,
    "completion_sampler": 3,
    "config": 3,
    "answer_classes": 2,
    "assembly": 3,
    "batch_report": 3,
    "callbacks": 3,
    "collectives": 3,
    "completion_decoder": 3,
    "card_results": 3,
    "card_text": 0,
    "data": 3,
    "data_source": 3,
    "hub_errors": 3,
    "model_card": 3,
    "published_trainer": 3,
    "publishing": 3,
    "run_facts": 3,
    "dynamic_sampling": 3,
    "eval_figures": 3,
    "group_table": 3,
    "evaluation": 3,
    "evaluation_result": 3,
    "hub_access": 3,
    "image_prompts": 3,
    "iterable_stream": 3,
    "curves": 3,
    "non_finite": 3,
    "pacing": 3,
    "policy_scorer": 3,
    "preflight": 3,
    "replaced": 0,
    "reward_calls": 3,
    "reward_watch": 0,
    "rollout_sampler": 3,
    "round_refill": 3,
    "group_grader": 1,
    "judged_groups": 3,
    "local_groups": 1,
    "stream_refill": 3,
    "streamed_group": 1,
    "problem_check": 3,
    "resumable_trainer": 3,
    "rollout_record": 3,
    "rollout_shards": 3,
    "run_checks": 3,
    "run_state": 3,
    "trainer": 3,
    "vllm_arguments": 3,
    "vllm_canary": 3,
    "vllm_engine": 3,
    "vllm_requests": 3,
    "vllm_sampler": 3,
    "training_run": 3,
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


def part_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


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
    floor = FLOORS[part_of(path)]
    for name in imported_names(path):
        top, *rest = name.split(".")
        if top == "trl_dapo":
            assert FLOORS[rest[0]] <= floor, f"{path.name} on floor {floor} imports {name}"
        elif floor in ALLOWED_ON_FLOOR:
            allowed = top in sys.stdlib_module_names or top in ALLOWED_ON_FLOOR[floor]
            assert allowed, f"{path.name} on floor {floor} imports {name}"


def test_only_one_module_imports_math_verify():
    importers = [path.name for path in modules() if any(n.startswith("math_verify") for n in imported_names(path))]
    assert importers == ["symbolic.py"]


def test_ground_floor_imports_without_torch():
    names = [".".join(("trl_dapo", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in modules()]
    ground = [name for name in names if FLOORS.get(name.split(".")[1]) == 0 and not name.endswith("__init__")]
    assert ground
    code = f"import sys; [__import__(name) for name in {ground!r}]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
