"""The checker names every bad row, and nothing else."""

import pytest
from datasets import Dataset

from trl_dapo.data.checks import check_problems
from trl_dapo.data.problems import as_problems, load_rows


def turns(*contents):
    return [{"role": "user", "content": content} for content in contents]


def test_every_kind_of_bad_row_is_found_by_number():
    rows = [
        {"prompt": turns("1 + 1?"), "solution": "2"},
        {"prompt": turns("1/2?"), "solution": "0.5"},
        {"prompt": turns(" \n"), "solution": "2"},
        {"prompt": [], "solution": "2"},
        {"prompt": turns("2 + 2?"), "solution": ""},
        {"prompt": turns("3 + 3?"), "solution": r"it is \boxed{6"},
        {"prompt": turns("1 + 1?"), "solution": "2"},
        {"prompt": turns("1/2?"), "solution": r"\frac{1}{2}"},
        {"prompt": turns("1 + 1?"), "solution": "3"},
        {"prompt": turns("5 + 5?"), "solution": None},
    ]
    report = check_problems(Dataset.from_list(rows))
    assert [(bad.row, bad.reason) for bad in report.bad_rows] == [
        (2, "empty prompt"),
        (3, "empty prompt"),
        (4, "unreadable gold"),
        (5, "unreadable gold"),
        (6, "duplicate prompt"),
        (7, "duplicate prompt"),
        (8, "same prompt, other gold"),
        (9, "unreadable gold"),
    ]
    assert report.counts == {
        "empty prompt": 2,
        "unreadable gold": 3,
        "same prompt, other gold": 1,
        "duplicate prompt": 2,
    }
    assert "row 8: row 0 has the same prompt and the gold answer '2', this row has '3'" in report.describe()


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"prompt": 5, "solution": "1"}, "the prompt is of type int"),
        ({"prompt": [{"text": "1 + 1?"}], "solution": "1"}, "its elements are not turns with 'role' and 'content'"),
        ({"prompt": "1 + 1?", "solution": ["2"]}, "the solution is of type list"),
    ],
)
def test_wrong_types_are_named_and_refused(row, detail):
    report = check_problems(Dataset.from_list([row]))
    assert detail in report.bad_rows[0].detail
    with pytest.raises(ValueError, match=r"train has 1 unusable rows.*\n.*wrong type\n    row 0"):
        report.refuse_unusable("train")


def test_rows_are_numbered_from_the_first_row_and_long_lists_are_cut():
    report = check_problems(Dataset.from_list([{"prompt": "1 + 1?", "solution": "2"}] * 9), first_row=100)
    assert [bad.row for bad in report.bad_rows] == list(range(101, 109))
    assert "... and 3 more" in report.describe()
    report.refuse_unusable("train")  # duplicates can be trained on


def test_dataset_without_a_readable_gold_is_refused():
    with pytest.raises(ValueError, match="train has no readable gold"):
        check_problems(Dataset.from_list([{"prompt": "1 + 1?", "solution": ""}])).refuse_unusable("train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Dataset.from_list([{"question": "a", "answer": "1"}]), "must have 'prompt' and 'solution'"),
        (Dataset.from_dict({"prompt": [], "solution": []}), "has no rows"),
    ],
)
def test_what_is_no_dataset_of_problems_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        check_problems(rows)


def test_real_data_are_clean(shared_data):
    gsm8k = as_problems(load_rows(str(shared_data / "gsm8k"), "test"))
    assert check_problems(gsm8k).describe() == "All 1319 problems are usable."
    aime = load_rows(str(shared_data / "aime-2024.parquet"), "train")
    assert check_problems(as_problems(aime)).counts == {"duplicate prompt": 930}
    assert check_problems(as_problems(aime, drop_duplicates=True)).bad_rows == []
