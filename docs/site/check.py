"""
Checks a built site: nothing is loaded from another site, every link and anchor leads somewhere, and the search knows every page.

    python docs/site/check.py out/site
"""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page, what it links to, and what a browser loads for it."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Takes in a tag."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            self.loaded.append(values["href"])


def faults(site: Path) -> list[str]:
    """
    Returns what is wrong with a site, a line each.

    Args:
        site (`Path`):
            Its folder.
    """
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    found = [] if pages else [f"{site} has no pages"]
    for path, page in pages.items():
        here = path.relative_to(site)
        found += [f"{here} loads {url}" for url in page.loaded if urlsplit(url).scheme or url.startswith("//")]
        for url in page.links + page.loaded:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{here} links to {url}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{here} links to {url}, which has no such anchor")
    index = site / "search" / "search_index.json"
    places = (
        {entry["location"].partition("#")[0] for entry in json.loads(index.read_text())["docs"]}
        if index.exists()
        else set()
    )
    found += [
        f"the search does not know {path.relative_to(site)}"
        for path in pages
        if path.relative_to(site).as_posix() not in places
    ]
    return found


if __name__ == "__main__":
    lines = faults(Path(sys.argv[1]).resolve())
    print("\n".join(lines) or f"{sys.argv[1]}: no broken link, nothing loaded from another site.")
    sys.exit(bool(lines))
