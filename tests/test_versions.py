"""Which releases are supported: what is declared, what is said of others, and the table of those that were tested."""

import json
import subprocess
import sys
import tomllib
import warnings

import pytest
from checkout import ROOT
from packaging.requirements import Requirement
from packaging.version import Version
from version_matrix import BEGIN, CELLS, END, PAGE, RESULTS, table, verdict, with_table

from trl_dapo import trl_seams


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {needed.name: needed.specifier for needed in map(Requirement, project["dependencies"])}


@pytest.mark.parametrize("package", ["trl", "transformers", "peft"])
def test_declared_range_is_the_tested_one(package):
    first, last = trl_seams.TESTED[package]
    declared = requirements()[package]
    assert declared.contains(f"{first}.0")
    assert declared.contains(f"{last}.9")
    major, minor = map(int, first.split("."))
    assert not declared.contains(f"{major}.{minor - 1}.9")


def test_tested_range_ends_where_the_stored_runs_do():
    results = json.loads(RESULTS.read_text())
    passed = [result["versions"] for result in results.values() if result.get("exit_code") == 0]
    for package, (first, last) in trl_seams.TESTED.items():
        releases = sorted(Version(versions[package]).release[:2] for versions in passed if package in versions)
        assert (releases[0], releases[-1]) == (Version(first).release, Version(last).release), package


def test_releases_inside_the_range_say_nothing(monkeypatch):
    inside = {name: f"{first}.3" for name, (first, _) in trl_seams.TESTED.items()}
    monkeypatch.setattr(trl_seams, "version", inside.__getitem__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trl_seams.warn_of_untested_releases()


@pytest.mark.parametrize("installed", ["1.17.0", "1.17.0.dev0", "1.13.9", "2.0.0", "1.17.0+cu129"])
def test_another_release_is_named_with_the_range_and_the_others_are_not(monkeypatch, installed):
    found = {name: last for name, (_, last) in trl_seams.TESTED.items()} | {"trl": installed}
    monkeypatch.setattr(trl_seams, "version", found.__getitem__)
    first, last = trl_seams.TESTED["trl"]
    with pytest.warns(UserWarning, match="trl-dapo") as caught:
        trl_seams.warn_of_untested_releases()
    (said,) = [str(warning.message) for warning in caught]
    assert f"not tested with trl {installed} (tested: {first} to {last})," in said
    assert "transformers" not in said


def test_package_that_is_not_installed_is_not_asked_for(monkeypatch):
    def missing(name):
        raise trl_seams.PackageNotFoundError(name)

    monkeypatch.setattr(trl_seams, "version", missing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trl_seams.warn_of_untested_releases()


def test_page_has_the_table_of_the_stored_results():
    text = PAGE.read_text()
    results = json.loads(RESULTS.read_text())
    assert set(results) <= set(CELLS)
    assert text.split(BEGIN)[1].split(END)[0].strip() == table(results)
    assert with_table(text, "another") != text


def test_rows_say_what_failed_and_what_could_not_be_installed():
    assert verdict({"counts": {"passed": 7}, "exit_code": 0, "broken": []}) == "7 tests pass"
    failed = {"counts": {"passed": 7, "failed": 1}, "exit_code": 1, "broken": ["test_x.py::test_y"]}
    assert verdict(failed) == "7 tests pass, 1 fail: `tests/test_x.py::test_y`"
    assert verdict({"not_installed": "no torch"}) == "cannot be installed: no torch"
    assert table({"TRL 1.14": failed}).splitlines()[2] == (
        "| TRL 1.14 |  |  |  |  |  |  | 7 tests pass, 1 fail: `tests/test_x.py::test_y` |"
    )


def test_unknown_row_is_refused_with_the_rows_there_are():
    command = [sys.executable, str(ROOT / "tests" / "version_matrix.py"), "TRL 9"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "there is no row TRL 9; choose from TRL 1.16, " in finished.stderr
