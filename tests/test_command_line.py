"""The entry point: what it prints, what it leaves, and what it says of wrong input."""

import json

import pytest
from datasets import Dataset
from tiny import tiny_model, tiny_tokenizer

from trl_dapo.command_line import main


TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def problem_file(tmp_path):
    rows = [{"question": f"w{number} w2", "answer": f"so #### {number}"} for number in (1, 2, 3, 1)]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    return tmp_path / "rows.jsonl"


def evaluate(model, data, out, *options):
    arguments = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", out, *options]
    main(["eval", *map(str, arguments)])


def test_eval_prints_a_table_and_goes_on_where_it_was(model_folder, problem_file, tmp_path, capsys):
    options = ("--k", "2", "--max_completion_length", "6", "--batch_size", "4")
    evaluate(model_folder, problem_file, tmp_path / "out", *options)
    printed = capsys.readouterr().out
    assert "4 rows with 3 different problems." in printed
    assert "Sampled 6 completions, 0 were already there." in printed
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]
    for name in ("avg@2", "maj@2", "pass@2", "frac_truncated", "frac_no_answer"):
        assert f"{name:16}{100 * figures[name]['value']:7.1f} %" in printed
    evaluate(model_folder, problem_file, tmp_path / "out", *options)
    assert "Sampled 0 completions, 6 were already there." in capsys.readouterr().out


def test_eval_defaults_are_the_papers_and_the_length_is_what_the_context_leaves(model_folder, problem_file, tmp_path):
    evaluate(model_folder, problem_file, tmp_path / "out", "--num_problems", "1")
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["k"], settings["temperature"], settings["top_p"]) == (32, 1.0, 0.7)
    assert settings["max_completion_length"] == 64 - 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--k", "0"), "ValueError: k is 0, but must be at least 1"),
        (("--num_problems", "9"), "ValueError: --num_problems is 9, but must be between 1 and 3"),
        (("--max_completion_length", "63"), r"ValueError: max_completion_length is 63, .* it must be at most 62"),
    ],
)
def test_wrong_options_end_in_one_line(model_folder, problem_file, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message) as ended:
        evaluate(model_folder, problem_file, tmp_path / "out", *options)
    assert "\n" not in str(ended.value)


def test_missing_model_and_data_end_in_one_line(model_folder, tmp_path):
    with pytest.raises(SystemExit, match=r"FileNotFoundError: --dataset_name is '\./nowhere'"):
        evaluate(model_folder, "./nowhere", tmp_path)
    with pytest.raises(SystemExit, match=r"FileNotFoundError: --model_name_or_path is '\./nowhere'"):
        evaluate("./nowhere", "./nowhere", tmp_path)


def test_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate"])
    assert ended.value.code == 2
    assert (
        "there is no command 'evaluate' (did you mean eval?), only train, check, eval, grade, recipes, serve, migrate, push."
        in capsys.readouterr().err
    )
