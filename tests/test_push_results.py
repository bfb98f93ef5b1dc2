"""Results of `trl-dapo eval` in a card that is pushed."""

import json

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from published_run import hub, pull, run_folder, trained  # noqa: F401
from tiny import tiny_model, tiny_tokenizer

from trl_dapo import HubPushError
from trl_dapo.command_line import main
from trl_dapo.publishing.push import PushOptions, push_run


def evaluated(folder, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    rows = [{"question": f"w{number} w2", "answer": f"so #### {number}"} for number in range(4)]
    Dataset.from_list(rows).to_json(tmp_path / "problems.jsonl")
    options = ["--dataset_name", str(tmp_path / "problems.jsonl"), "--k", "2", "--max_completion_length", "6"]
    out = tmp_path / "eval"
    main(["eval", "--model_name_or_path", str(folder), *options, "--output_dir", str(out)])
    return out


def test_results_of_an_evaluation_enter_the_card_and_its_metadata(hub, run_folder, tmp_path):
    out = evaluated(run_folder, tmp_path)
    main(["push", "--output_dir", str(run_folder), "--hub_model_id", "tiny", "--results", str(out)])
    folder = pull("me/tiny", tmp_path)
    card = ModelCard.load(folder / "README.md")
    figures = json.loads((out / "results.json").read_text())["figures"]
    by_name = {result.metric_name: result for result in card.data.eval_results if "seed" in result.metric_args}
    assert set(by_name) == {name for name in figures if "@" in name}
    for name, result in by_name.items():
        assert result.metric_value == figures[name]["value"]
        assert (result.metric_args["k"], result.metric_args["temperature"]) == (2, 1.0)
        assert result.metric_args["num_problems"] == 4
        assert result.dataset_name == "problems.jsonl"
    assert "**problems.jsonl**: 4 problems, 2 completions each, temperature 1, top-p 0.7" in card.text
    (copy,) = (folder / "evaluations").iterdir()
    assert copy.read_bytes() == (out / "results.json").read_bytes()
    # They stay when the model is pushed again without naming them.
    push_run(run_folder, "me/tiny")
    assert hub.files("me/tiny")["README.md"] == (folder / "README.md").read_bytes()


def test_results_of_other_weights_are_refused(hub, run_folder, tmp_path):
    out = evaluated(run_folder, tmp_path)
    tiny_model(seed=1).save_pretrained(run_folder)
    with pytest.raises(ValueError, match="are of other weights"):
        push_run(run_folder, "me/tiny", PushOptions(results=[str(out)]))
    assert hub.repositories == {}


def test_card_that_was_edited_is_pushed_as_it_is(hub, run_folder, tmp_path, capsys):
    card = run_folder / "README.md"
    card.write_text(card.read_text().replace("## Limits", "## What I think\n\nFine.\n\n## Limits"))
    push_run(run_folder, "me/tiny")
    assert "README.md stays as it is: it was edited." in capsys.readouterr().out
    assert hub.files("me/tiny")["README.md"] == card.read_bytes()
    with pytest.raises(ValueError, match="So neither results nor a licence can be added"):
        push_run(run_folder, "me/tiny", PushOptions(results=[str(evaluated(run_folder, tmp_path))]))


def test_licence_that_the_hub_does_not_know_is_refused_before_anything_is_sent(hub, run_folder):
    with pytest.raises(
        HubPushError, match=r'(?s)does not accept the card: .*"license" must be one of.*The model is safe'
    ):
        push_run(run_folder, "me/tiny", PushOptions(license="beerware"))
    assert not hub.received
    push_run(run_folder, "me/tiny", PushOptions(license="mit"))
    assert ModelCard(hub.files("me/tiny")["README.md"].decode()).data.license == "mit"
