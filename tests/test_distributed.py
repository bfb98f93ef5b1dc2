"""Two real processes over gloo."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import two_ranks
from forked import PATH, run_ranks
from tiny import tiny_tokenizer


pytestmark = pytest.mark.distributed


def run(folder, num_ranks, is_launched=False, variables=None, **overrides):
    """
    Trains on `num_ranks` processes, forked ones or, if `is_launched`, those of `torchrun` with more environment variables.

    Returns what each rank wrote.
    """
    folder.mkdir(parents=True)
    arguments = str(folder), json.dumps(overrides)
    if is_launched:
        launch(num_ranks, arguments, variables or {})
    else:
        run_ranks(two_ranks.main, arguments, num_ranks, folder)
    results = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]
    assert all(result["num_processes"] == num_ranks for result in results)
    return results


def launch(num_ranks, arguments, variables):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CI": "1"}
    environment["PYTHONPATH"] = PATH
    command += [two_ranks.__file__, *arguments]
    finished = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=900)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]


def trained_batches(results):
    """For each batch, its rows over all ranks: prompt, completion, advantage."""
    batches = []
    for parts in zip(*(result["trained"] for result in results), strict=True):
        rows = []
        for part in parts:
            rows += zip(map(tuple, part["prompts"]), map(tuple, part["rows"]), part["advantages"], strict=True)
        batches.append(rows)
    return batches


def assert_same_batches(one, two):
    assert len(one) == len(two)
    for alone, together in zip(one, two, strict=True):
        assert [row[:2] for row in sorted(alone)] == [row[:2] for row in sorted(together)]
        np.testing.assert_allclose([r[2] for r in sorted(alone)], [r[2] for r in sorted(together)], rtol=1e-6)


# 8 rows on each of two ranks hold two groups of 4; 6 rows hold one and a half, so that one group straddles the ranks.
@pytest.mark.supports("ddp")
@pytest.mark.parametrize("rows_per_rank", [8, 6])
def test_two_ranks_train_the_batches_of_one(tmp_path, rows_per_rank):
    options = {"max_steps": 10, "steps_per_generation": 2, "max_generation_rounds": 30, "log_completions": True}
    alone = run(tmp_path / "one", 1, per_device_train_batch_size=2 * rows_per_rank, **options)
    together = run(tmp_path / "two", 2, per_device_train_batch_size=rows_per_rank, **options)
    assert_same_batches(trained_batches(alone), trained_batches(together))
    assert [result["position"] for result in together] == [alone[0]["position"]] * 2
    for batch in trained_batches(together):
        assert len(batch) == 4 * rows_per_rank
        for start in range(0, len(batch), 4):
            group = batch[start : start + 4]
            assert len({prompt for prompt, _, _ in group}) == 1
            assert 0 < sum(completion[0] == 4 for _, completion, _ in group) < 4
    # Columns that a reward function logged have travelled with their completions.
    for table in map(pd.read_parquet, sorted((tmp_path / "two" / "completions").glob("*.parquet"))):
        decoded = [tiny_tokenizer().decode(json.loads(ids), skip_special_tokens=True) for ids in table["ids_seen"]]
        assert decoded == list(table["completion"])


def tables(folder):
    return {path.name: pd.read_parquet(path) for path in sorted((folder / "completions").glob("*.parquet"))}


def assert_same_tables(mine, its):
    assert mine.keys() == its.keys()
    for name, table in mine.items():
        pd.testing.assert_frame_equal(table, its[name])


def test_texts_go_to_the_rank_that_writes_them_and_not_into_checkpoints(tmp_path):
    options = {"max_steps": 5, "steps_per_generation": 2, "max_generation_rounds": 30, "log_completions": True}
    options |= {"per_device_train_batch_size": 6, "surplus": "carry", "max_off_policy_steps": 100}
    options |= {"refill_confidence": 0.99, "max_prompts_per_round": 60}
    options |= {"save_strategy": "steps", "save_steps": 3, "eval_steps": 2, "eval_strategy": "steps"}
    options |= {"per_device_eval_batch_size": 4}
    to_all = run(tmp_path / "all", 2, texts_to_all=True, **options)
    to_first = run(tmp_path / "first", 2, **options)
    assert to_first[0]["texts"] == to_all[0]["texts"] == to_all[1]["texts"]
    assert len(to_first[0]["texts"]["completion"]) == 24
    assert to_first[1]["texts"] == {"prompt": [], "completion": [], "ids_seen": []}
    assert_same_tables(tables(tmp_path / "first"), tables(tmp_path / "all"))
    checkpoint = tmp_path / "first" / "checkpoint-3"
    states = [(checkpoint / "dapo_state" / f"rank{rank}.json").read_text() for rank in range(2)]
    # Completions of carried groups are in them, without the words that prompts and completions are made of.
    assert any("ids_seen" in state for state in states)
    assert not any(re.search(r"\bw\d", state) for state in states)
    # The second step of the batch that is being trained shows what the first one showed.
    resumed = run(tmp_path / "resumed", 2, resume_from=str(checkpoint), **options)
    assert resumed[1]["texts"] == to_first[1]["texts"]
    whole = tables(tmp_path / "first")
    assert_same_tables(tables(tmp_path / "resumed"), {name: whole[name] for name in list(whole)[3:]})


def test_texts_go_nowhere_if_no_rank_writes_them(tmp_path):
    results = run(tmp_path / "two", 2, per_device_train_batch_size=6, max_steps=2, max_generation_rounds=30)
    assert [result["texts"] for result in results] == [{"prompt": [], "completion": [], "ids_seen": []}] * 2


def test_rank_that_finds_everything_shares_with_the_one_that_finds_nothing(tmp_path):
    options = {"alternate": True, "shuffle_dataset": False, "max_steps": 20, "max_generation_rounds": 30}
    options |= {"max_completion_length": 6}
    alone = run(tmp_path / "one", 1, per_device_train_batch_size=12, **options)
    together = run(tmp_path / "two", 2, per_device_train_batch_size=6, **options)
    assert_same_batches(trained_batches(alone), trained_batches(together))
    assert len(trained_batches(together)) == 20
    moved = [entry["dapo/moved_bytes"] for entry in together[0]["logs"] if "dapo/moved_bytes" in entry]
    # A row has 2 prompt tokens and 2 to 4 completion tokens, and 6 of the 12 rows train elsewhere than they were made.
    assert max(moved) <= 4 * 12 * 6
    assert sum(moved) > 0


@pytest.mark.supports("ddp")
def test_two_ranks_take_the_optimizer_step_of_one(tmp_path):
    options = {"max_steps": 3, "max_generation_rounds": 30, "learning_rate": 1e-3}
    alone = run(tmp_path / "one", 1, per_device_train_batch_size=16, **options)
    together = run(tmp_path / "two", 2, per_device_train_batch_size=8, **options)
    for result in together:
        for mine, its in zip(result["parameters"], alone[0]["parameters"], strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-6)


def test_exhausted_batch_is_the_same_on_both_ranks(tmp_path):
    options = {"max_steps": 4, "steps_per_generation": 2, "max_generation_rounds": 1, "max_prompts_per_round": 8}
    alone = run(tmp_path / "one", 1, per_device_train_batch_size=16, **options)
    together = run(tmp_path / "two", 2, per_device_train_batch_size=8, **options)
    assert together[0]["logs"][0]["dapo/exhausted"] == 1.0

    def live(results):
        return [[row for row in batch if row[1]] for batch in trained_batches(results)]

    assert_same_batches(live(alone), live(together))
    assert [b["num_items"] for b in together[1]["trained"]] == [b["num_items"] for b in alone[0]["trained"]]


def test_two_ranks_carry_what_one_carries(tmp_path):
    options = {"max_steps": 8, "surplus": "carry", "max_off_policy_steps": 100, "max_generation_rounds": 30}
    options |= {"learning_rate": 1e-3}
    alone = run(tmp_path / "one", 1, per_device_train_batch_size=16, **options)
    together = run(tmp_path / "two", 2, per_device_train_batch_size=8, **options)
    assert sum(entry.get("dapo/carried", 0) for entry in alone[0]["logs"]) > 0
    assert_same_batches(trained_batches(alone), trained_batches(together))
    # Rollouts that moved brought the log-probabilities of the policy that sampled them.
    assert any(entry.get("dapo/moved_bytes", 0) > 0 for entry in together[0]["logs"])
    for batches in zip(alone[0]["trained"], *(result["trained"] for result in together), strict=True):
        by_row = [
            {(tuple(p), tuple(r)): old for b in part for p, r, old in zip(b["prompts"], b["rows"], b["old_logps"] or [], strict=False)}
            for part in (batches[:1], batches[1:])
        ]  # fmt: skip
        assert by_row[0].keys() == by_row[1].keys()
        for row, old in by_row[0].items():
            np.testing.assert_allclose(by_row[1][row], old, rtol=1e-3, atol=1e-4)
