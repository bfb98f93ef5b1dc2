"""
The options of the commands, read from the source of the dataclasses that define them.

Nothing is imported for it: torch and TRL take seconds, and help or a wrong option needs neither.
"""

import ast
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# Package, file and name of the dataclasses of each command, bases included.
_MODEL = ("trl", "trainer/model_config.py", "ModelConfig")
SOURCES = {
    "train": [
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/grpo_config.py", "GRPOConfig"),
        ("trl_dapo", "config/dapo_config.py", "DAPOConfig"),
        ("trl", "scripts/utils.py", "ScriptArguments"),
        ("trl_dapo", "recipes/word_problems.py", "TinyTaskArguments"),
        ("trl_dapo", "command_line/training_run.py", "TrainingScriptArguments"),
        ("trl_dapo", "command_line/launcher.py", "LaunchArguments"),
        _MODEL,
    ],
    "check": [("trl_dapo", "command_line/check.py", "CheckArguments")],
    "eval": [("trl_dapo", "command_line/eval.py", "EvaluationArguments"), _MODEL],
    "grade": [("trl_dapo", "command_line/grade.py", "GradeArguments")],
    "push": [("trl_dapo", "command_line/push.py", "PushArguments")],
}


# Of `trl-dapo train` too.
SOURCES["check"] += SOURCES["train"]


@dataclass(frozen=True)
class Option:
    """
    An option of a command.

    Attributes:
        name (`str`):
            Its name, without dashes.
        owner (`str`):
            The class that defines it, of several the last one.
        annotation (`str`):
            Its type as it is written: `int | None`.
        default (`Any`):
            Its default, where that is a constant.
        is_required (`bool`):
            Whether it has no default.
        help (`str`):
            What it does.
        choices (`tuple`):
            Its values, where only these are allowed.
    """

    name: str
    owner: str
    annotation: str
    default: Any = None
    is_required: bool = False
    help: str = ""
    choices: tuple[Any, ...] = ()

    @property
    def types(self) -> frozenset[str]:
        """The types of its annotation, without None."""
        return frozenset(part.strip() for part in self.annotation.split("|")) - {"None"}


@functools.cache
def read_options(command: str) -> dict[str, Option]:
    """
    Returns the options of a command.

    Args:
        command (`str`):
            The command.

    Returns:
        `dict[str, Option]`: by their names. Empty where a source file cannot be read.
    """
    found: dict[str, Option] = {}
    for package, file, name in SOURCES[command]:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return {}
        try:
            tree = ast.parse(Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8"))
        except OSError:
            return {}
        constants = _constants(tree)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                found |= _options_of(node, constants)
    return found


def _options_of(node: ast.ClassDef, constants: dict[str, Any]) -> dict[str, Option]:
    options = {}
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        keywords = {word.arg: word.value for word in item.value.keywords} if isinstance(item.value, ast.Call) else {}
        if isinstance(keywords.get("init"), ast.Constant):
            continue
        default: Any = keywords.get("default", None if isinstance(item.value, ast.Call) else item.value)
        factory = keywords.get("default_factory")
        if isinstance(factory, ast.Lambda):
            default = factory.body
        metadata = {
            key.value: value
            for key, value in zip(*_parts(keywords.get("metadata")), strict=True)
            if isinstance(key, ast.Constant)
        }
        options[item.target.id] = Option(
            item.target.id,
            node.name,
            ast.unparse(item.annotation),
            _value(default, constants),
            is_required=default is None and factory is None,
            help=" ".join(str(_value(metadata.get("help"), constants) or "").split()),
            choices=tuple(_value(metadata.get("choices"), constants) or ()),
        )
    return options


def _parts(node: ast.expr | None) -> tuple[list[Any], list[Any]]:
    return (node.keys, node.values) if isinstance(node, ast.Dict) else ([], [])


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Returns the constants of a module: what a default or the choices of an option may be named by."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _value(node.value, found)
            if value is not None:
                found[node.targets[0].id] = value
    return found


def _value(node: ast.expr | None, constants: dict[str, Any]) -> Any:
    """Returns the value of an expression, where it is a constant or the name of one; else None."""
    if node is None:
        return None
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "list"
        and len(node.args) == 1
    ):
        return _value(node.args[0], constants)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
