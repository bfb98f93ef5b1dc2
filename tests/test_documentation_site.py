"""The documentation site: its pages, its pictures, and the check of what mkdocs builds. None of it needs mkdocs."""

import os
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from checkout import ROOT


sys.path.insert(0, str(ROOT / "docs" / "site"))
import check
import pictures


# Pages that a hook adds from outside docs/.
FROM_OUTSIDE = {"overview.md", "benchmarks.md", "contributing.md", "changelog.md"}


def navigation():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    entries = [entry for section in config["nav"] for entries in section.values() for entry in entries]
    targets = [next(iter(entry.values())) if isinstance(entry, dict) else entry for entry in entries]
    return config, [target for target in targets if "://" not in target]


def test_every_page_is_in_the_navigation_once():
    config, targets = navigation()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert Counter(targets) == Counter([*pages, *FROM_OUTSIDE])
    assert config["strict"]
    hooks = (ROOT / "docs" / "site" / "hooks.py").read_text()
    assert {page for page in FROM_OUTSIDE if f'"{page}"' in hooks} == FROM_OUTSIDE


def test_site_loads_no_font_from_elsewhere():
    config, _ = navigation()
    assert config["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url"} & config.keys()
    assert all((ROOT / "docs" / path).exists() for path in config["extra_css"])


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_picture_is_what_the_code_says(name):
    said = "run `python docs/site/pictures.py --write`"
    assert (ROOT / "docs" / "pictures" / name).read_text() == pictures.PICTURES[name](), said


def test_example_of_the_picture_is_a_batch_as_the_page_tells_it():
    groups = pictures.example()
    trained = [group for group in groups if group.fate == "trained"]
    assert len(trained) == pictures.NUM_GROUPS
    assert all(0 < sum(group.rewards) < pictures.NUM_GENERATIONS for group in trained)
    # The surplus stands behind the last group that trains: the batch is the first ones in stream order.
    fates = [group.fate for group in groups]
    assert fates.index("surplus") > max(number for number, fate in enumerate(fates) if fate == "trained")
    assert {group.round_number for group in groups} == {1, 2}
    picture = pictures.batch_picture()
    assert picture.count('stroke="#1d3557"') == len(trained) + fates.count("surplus")
    assert picture.count("<rect") == 1 + len(trained) + fates.count("surplus") + 4 * len(groups)


def write_site(folder, body, searched='{"docs": [{"location": "index.html"}]}'):
    (folder / "search").mkdir(parents=True)
    (folder / "search" / "search_index.json").write_text(searched)
    (folder / "index.html").write_text(f"<html><body id='top'>{body}</body></html>")
    return check.faults(folder)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<a href='nowhere.html'>x</a>", "links to nowhere.html, which is not there"),
        ("<a href='#bottom'>x</a>", "links to #bottom, which has no such anchor"),
        ("<a href='index.html#bottom'>x</a>", "which has no such anchor"),
        ("<img src='https://x.y/z.png'>", "loads https://x.y/z.png"),
        ("<link rel='stylesheet' href='//fonts.x/y.css'>", "loads //fonts.x/y.css"),
        ("<script src='gone.js'></script>", "links to gone.js, which is not there"),
    ],
)
def test_check_finds_what_is_broken(tmp_path, body, fault):
    (line,) = write_site(tmp_path / "site", body)
    assert fault in line


def test_check_passes_a_whole_site_and_wants_every_page_in_the_search(tmp_path):
    body = "<a href='#top'>x</a><a href='https://x.y'>x</a><a href='index.html#top'>x</a>"
    assert write_site(tmp_path / "whole", body) == []
    assert write_site(tmp_path / "other", "", '{"docs": []}') == ["the search does not know index.html"]
    (tmp_path / "empty").mkdir()
    assert check.faults(tmp_path / "empty") == [f"{tmp_path / 'empty'} has no pages"]


@pytest.mark.slow
def test_site_builds_without_a_warning():
    mkdocs = ROOT / ".venv-docs" / "bin" / "mkdocs"
    if not mkdocs.exists():
        pytest.skip("needs `make docs` once, for its environment")
    # Without the theme's notice of its own end.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [mkdocs, "build", "--strict"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "WARNING" not in finished.stderr
    assert check.faults(ROOT / "out" / "site") == []
