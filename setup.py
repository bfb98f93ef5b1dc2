"""
Makes the text of the package page from README.md: its relative links become absolute, to the files of this version.

Everything else of the package is in pyproject.toml.
"""

import ast
import re
import tomllib
from pathlib import Path

from setuptools import setup


ROOT = Path(__file__).resolve().parent
# An image or a link, and its target.
_LINK = re.compile(r"(!?)(\[[^\]]*\])\(([^)\s]+)\)")


def absolute_links(text: str, folder: str = "", revision: str = "main") -> str:
    """
    Returns a Markdown text whose relative links and images lead to the repository.

    Args:
        text (`str`):
            The text.
        folder (`str`, *optional*, defaults to `""`):
            Where its file is in the repository.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch or tag.
    """
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/")

    def absolute(match: re.Match[str]) -> str:
        is_image, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        file, anchor, place = target.partition("#")
        path = (ROOT / folder / file).resolve().relative_to(ROOT).as_posix()
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        start = f"{raw}/{revision}" if is_image else f"{repository}/{kind}/{revision}"
        return f"{is_image}{words}({start}/{path}{anchor}{place})"

    return _LINK.sub(absolute, text)


def version() -> str:
    """Returns the version, without importing the package."""
    for node in ast.parse((ROOT / "trl_dapo" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise ValueError("trl_dapo/__init__.py sets no __version__.")


if __name__ == "__main__":
    setup(
        long_description=absolute_links((ROOT / "README.md").read_text(), revision=f"v{version()}"),
        long_description_content_type="text/markdown",
    )
