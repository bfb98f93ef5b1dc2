"""Recipes come with the package: they are listed, copied, and trained by their names."""

import json
import re

import pytest
import yaml
from checkout import ROOT
from test_layers import PACKAGE

from trl_dapo import recipes
from trl_dapo.command_line import main
from trl_dapo.recipes import ACCELERATE, RECIPES, find, names, with_path


def test_paths_of_the_examples_lead_to_the_only_copy():
    for folder, place in ((RECIPES, "recipes"), (ACCELERATE, "accelerate")):
        assert (ROOT / "examples" / place).resolve() == folder
        assert folder.is_relative_to(PACKAGE)


def test_list_has_every_recipe_with_what_it_trains(capsys):
    main(["recipes"])
    printed = capsys.readouterr().out
    for name in names() + names(ACCELERATE):
        (line,) = re.findall(rf"^  {re.escape(name)} +(.+)$", printed, re.MULTILINE)
        path = next(RECIPES.rglob(f"{name}.yaml"))
        assert path.read_text().startswith(f"# {line}")


def test_copy_is_the_recipe_and_overwrites_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["recipes", "quickstart"])
    main(["recipes", "gsm8k_qwen2.5_0.5b", "my_recipe.yaml"])
    main(["recipes", "fsdp2", str(tmp_path)])
    assert "trl-dapo train --config my_recipe.yaml" in capsys.readouterr().out
    for copied, source in (
        ("quickstart.yaml", "quickstart.yaml"),
        ("my_recipe.yaml", "gsm8k_qwen2.5_0.5b.yaml"),
        ("fsdp2.yaml", "accelerate/fsdp2.yaml"),
    ):
        assert (tmp_path / copied).read_text() == (RECIPES / source).read_text()
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(SystemExit, match=r"FileExistsError: mine\.yaml is there already"):
        main(["recipes", "quickstart", "mine.yaml"])
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_a_file_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("quickstart") == find("quickstart.yaml") == RECIPES / "quickstart.yaml"
    (tmp_path / "quickstart").write_text("seed: 1\n")
    assert with_path(["--seed", "1", "--config", "quickstart"]) == ["--seed", "1", "--config", "quickstart"]
    assert with_path(["--config"]) == ["--config"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart", "did you mean quickstart?"),
        ("gsm8k_qwen2.5-0.5b", "did you mean gsm8k_qwen2.5_0.5b?"),
        ("recipes/quickstart.yaml", "did you mean quickstart?"),
        ("xyzzy", f"names are {', '.join(names())}"),
    ],
)
def test_misspelt_name_gets_the_nearest_one(name, hint):
    for arguments in (["train", "--config", name], ["recipes", name]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert str(ended.value).startswith("FileNotFoundError: ")
        assert f"is {name!r}, but there is no such file, and nothing of this name comes with trl-dapo" in str(
            ended.value
        )
        assert hint in str(ended.value)


def test_quickstart_trains_by_name_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # A warm-up of 450 steps is what takes time.
    monkeypatch.setattr("trl_dapo.recipes.word_problems.warm_up", lambda *args: None)
    small = {"max_steps": 1, "num_eval_problems": 4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 4}
    small |= {"max_completion_length": 8, "soft_punish_cache": 2, "max_generation_rounds": 1}
    main(
        [
            "train",
            "--config",
            "quickstart",
            *(word for name, value in small.items() for word in (f"--{name}", str(value))),
        ]
    )
    recipe = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    results = json.loads((tmp_path / recipe["output_dir"] / "results.json").read_text())
    assert {"accuracy_before", "accuracy_after"} <= results.keys()
    facts = json.loads((tmp_path / recipe["output_dir"] / "run_facts.json").read_text())
    assert facts["settings"]["learning_rate"][0] == recipe["learning_rate"]
    assert facts["settings"]["max_steps"][0] == 1
    assert "4 problems" in capsys.readouterr().out


def test_names_are_those_of_the_files(tmp_path):
    (tmp_path / "one.yaml").write_text("# Trains one:\nseed: 1\n")
    (tmp_path / "notes.txt").write_text("")
    assert names(tmp_path) == ["one"]
    assert recipes.first_comment(tmp_path / "one.yaml") == "Trains one"
