"""What the Space finds in a record, against a search of every row by hand."""

import doctest
import itertools
import math
import os
import random
import shutil

import curve_view
import facts_view
import group_view
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import query
import rollout_index
import run_files
import shard_reader
from query import ORDERS, Query, parse_range
from rollout_index import RolloutIndex
from run_files import shard_paths
from shard_reader import FATES, VERDICTS
from space_record import WORDS, made_up_group, write_record

from trl_dapo.report.shards import RolloutShards
from trl_dapo.sampling.judge import Fate, GroupVerdict


def by_hand(rows, asked):
    """The groups that a query finds, by their positions, and the completions in them that it is about."""
    found = []
    for position, group in itertools.groupby(rows, key=lambda row: row["position"]):
        group = list(group)
        is_asked = [meets(row, asked) for row in group]
        if any(is_asked):
            found.append((position, is_asked, max(row["length"] for row in group)))
    if asked.order == "newest first":
        found.reverse()
    elif asked.order == "longest first":
        found.sort(key=lambda item: -item[2])
    return [position for position, _, _ in found], {position: is_asked for position, is_asked, _ in found}


def meets(row, query):
    def within(value, lowest, highest):
        if lowest is None and highest is None:
            return True
        is_number = value is not None and not math.isnan(value)
        return is_number and (lowest is None or value >= lowest) and (highest is None or value <= highest)

    texts = [row["prompt"], row["solution"] or "", row["completion"]]
    return (
        within(row["step"], query.first_step, query.last_step)
        and (not query.verdicts or row["verdict"] in query.verdicts)
        and (not query.fates or row["fate"] in query.fates)
        and within(row[query.reward], query.lowest, query.highest)
        and within(row["length"], query.shortest, query.longest)
        and (query.is_truncated is None or row["is_truncated"] == query.is_truncated)
        and any(query.text.lower() in text.lower() for text in texts)
    )


def random_query(chance):
    def maybe(value):
        return value if chance.random() < 0.3 else None

    return Query(
        first_step=maybe(chance.randrange(24)),
        last_step=maybe(chance.randrange(24)),
        verdicts=frozenset(chance.sample(VERDICTS, chance.choice([0, 0, 1, 3]))),
        fates=frozenset(chance.sample(FATES, chance.choice([0, 0, 0, 1, 2]))),
        reward=chance.choice(["reward", "advantage", "rewards/accuracy"]),
        lowest=maybe(chance.choice([-1.0, 0.0, 0.5])),
        highest=maybe(chance.choice([0.0, 0.5, 1.0])),
        shortest=maybe(chance.randrange(100)),
        longest=maybe(chance.randrange(100)),
        is_truncated=maybe(chance.random() < 0.5),
        text=chance.choice(["", "", "", *(word.swapcase() for word in WORDS), "question 20", "[", "nowhere"]),
        order=chance.choice(ORDERS),
    )


def found(index, query):
    numbers, meets_all = index.find(query)
    positions = [int(index.columns["position"][index.first_rows[number]]) for number in numbers]
    asked = {}
    for number, position in zip(numbers, positions, strict=True):
        first = index.first_rows[number]
        asked[position] = meets_all[first : first + index.sizes[number]].tolist()
    return positions, asked


def test_queries_find_what_a_search_of_every_row_finds(tmp_path):
    rows = write_record(tmp_path)
    index = RolloutIndex(shard_paths(tmp_path))
    chance, num_found = random.Random(1), 0
    for _ in range(400):
        query = random_query(chance)
        expected = by_hand(rows, query)
        assert found(index, query) == expected, query
        num_found += 0 < len(expected[0]) < 54
    assert num_found > 100  # the queries are no trivial ones


def test_groups_have_the_texts_and_figures_that_were_written(tmp_path):
    rows = write_record(tmp_path)
    index = RolloutIndex(shard_paths(tmp_path))
    groups = index.groups(range(-1, len(index) + 1))
    expected = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["position"])]
    assert (len(index), index.num_completions, len(groups)) == (54, 216, 54)
    for group, written in zip(groups, expected, strict=True):
        assert (group.step, group.verdict, group.fate) == tuple(written[0][k] for k in ("step", "verdict", "fate"))
        assert (group.prompt, group.solution) == (written[0]["prompt"], written[0]["solution"] or "")
        for completion, row in zip(group.completions, written, strict=True):
            for name in ("sample", "completion", "length", "is_truncated", "extra"):
                assert completion[name] == row[name]
            for name in ("reward", "advantage", "rewards/accuracy"):
                assert completion[name] == pytest.approx(math.nan if row[name] is None else row[name], nan_ok=True)
    heads = index.groups([3], has_completions=False)
    assert heads[0].prompt == expected[3][0]["prompt"]
    assert [completion["completion"] for completion in heads[0].completions] == [""] * 4
    assert [batch.counts["all_wrong"] for batch in index.batches] == [0, 1, 2, 3, 4, 5]
    assert index.filter_reward == "rewards/accuracy"


def test_passes_count_the_groups_by_their_share_of_correct_completions(tmp_path):
    rows = write_record(tmp_path)
    index = RolloutIndex(shard_paths(tmp_path))
    expected = {}
    for position, group in itertools.groupby(rows, key=lambda row: row["position"]):
        share = sum(row["rewards/accuracy"] == 1.0 for row in group) / 4
        kind = {0: "all_wrong", 0.25: "below_half", 1: "all_correct"}.get(share, "half_or_more")
        of_pass = expected.setdefault(position // 200 + 1, dict.fromkeys(rollout_index.PASS_RATES, 0))
        of_pass[kind] += 1
    # Positions 0 to 508: three passes over 200 prompts.
    assert {batch.step: batch.counts for batch in index.passes(200)} == expected
    assert sorted(expected) == [1, 2, 3]
    assert index.passes(0) == index.passes(10**30) == []
    assert RolloutIndex([]).passes(10) == []


def test_groups_of_a_prompt_are_found_in_all_files(tmp_path):
    shards = RolloutShards(tmp_path, ["accuracy"])
    chance = random.Random(0)
    for batch in range(3):
        groups = [made_up_group(chance, batch, 10 * batch + number) for number in range(4)]
        shards.add([row | {"prompt": f"prompt {row['position'] % 5}"} for group in groups for row in group], {})
    index = RolloutIndex(shard_paths(tmp_path))
    # Positions 0 to 3, 10 to 13, 20 to 23 are groups 0 to 11.
    assert index.with_prompt("prompt 3") == [3, 7, 11]
    assert index.with_prompt("prompt") == []
    os.remove(index.paths[1])
    assert RolloutIndex(index.paths).with_prompt("prompt 3") == [3, 7]


def test_turns_are_read_where_the_run_had_any(tmp_path):
    shards = RolloutShards(tmp_path, ["accuracy"], has_turns=True)
    group = made_up_group(random.Random(0), 0, 0)
    shards.add([row | {"num_turns": 3, "num_tool_tokens": 8, "env_fault": "timeout"} for row in group], {})
    write_record(tmp_path / "plain", num_batches=1)
    turns = [
        [
            (c["num_turns"], c["num_tool_tokens"], c["env_fault"])
            for c in RolloutIndex(shard_paths(folder)).groups([0])[0].completions
        ]
        for folder in (tmp_path, tmp_path / "plain")
    ]
    assert turns == [[(3, 8, "timeout")] * 4, [(0, 0, "")] * 4]


def test_names_are_those_that_the_trainer_writes():
    assert set(VERDICTS) == {verdict.value for verdict in GroupVerdict}
    # An aborted group has no verdict, and is not in the record.
    assert set(FATES) == {fate.value for fate in Fate} - {"aborted"}


def test_resumed_run_replaces_what_the_killed_one_had_recorded_beyond_the_checkpoint(tmp_path):
    first = write_record(tmp_path, seed=0, num_batches=5)  # steps 1, 5, 9, 13, 17
    chance, shards = random.Random(9), RolloutShards(tmp_path, ["accuracy"])
    second = made_up_group(chance, 8, 200) + made_up_group(chance, 8, 207)
    shards.add(second, {"step": 8})
    third = RolloutShards(tmp_path, ["accuracy"])
    last = made_up_group(chance, 12, 300)
    third.add(last, {"step": 12})
    made = [row | {"step": row["step"] + 1} for row in second + last]
    expected = [row for row in first if row["step"] < 9] + made
    index = RolloutIndex(shard_paths(tmp_path))
    assert found(index, Query()) == by_hand(expected, Query())
    assert list(index.columns["step"]) == [row["step"] for row in expected]


def test_record_that_grows_is_seen_when_it_is_opened_again(tmp_path):
    rows = write_record(tmp_path)
    assert len(RolloutIndex(shard_paths(tmp_path))) == 54
    unfinished = tmp_path / "rollouts" / ".groups-000-000006.parquet.tmp"
    shutil.copy(shard_paths(tmp_path)[0], unfinished)
    assert len(RolloutIndex(shard_paths(tmp_path))) == 54
    unfinished.rename(tmp_path / "rollouts" / "groups-000-000006.parquet")
    assert len(RolloutIndex(shard_paths(tmp_path))) == 54 + 9
    assert rows


def test_no_record_is_an_empty_one(tmp_path):
    index = RolloutIndex(shard_paths(tmp_path))
    assert (len(index), index.num_completions, index.batches) == (0, 0, [])
    for order in ORDERS:
        assert index.find(Query(text="x", order=order))[0].tolist() == []


def test_file_that_is_no_record_is_named_and_passed_over(tmp_path):
    write_record(tmp_path, num_batches=2)
    folder = tmp_path / "rollouts"
    (folder / "groups-000-000002.parquet").write_bytes(b"PAR1 no parquet at all PAR1")
    (folder / "groups-000-000003.parquet").write_bytes(b"")
    pq.write_table(pa.table({"step": [1]}), folder / "groups-000-000004.parquet")
    good = pq.read_table(shard_paths(tmp_path)[0])
    wrong_type = good.set_column(good.column_names.index("length"), "length", pa.array(["many"] * len(good)))
    pq.write_table(wrong_type, folder / "groups-000-000005.parquet")
    metadata = {b"trl_dapo": b"[" * 100_000}
    pq.write_table(good.replace_schema_metadata(metadata), folder / "groups-000-000006.parquet")
    no_text = good.set_column(good.column_names.index("completion"), "completion", pa.array([7] * len(good)))
    pq.write_table(no_text, folder / "groups-000-000007.parquet")
    unknown = good.set_column(good.column_names.index("verdict"), "verdict", pa.array(["<b>x"] * len(good)))
    pq.write_table(unknown, folder / "groups-000-000008.parquet")
    index = RolloutIndex(shard_paths(tmp_path))
    assert [problem.split(":")[0] for problem in index.problems] == [
        f"groups-000-00000{n}.parquet" for n in (2, 3, 4, 5)
    ]
    assert len(index) == 9 * 5
    assert len(index.find(Query(text="question"))[0]) == 9 * 5
    assert {group.verdict for group in index.groups(index.find(Query(verdicts=frozenset({"other"})))[0])} == {"other"}
    assert [c["completion"] for c in index.groups([30])[0].completions] == [""] * 4


def test_group_of_absurd_size_is_shown_in_part(tmp_path):
    rows = [made_up_group(random.Random(0), 0, 5)[0] for _ in range(1000)]
    RolloutShards(tmp_path, ["accuracy"]).add(rows, {"step": 0})
    (group,) = RolloutIndex(shard_paths(tmp_path)).groups([0])
    assert (len(group.completions), group.num_left_out) == (256, 744)
    assert "744 more left out" in group_view.group_html(group, [], [True] * 256)


def test_file_that_has_gone_since_is_shown_without_texts(tmp_path):
    write_record(tmp_path)
    index = RolloutIndex(shard_paths(tmp_path))
    shutil.rmtree(tmp_path / "rollouts")
    assert index.groups([0])[0].prompt == ""
    assert index.find(Query(text="question"))[0].tolist() == []


@pytest.mark.parametrize("text", ["a..b", "1..2..3", "nan", "inf..", "<script>", "1e999"])
def test_range_that_is_none_is_refused_by_name(text):
    with pytest.raises(ValueError, match=r"Steps is .*, but must be a range like 10\.\.50"):
        parse_range("Steps", text)


@pytest.mark.parametrize("module", [query, shard_reader, rollout_index, run_files, group_view, curve_view, facts_view])
def test_examples_in_docstrings_hold(module):
    results = doctest.testmod(module)
    assert results.failed == 0
