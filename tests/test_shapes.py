"""Answers as models and datasets write them: each graded as labelled, none accepted with a number changed."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import perturbations
import pytest
from gsm8k_shapes import SHAPES
from hostile import HOSTILE

from trl_dapo.grading import symbolic
from trl_dapo.grading.equivalence import Grade, grade
from trl_dapo.grading.exact import Question, grade_cheaply
from trl_dapo.grading.matching import same
from trl_dapo.grading.pool import GradingPool
from trl_dapo.grading.reading import read


DATA = Path(__file__).resolve().parent / "data"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def shapes() -> list[dict[str, Any]]:
    return rows_of(DATA / "shapes.jsonl")


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(num_workers=2) as pool:
        yield pool


def test_every_shape_is_graded_as_labelled(shapes: list[dict[str, Any]], pool: GradingPool):
    graded = grade([row["gold"] for row in shapes], [row["completion"] for row in shapes], pool)
    wrong = [
        (row["kind"], row["gold"], row["completion"], row["grade"], result.grade.value)
        for row, result in zip(shapes, graded, strict=True)
        if result.grade.value != row["grade"]
    ]
    assert not wrong


def test_the_shapes_are_many_and_none_stands_twice(shapes: list[dict[str, Any]]):
    assert len(shapes) >= 300
    assert len({(row["gold"], row["completion"]) for row in shapes}) == len(shapes)
    counts = Counter(row["grade"] for row in shapes)
    assert counts["correct"] > 300
    assert counts["wrong"] > 200


def test_the_documentation_counts_right(shapes: list[dict[str, Any]]):
    text = (DATA.parents[1] / "docs" / "grading.md").read_text(encoding="utf-8")
    assert f"[{len(shapes)} shapes]" in text
    assert f"{len(HOSTILE)} hostile completions" in text
    assert f"each of {len(SHAPES)} shapes" in " ".join(text.split())


def test_public_reports_are_graded_as_labelled(shared_data: Path, pool: GradingPool):
    path = shared_data / "grading_examples.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    rows = rows_of(path)
    graded = grade([row["gold"] for row in rows], [row["completion"] for row in rows], pool)
    assert [
        (row, r.grade) for row, r in zip(rows, graded, strict=True) if (r.grade is Grade.CORRECT) != row["expected"]
    ] == []


def test_a_gold_equals_itself_and_equality_has_no_direction(shapes: list[dict[str, Any]]):
    judge = symbolic.ComputerAlgebra()
    for row in shapes:
        nodes = [read(row["gold"]), read(row["completion"].removeprefix("\\boxed{").removesuffix("}"))]
        if nodes[0] is None or nodes[1] is None or row["grade"] not in ("correct", "wrong"):
            continue
        if "\\approx" in row["gold"] + row["completion"]:
            continue  # a rounded value is checked in an answer, and not in a gold
        assert same(nodes[0], nodes[0], judge), row["gold"]
        assert same(nodes[0], nodes[1], judge) == same(nodes[1], nodes[0], judge), row


# Of 2,000 golds: what is accepted with a number changed, and why that is right.
EXPLAINED: set[tuple[str, str, str]] = set()


def test_a_gold_with_one_number_changed_is_refused():
    assert set(perturbations.accepted_changes(2_000, seed=11)) == EXPLAINED


def test_a_gold_in_another_writing_is_accepted():
    refused, num_rewrites = perturbations.refused_rewrites(300, seed=12)
    assert num_rewrites > 2_000
    assert len(refused) <= 0.005 * num_rewrites, refused


def gsm8k_numbers(shared_data: Path) -> list[tuple[str, str]]:
    paths = [shared_data / "gsm8k" / f"{split}.jsonl" for split in ("test", "train")]
    if not all(path.exists() for path in paths):
        pytest.skip("GSM8K is not here")
    golds = [row["answer"] for path in paths for row in rows_of(path)]
    return [(gold, gold.rpartition("#### ")[2]) for gold in golds]


def check_shape(shape: str, golds: list[tuple[str, str]]) -> None:
    for gold, number in golds:
        plain = number.replace(",", "")
        for answer, expected in (
            (plain if "JSON" in shape else number, Grade.CORRECT),
            (str(int(plain) + 1), Grade.WRONG),
        ):
            result = grade_cheaply(gold, SHAPES[shape] % answer)
            assert not isinstance(result, Question), (gold, answer)
            assert result.grade is expected, (gold, answer, result)


@pytest.mark.parametrize("shape", SHAPES)
def test_gsm8k_is_right_in_every_shape_and_the_next_number_wrong(shape: str, shared_data: Path):
    check_shape(shape, gsm8k_numbers(shared_data)[::40])


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_all_of_gsm8k_is_right_in_every_shape_and_the_next_number_wrong(shape: str, shared_data: Path):
    golds = gsm8k_numbers(shared_data)
    assert len(golds) == 8_792
    check_shape(shape, golds)
