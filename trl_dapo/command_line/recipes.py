"""`trl-dapo recipes`: lists the recipes that come with the package, and copies one."""

import argparse
from collections.abc import Sequence

from trl_dapo.recipes import ACCELERATE, RECIPES, copy, first_comment, names


def run(arguments: Sequence[str]) -> None:
    """
    Prints the recipes, or copies one.

    Args:
        arguments (`Sequence[str]`):
            Nothing, or the name of a recipe and perhaps the file to write.

    Raises:
        `FileNotFoundError`, `FileExistsError`: when there is no such recipe, or the file is there already.
    """
    parser = argparse.ArgumentParser(prog="trl-dapo recipes", description="Lists the recipes, or copies one.")
    parser.add_argument("name", nargs="?", help="The recipe to copy. Unset: all are listed.")
    parser.add_argument("file", nargs="?", help="The file to write, or its folder. Unset: NAME.yaml in this folder.")
    args = parser.parse_args(list(arguments))
    if args.name is not None:
        path = copy(args.name, args.file)
        option = "--accelerate_config" if path.name.removesuffix(".yaml") in names(ACCELERATE) else "--config"
        print(f"{path}: change it, then run `trl-dapo train {option} {path}`.")
        return
    for title, folder in (
        ("Recipes (trl-dapo train --config NAME)", RECIPES),
        ("Several processes (trl-dapo train --accelerate_config NAME)", ACCELERATE),
    ):
        print(f"{title}:")
        for name in names(folder):
            print(f"  {name:26}{first_comment(folder / f'{name}.yaml')}")
    print("\ntrl-dapo recipes NAME [FILE] copies one, to be changed.")
