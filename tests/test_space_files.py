"""Which files the Space reads of a run, and what it makes of logs that are cut off, stale or hostile."""

import json
import os

import pytest
from checkout import ROOT
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from run_files import read_facts, read_history, read_reliability, read_results, shard_paths, wanted_files


def steps(history):
    return [entry["step"] for entry in history]


def test_log_of_a_resumed_run_replaces_the_steps_that_were_lost(tmp_path):
    lines = [{"start": 0, "step": step, "loss": 0.0} for step in (1, 2, 3, 4)]
    lines += [{"start": 1, "step": step, "loss": 1.0} for step in (3, 4, 5)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "log_history.jsonl").write_text(
        text.replace("\n", '\n{"start": 0, "st\n', 1) + '{"start": 1, "step": 6'
    )
    history = read_history(tmp_path)
    assert [(entry["step"], entry["loss"]) for entry in history] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]


def test_log_that_reaches_furthest_is_read(tmp_path):
    def write_state(folder, last):
        folder.mkdir(exist_ok=True)
        entries = [{"step": step, "loss": 1.0} for step in range(1, last + 1)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": entries}))

    assert read_history(tmp_path) == []
    write_state(tmp_path / "checkpoint-9", 9)
    write_state(tmp_path / "checkpoint-10", 10)
    write_state(tmp_path / "checkpoint-x", 99)
    assert steps(read_history(tmp_path))[-1] == 10
    (tmp_path / "log_history.jsonl").write_text('{"start": 0, "step": 11}\n')
    assert steps(read_history(tmp_path)) == [11]
    write_state(tmp_path, 12)
    assert steps(read_history(tmp_path))[-1] == 12


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "[]",
        "{",
        '{"log_history": 3}',
        "[" * 100_000,
        '{"log_history": [1, null, {"step": "1"}, {"step": -1}]}',
    ],
)
def test_log_that_is_none_is_an_empty_one(tmp_path, content):
    for name in ("trainer_state.json", "log_history.jsonl"):
        (tmp_path / name).write_text(content)
    assert read_history(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"a": "1", "b": NaN, "c": {}}'])
def test_results_that_are_none_are_empty(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    assert read_results(tmp_path) == {}


def test_only_finite_numbers_are_read(tmp_path):
    entry = (
        '{"start": 0, "step": 1, "a": NaN, "b": 1e999, "c": "2", "d": [3], "e": true, "f": 4, "<g>": 5.5, "h": null}'
    )
    (tmp_path / "log_history.jsonl").write_text(entry)
    assert read_history(tmp_path) == [{"start": 0, "step": 1, "f": 4, "<g>": 5.5}]


HOSTILE_NAMES = [
    "rollouts/../groups-000-000000.parquet",
    "../rollouts/groups-000-000000.parquet",
    "/rollouts/groups-000-000000.parquet",
    "rollouts/groups-000-000000.parquet.exe",
    "rollouts/groups-000-000000.parquet\n",
    "rollouts/x/groups-000-000000.parquet",
    "rollouts\\groups-000-000000.parquet",
    "groups-000-000000.parquet",
    "rollouts/groups-\u0660\u0660\u0660-\u0660\u0660\u0660\u0660\u0660\u0660.parquet",
    "checkpoint-1/trainer_state.json",
    "model.safetensors",
    "*",
]


def test_only_files_of_a_record_are_wanted():
    good = [
        "log_history.jsonl",
        "results.json",
        "rollouts/groups-000-000000.parquet",
        "rollouts/groups-1000-1000000.parquet",
    ]
    assert wanted_files([*HOSTILE_NAMES, *reversed(good)]) == good


def test_other_files_of_the_folder_are_not_opened(tmp_path):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    for name in ("groups-000-000000.parquet.bak", ".groups-000-000001.parquet", "groups-0-0.parquet", "notes.txt"):
        (folder / name).touch()
    os.mkfifo(folder / "groups-000-000002.parquet")  # reading it would wait for ever
    (folder / "groups-000-000003.parquet").touch()
    assert [path.name for path in shard_paths(tmp_path)] == ["groups-000-000003.parquet"]


def test_card_of_the_space_names_what_is_there():
    folder = ROOT / "hub" / "space"
    card = SpaceCard.load(folder / "README.md").data
    assert (card.sdk, card.license) == ("gradio", "apache-2.0")
    assert (folder / card.app_file).is_file()
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert card.sdk_version == pins["gradio"]
    needs = [Requirement(line) for line in (folder / "requirements.txt").read_text().splitlines()]
    assert all(need.specifier.contains(pins[need.name]) for need in needs)
    # Limits of the Hub.
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card.colorFrom, card.colorTo} <= colors
    assert len(card.short_description) <= 60


def test_facts_are_read_and_their_log_where_no_other_is(tmp_path):
    assert (read_facts(tmp_path), read_reliability(tmp_path)) == ({}, [])
    facts = {"model_name": "tiny", "log_history": [{"step": 2, "loss": 1.0}, {"step": 4, "loss": None}]}
    (tmp_path / "run_facts.json").write_text(json.dumps(facts))
    assert read_facts(tmp_path) == facts
    assert read_history(tmp_path) == [{"step": 2, "loss": 1.0}, {"step": 4}]
    (tmp_path / "run_facts.json").write_text("[1]")
    assert read_facts(tmp_path) == {}


def test_reliability_is_read_without_rows_that_are_no_probabilities(tmp_path):
    good = {"predicted": 0.5, "found": 0.25, "num_groups": 4.0}
    table = [good, {"predicted": 2, "found": 0}, {"found": 0.5}, 3, {"predicted": "0.5", "found": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps({"accuracy_after": 0.5, "reliability": table}))
    assert read_reliability(tmp_path) == [good]
    assert read_results(tmp_path) == {"accuracy_after": 0.5}
