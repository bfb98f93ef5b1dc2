"""The whole way: train, evaluate, push, pull, evaluate again, and look at the card. Minutes long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from datasets import Dataset
from hub_client import hub_environment
from huggingface_hub import ModelCard
from loopback_card_checks import card_problems
from loopback_hub import LoopbackHub


pytestmark = pytest.mark.slow


def test_model_goes_to_the_hub_and_back_with_the_same_figures(tmp_path):
    from trl_dapo.recipes.word_problems import make_problems

    run, problems = tmp_path / "word-problems", tmp_path / "problems.jsonl"
    with LoopbackHub() as hub:
        environment = hub_environment(hub, tmp_path) | {"PYTHONPATH": str(ROOT), "CI": "1", "OMP_NUM_THREADS": "1"}

        def command(*arguments):
            finished = subprocess.run(
                [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=1800
            )
            assert finished.returncode == 0, finished.stderr[-3000:]
            return finished.stdout

        recipe = ROOT / "examples" / "recipes" / "quickstart.yaml"
        short = ["--max_steps", 8, "--num_eval_problems", 32]
        command(ROOT / "examples" / "dapo_gsm8k.py", "--config", recipe, "--output_dir", run, *short)
        Dataset.from_list(make_problems(24, seed=5).to_list()).to_json(problems)

        def evaluate(model, out):
            options = ["--dataset_name", problems, "--k", 4, "--max_completion_length", 80, "--output_dir", out]
            command("-m", "trl_dapo", "eval", "--model_name_or_path", model, *options)
            return json.loads((out / "results.json").read_text())

        before = evaluate(run, tmp_path / "eval")
        results = ["--results", tmp_path / "eval"]
        command("-m", "trl_dapo", "push", "--output_dir", run, "--hub_model_id", "me/word-problems", *results)
        assert not any(name.startswith(("tiny-model", "training_args")) for name in hub.files("me/word-problems"))
        # From the Hub itself, through its id.
        assert evaluate("me/word-problems", tmp_path / "eval-again") == before
        pulled = tmp_path / "pulled"
        for name, content in hub.files("me/word-problems").items():
            (pulled / name).parent.mkdir(parents=True, exist_ok=True)
            (pulled / name).write_bytes(content)
    card = ModelCard.load(pulled / "README.md")
    assert card_problems(str(card)) == []
    trained = json.loads((pulled / "results.json").read_text())
    values = {(result.dataset_name, result.metric_name): result.metric_value for result in card.data.eval_results}
    assert values["held-out problems", "avg@4"] == trained["accuracy_after"]
    for name in ("avg@4", "maj@4", "pass@4"):
        assert values["problems.jsonl", name] == before["figures"][name]["value"]
    look_at(pulled / "README.md", tmp_path)


def look_at(card: Path, tmp_path: Path) -> None:
    """Shows the card in a browser, if there is one, and leaves `card.png`."""
    pytest.importorskip("markdown_it")
    page = pytest.importorskip("card_page")
    if page.CHROMIUM is None:
        pytest.skip("no chromium; all but the look at the card was tested")
    written = page.write_page(card)
    tables, sections, pictures = page.counts_in_browser(written, tmp_path / "profile")
    assert (tables, pictures) == (4, 1)
    assert sections == card.read_text().count("\n## ")
    page.take_screenshot(written, tmp_path / "profile", tmp_path / "card.png")
    assert (tmp_path / "card.png").stat().st_size > 50_000
