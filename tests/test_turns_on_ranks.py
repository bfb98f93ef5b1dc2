"""Tools and environments on two real processes over gloo, and resumed."""

import json
import shutil

import chat_ranks
import numpy as np
import pytest
from forked import run_ranks


pytestmark = pytest.mark.distributed


def run(folder, num_ranks, **options):
    folder.mkdir(parents=True, exist_ok=True)
    run_ranks(chat_ranks.main, (str(folder), json.dumps(options)), num_ranks, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]


def batches(results):
    """For each batch, its rows over all ranks and its denominator."""
    found = []
    for parts in zip(*(result["batches"] for result in results), strict=True):
        rows = [(*row["key"], row["own"], row["advantage"]) for part in parts for row in part["rows"]]
        found.append((sorted(rows), {part["num_items"] for part in parts}))
    return found


# 6 rows on each of two ranks hold one and a half groups of 4: one group straddles the ranks.
@pytest.mark.supports("tools", "environments", "turns_together")
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "tools", "log_completions": True},
        {"kind": "environments"},
        {"kind": "rollouts"},
        {"kind": "tools", "surplus": "carry", "refill_confidence": 0.99, "max_prompts_per_round": 24},
        {"kind": "tools", "together": "engine"},
        {"kind": "environments", "together": "parts"},
    ],
    ids=str,
)
def test_two_ranks_train_the_batches_of_one(tmp_path, options):
    options = {"max_steps": 4 if "surplus" in options else 2, "learning_rate": 1e-3} | options
    alone = run(tmp_path / "one", 1, per_device_train_batch_size=12, **options)
    both = run(tmp_path / "two", 2, per_device_train_batch_size=6, **options)
    for one, two in zip(batches(alone), batches(both), strict=True):
        assert [row[:3] for row in one[0]] == [row[:3] for row in two[0]]
        np.testing.assert_allclose([row[3] for row in one[0]], [row[3] for row in two[0]], rtol=1e-4, atol=1e-5)
        assert one[1] == two[1] == {sum(sum(row[2]) for row in one[0])}
        assert any(0 in row[2] for row in one[0])
    assert max(both[0]["moved"]) > 0
    for alone_entry, entry in zip(alone[0]["logs"], both[0]["logs"], strict=True):
        for name in ("tools/call_frequency", "dapo/turns/mean", "completions/mean_length", "dapo/rollout_efficiency"):
            assert (name in entry) == (name in alone_entry)
            assert entry.get(name, 0) == pytest.approx(alone_entry.get(name, 0), rel=1e-5)
    sizes = [result["turn_sizes"] for result in both]
    if "together" in options:
        # `chat_ranks.together` has checked each call. Without it the ranks take different numbers of turns.
        assert len(sizes[0]) == len(sizes[1])
    elif options["kind"] != "rollouts":
        assert sizes[0] != sizes[1]
    if options.get("log_completions"):
        assert sorted(map(json.dumps, alone[0]["completions"])) == sorted(map(json.dumps, both[0]["completions"]))


@pytest.mark.parametrize("kind", ["tools", "environments"])
def test_a_resumed_run_with_half_a_batch_and_carried_groups_equals_one_never_interrupted(tmp_path, kind):
    options = {"kind": kind, "surplus": "carry", "refill_confidence": 0.99, "max_prompts_per_round": 24}
    options |= {"steps_per_generation": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = run(tmp_path / "whole", 1, **options)
    shutil.rmtree(tmp_path / "whole" / "checkpoint-6")
    resumed = run(tmp_path / "whole", 1, resume_from=str(tmp_path / "whole" / "checkpoint-3"), **options)
    assert resumed[0]["parameters"] == whole[0]["parameters"]
    # The second of the two steps of a batch, and then a batch.
    assert resumed[0]["batches"] == whole[0]["batches"][-len(resumed[0]["batches"]) :]
    assert max(entry.get("dapo/carried", 0) for entry in whole[0]["logs"]) > 0


@pytest.mark.supports("turns_together")
def test_ranks_that_hold_parts_of_a_model_take_the_same_turns(tmp_path):
    options = {"kind": "tools", "max_steps": 3, "per_device_train_batch_size": 6}
    apart = run(tmp_path / "apart", 2, **options)
    sharded = run(tmp_path / "sharded", 2, together="fsdp", **options)
    assert apart[0]["turn_sizes"] != apart[1]["turn_sizes"]
    assert len(sharded[0]["turn_sizes"]) == len(sharded[1]["turn_sizes"])
    for one, two in zip(batches(apart), batches(sharded), strict=True):
        assert [row[:3] for row in one[0]] == [row[:3] for row in two[0]]
        assert one[1] == two[1]


@pytest.mark.fault(
    "no environment can be made on one of two ranks",
    "sampling",
    "its error there, `RankFailedError` with the cause on the other",
)
def test_a_rank_without_environments_tells_the_others(tmp_path):
    results = run(tmp_path, 2, kind="licensed", per_device_train_batch_size=4)
    assert results[1]["failure"] == "OSError('no license is left')"
    assert results[0]["failure"] == (
        "RankFailedError('Sampling stopped because process 1 failed with: OSError: no license is left')"
    )


def test_a_rollout_function_that_fails_on_each_rank_ends_each_with_its_own_error(tmp_path):
    results = run(tmp_path, 2, kind="no rollouts", per_device_train_batch_size=4)
    assert [result["failure"] for result in results] == [f"OSError('no rollouts for {rank}')" for rank in range(2)]
