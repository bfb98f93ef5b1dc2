"""Recipes by name: YAML files with options of `trl-dapo train`, and configurations of accelerate to start it with."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path


RECIPES = Path(__file__).parent
ACCELERATE = RECIPES / "accelerate"


def names(folder: Path = RECIPES) -> list[str]:
    """
    Returns the names of the files that come with the package.

    Args:
        folder (`Path`, *optional*, defaults to `RECIPES`):
            `RECIPES` or `ACCELERATE`.

    >>> names()
    ['dapo_math_qwen2.5_7b', 'dapo_qwen2.5_32b_paper', 'gsm8k_qwen2.5_0.5b', 'quickstart']
    """
    return sorted(path.name.removesuffix(".yaml") for path in folder.glob("*.yaml"))


def find(name: str, option: str = "--config", folder: Path = RECIPES) -> Path:
    """
    Returns the file that a name or a path means. A file that exists wins over a name.

    Args:
        name (`str`):
            Path of a file, or one of [`names`].
        option (`str`, *optional*, defaults to `"--config"`):
            The option with which it was given, for the error message.
        folder (`Path`, *optional*, defaults to `RECIPES`):
            `RECIPES` or `ACCELERATE`.

    Raises:
        `FileNotFoundError`: when it is neither.

    >>> find("quickstart").name
    'quickstart.yaml'
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known, stem = names(folder), name.removesuffix(".yaml")
    if stem in known:
        return folder / f"{stem}.yaml"
    # A name without a folder may be a misspelt one; of a path, the last part may be right.
    near = difflib.get_close_matches(Path(stem).name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"names are {', '.join(known)}"
    raise FileNotFoundError(
        f"{option} is {name!r}, but there is no such file, and nothing of this name comes with trl-dapo ({hint})."
    )


def with_path(arguments: Sequence[str]) -> list[str]:
    """
    Returns the options of a command line, with the name of a recipe after `--config` replaced by its path.

    Args:
        arguments (`Sequence[str]`):
            The options.

    Raises:
        `FileNotFoundError`: when there is no such file and no such recipe.

    >>> with_path(["--config", "quickstart", "--seed", "1"])[1].endswith("quickstart.yaml")
    True
    """
    given = list(arguments)
    number = given.index("--config") + 1 if "--config" in given else len(given)
    if number < len(given):
        given[number] = str(find(given[number]))
    return given


def first_comment(path: Path) -> str:
    """
    Returns the first line of a recipe, which says what it trains.

    Args:
        path (`Path`):
            The file.

    >>> first_comment(find("quickstart"))
    'Trains a tiny model on word problems, on a CPU: no Hub, no GPU, no data.'
    """
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").rstrip(":")


def copy(name: str, target: str | os.PathLike[str] | None = None) -> Path:
    """
    Copies a recipe, or a configuration of accelerate, to be changed. Returns the path of the copy.

    Args:
        name (`str`):
            One of [`names`], of either kind.
        target (`str` or `os.PathLike`, *optional*):
            The new file, or a folder for it. `None`: the current folder.

    Raises:
        `FileNotFoundError`: when nothing has this name.
        `FileExistsError`: when the new file is there already.
    """
    source = find(name, "NAME", ACCELERATE if name.removesuffix(".yaml") in names(ACCELERATE) else RECIPES)
    path = Path("." if target is None else target).expanduser()
    path = path / source.name if path.is_dir() else path
    try:
        # "x": no look before the write, so that nothing is overwritten in between.
        with path.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise FileExistsError(f"{path} is there already. Give another file, or remove it first.") from None
    return path
