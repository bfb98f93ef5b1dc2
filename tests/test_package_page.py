"""What a package index shows of the package, and what a citation says."""

import importlib.util
import re
import tomllib

import pytest
import yaml
from checkout import ROOT
from documentation import links

import trl_dapo


@pytest.fixture(scope="module")
def page():
    """Returns setup.py as a module, and the text that it gives to the package."""
    spec = importlib.util.spec_from_file_location("setup_of_the_package", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.absolute_links((ROOT / "README.md").read_text(), revision=f"v{module.version()}")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_links_and_images_of_the_page_are_absolute_and_lead_to_the_same_files(page, project):
    module, text = page
    assert module.version() == trl_dapo.__version__
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    relative = [target for _, target in links(ROOT / "README.md") if not target.startswith(("http", "#"))]
    assert len(relative) > 20
    assert all(target.startswith(("https://", "#")) for target in targets)
    starts = [f"{project['urls']['Repository']}/{kind}/v{trl_dapo.__version__}/" for kind in ("blob", "tree")]
    starts.append(starts[0].replace("github.com", "raw.githubusercontent.com").replace("/blob/", "/"))
    led = [target.removeprefix(start) for target in targets for start in starts if target.startswith(start)]
    assert sorted(led) == sorted(relative)
    assert re.findall(r"!\[[^]]*\]\((.*?)\)", text) == [f"{starts[2]}benchmarks/quickstart_curves.png"]
    assert "`trl_dapo.report.curves`" not in targets


def test_links_of_a_page_in_a_folder_lead_out_of_it(page):
    module, _ = page
    text = module.absolute_links("[a](../README.md#x) [b](https://x.y) [c](#z) [d](space)", "hub")
    assert text == (
        "[a](https://github.com/trl-dapo/trl-dapo/blob/main/README.md#x) [b](https://x.y) [c](#z) "
        "[d](https://github.com/trl-dapo/trl-dapo/tree/main/hub/space)"
    )


def test_urls_and_classifiers_are_those_that_an_index_shows(project):
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} <= project["urls"].keys()
    assert all(url.startswith("https://") for url in project["urls"].values())
    versions = [name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r"Python :: 3\.", name)]
    assert project["requires-python"] == f">={versions[0]}"
    assert "Typing :: Typed" in project["classifiers"]
    assert (ROOT / "trl_dapo" / "py.typed").exists()


def test_citation_names_this_version_and_the_paper(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == trl_dapo.__version__
    assert citation["license"] == project["license"]
    assert citation["repository-code"] == project["urls"]["Repository"]
    (paper,) = citation["references"]
    readme = (ROOT / "README.md").read_text()
    assert paper["title"] in readme
    assert f"eprint = {{{paper['identifiers'][0]['value']}}}" in readme
