"""What mkdocs does with docs/ beside its own: pages from outside the folder, and links that lead out of it."""

import importlib.util
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


ROOT = Path(__file__).resolve().parents[2]
# Files of the repository that are pages of the site.
PAGES = {
    "README.md": "overview.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def _absolute_links(text: str, folder: str, page: str) -> str:
    """Returns a text with links to pages of the site, and to the repository where there is no such page."""
    spec = importlib.util.spec_from_file_location("setup_of_the_package", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def target_of(path: str) -> str | None:
        there = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if there is None and path.endswith((".png", ".svg")):
            there = f"pictures/{Path(path).name}"
        if there is None or there.startswith("site/"):
            return None
        return posixpath.relpath(there, posixpath.dirname(page) or ".")

    return str(module.absolute_links(text, folder, target_of=target_of))


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from outside, and their pictures."""
    sources = [*PAGES, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    for source in sources:
        text, folder = (ROOT / source).read_text(), posixpath.dirname(source)
        if source in PAGES:
            files.append(File.generated(config, PAGES[source], content=_absolute_links(text, folder, PAGES[source])))
        for picture in re.findall(r"\]\(([^)\s:]+\.(?:png|svg))\)", text):
            path = (ROOT / folder / picture).resolve()
            if not path.is_relative_to(ROOT / "docs") and files.get_file_from_path(f"pictures/{path.name}") is None:
                files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Rewrites the links of the pages of docs/."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return _absolute_links(markdown, "docs", page.file.src_uri)
