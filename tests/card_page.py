"""Shows a model card as a browser does, to be looked at and asked."""

import shutil
import subprocess
from pathlib import Path

from markdown_it import MarkdownIt


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--allow-file-access-from-files", "--virtual-time-budget=5000"),
)
# Something like the page of a model on the Hub.
_STYLE = """
body { max-width: 860px; margin: 2em auto; font: 16px/1.5 sans-serif; color: #111 }
table { border-collapse: collapse; margin: 1em 0 } td, th { border: 1px solid #ddd; padding: 4px 10px; text-align: left }
code { background: #f3f4f6; padding: 1px 4px; border-radius: 4px; font-size: 90% }
pre { background: #f3f4f6; padding: 12px; overflow-x: auto } pre code { padding: 0 } img { max-width: 100% }
"""


def write_page(card: Path) -> Path:
    """Writes the card's body as a page beside it."""
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.read_text().split("\n---\n", 1)[1])
    # The page says of itself what is in it, where the browser can be asked for it.
    count = (
        "document.title = [document.querySelectorAll('table').length, document.querySelectorAll('h2').length, "
        "[...document.images].filter(image => image.complete && image.naturalWidth > 500).length].join(' ')"
    )
    page = card.with_suffix(".html")
    page.write_text(
        f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style>{body}<script>onload = () => {{ {count} }}</script>"
    )
    return page


def counts_in_browser(page: Path, profile: Path) -> tuple[int, int, int]:
    """Returns how many tables, sections and pictures that could be loaded the browser finds in a page."""
    shown = _chromium(page, profile, "--dump-dom")
    tables, sections, pictures = shown.split("<title>")[1].split("</title>")[0].split()
    return int(tables), int(sections), int(pictures)


def take_screenshot(page: Path, profile: Path, picture: Path, height: int = 3600) -> None:
    """Writes what the browser shows as a PNG."""
    _chromium(page, profile, f"--window-size=1000,{height}", f"--screenshot={picture}")


def _chromium(page: Path, profile: Path, *options: str) -> str:
    command = [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
