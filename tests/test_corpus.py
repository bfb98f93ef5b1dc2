"""The labelled corpus: every grade as labelled, and the list of where math-verify and TRL disagree is true."""

from collections import Counter
from pathlib import Path

import corpus
import pytest

from trl_dapo.grading.equivalence import Grade, grade
from trl_dapo.grading.pool import GradingPool


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return corpus.load_corpus()


def test_every_grade_is_as_labelled(rows: list[dict]):
    with GradingPool(num_workers=2, cpu_seconds=1.0) as pool:
        graded = grade([row["gold"] for row in rows], [row["completion"] for row in rows], pool)
    wrong = [
        (row["gold"], row["completion"], row["grade"], result.grade.value)
        for row, result in zip(rows, graded, strict=True)
        if result.grade.value != row["grade"]
    ]
    assert not wrong


def test_the_corpus_is_large_varied_and_without_duplicates(rows: list[dict]):
    assert len(rows) >= 250
    assert len({(row["gold"], row["completion"]) for row in rows}) == len(rows)
    labels = Counter(row["grade"] for row in rows)
    assert set(labels) == {grade.value for grade in Grade}
    assert labels["correct"] > 100
    assert labels["wrong"] > 80


def test_the_disagreements_of_others_are_those_listed(rows: list[dict]):
    keys = ("gold", "completion", "math_verify", "math_verify_boxed", "trl")
    found = {tuple(row[key] for key in keys) for row in corpus.disagreements(rows)}
    assert found == {tuple(row[key] for key in keys) for row in rows if "why" in row}


def test_the_list_of_disagreements_is_up_to_date(rows: list[dict]):
    assert (Path(corpus.DATA) / "disagreements.md").read_text(encoding="utf-8") == corpus.render(
        rows, corpus.load_shapes()
    )


def test_the_opinions_on_shapes_are_those_stored():
    # Every tenth: each takes as long as ten grades.
    for row in corpus.load_shapes()[::10]:
        assert {**row, **corpus.ask_others(row["gold"], row["completion"])} == row
