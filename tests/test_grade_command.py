"""`trl-dapo grade`: what it says about golds and completions."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from trl_dapo.command_line import main
from trl_dapo.command_line.other_graders import ask_others, disagree
from trl_dapo.grading.equivalence import Grade
from trl_dapo.grading.golds import GoldFault, gold_faults, gold_kind


def run_grade(tmp_path: Path, rows: list[dict], *options: str) -> None:
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    main(["grade", "--dataset_name", str(tmp_path / "rows.jsonl"), *options])


def test_golds_grades_and_disagreements_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [
        {"solution": "12", "completion": r"\boxed{12}"},
        {"solution": r"5\text{ apples}, 3\text{ oranges}", "completion": r"\boxed{5}"},
        {"solution": "proof", "completion": r"\boxed{1}"},
        {"solution": r"\frac{1}{2}", "completion": "I do not know."},
    ]
    run_grade(tmp_path, rows, "--output_file", str(tmp_path / "graded.jsonl"))
    printed = capsys.readouterr().out
    assert "Golds: 3 of 4 can be read (1 number, 1 list, 1 expression)." in printed
    assert "1 x placeholder\n    row 2: 'proof'" in printed
    assert "The completions in 'completion': 1 correct, 1 wrong, 1 unparseable_gold, 1 no_answer." in printed
    # math-verify takes the apples for the whole answer.
    assert r"1 5\text{ apples}, 3\text{ oranges} 5 wrong True" in " ".join(printed.split())
    graded = [json.loads(line) for line in (tmp_path / "graded.jsonl").read_text().splitlines()]
    assert [row["grade"] for row in graded] == ["correct", "wrong", "unparseable_gold", "no_answer"]
    assert graded[1]["math-verify"] is True


def test_golds_are_graded_against_themselves_without_completions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"question": "?", "answer": answer} for answer in ("3 + 4 = 7\n#### 7", r"\{1, 2\}", "nan")]
    run_grade(tmp_path, rows, "--compare", "false")
    printed = capsys.readouterr().out
    assert "Golds: 2 of 3 can be read" in printed
    assert "The golds against themselves: 2 correct, 1 unparseable_gold." in printed
    assert "math-verify" not in printed


def test_the_golds_of_dapo_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_grade(tmp_path, [{"reward_model": {"ground_truth": "34"}}], "--compare", "false")
    assert "Golds: 1 of 1 can be read (1 number)." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gold_column", "x"), r"--gold_column is 'x', but must be one of the columns \['solution'\]"),
        (("--completion_column", "x"), "--completion_column is 'x'"),
        (("--num_rows", "2"), "--num_rows is 2, but must be between 1 and 1"),
    ],
)
def test_wrong_options_are_named(options: tuple[str, str], message: str, tmp_path: Path):
    with pytest.raises(SystemExit, match=message):
        run_grade(tmp_path, [{"solution": "1"}], *options)


def test_a_dataset_without_golds_is_refused(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"none of solution, gold, answer, reward_model.*--gold_column"):
        run_grade(tmp_path, [{"question": "1"}])


def test_unreadable_golds_are_named_with_their_fault():
    golds = [
        "7",
        "",
        " ",
        "proof",
        r"\text{nan}",
        r"\frac{1}{",
        r"\frac{1}{0}",
        "x" * 1001,
        "we see that it must be so " * 4,
    ]
    assert gold_faults(golds) == {
        "": GoldFault.EMPTY,
        " ": GoldFault.EMPTY,
        "proof": GoldFault.PLACEHOLDER,
        r"\text{nan}": GoldFault.PLACEHOLDER,
        r"\frac{1}{": GoldFault.NOT_READABLE,
        r"\frac{1}{0}": GoldFault.NOT_READABLE,
        "x" * 1001: GoldFault.TOO_LONG,
        "we see that it must be so " * 4: GoldFault.PROSE,
    }


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("1,234", "number"), ("5 cm", "number with a unit"), ("10:30", "time"), ("C. 12", "choice"), ("Monday", "text"),
        ("x = 5", "equation or inequality"), ("2, 3", "list"), ("(2, 3)", "tuple, interval or set"), (r"9\pi", "expression"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "matrix or vector"),
    ],
)  # fmt: skip
def test_kinds_of_golds_are_named(gold: str, kind: str):
    assert gold_kind(gold) == kind


def test_others_disagree_where_they_say_something_else():
    assert ask_others("12", r"\boxed{12}") == (True, 1.0)
    assert disagree(Grade.CORRECT, (True, 1.0)) is False
    assert disagree(Grade.UNPARSEABLE_GOLD, (False, None)) is False
    assert disagree(Grade.WRONG, (True, 0.0)) is True
