"""The record of rollout groups, against what was sampled and trained as TRL saw it."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import test_resume
from datasets import IterableDataset
from forked import print_into, start
from test_distributed import run
from test_trainer import RecordingTrainer, all_wrong, make_trainer, rare_reward
from thread_ranks import run_ranks
from tiny import (
    first_token_reward,
    gold_logging_reward,
    prompts_with_gold,
    texts_in,
    tiny_tokenizer,
    training_arguments,
)

from trl_dapo import DAPOConfig, RefillExhaustedError
from trl_dapo.checkpoints.files import mark_whole, read_state, write_state
from trl_dapo.report.group_sample import GroupSample
from trl_dapo.report.recorder import RewardColumns, RolloutRecorder
from trl_dapo.report.shards import BATCH_KEY, RolloutShards, as_text
from trl_dapo.sampling.judge import GroupJudge, RowFacts
from trl_dapo.sampling.prompt_stream import Draw


class SampledTrainer(RecordingTrainer):
    """Keeps what every round sampled, for each batch."""

    def __init__(self, *args, **kwargs):
        self.all_rounds = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.all_rounds.append(self.sampled_rounds)
        return output


def read(folder):
    return pd.read_parquet(Path(folder, "rollouts"))


def facts_of(folder):
    files = sorted(Path(folder, "rollouts").glob("*.parquet"))
    return [json.loads(pq.read_schema(path).metadata[BATCH_KEY]) for path in files]


@pytest.mark.parametrize("reward", [first_token_reward, rare_reward])
def test_record_holds_every_sampled_completion_once_with_what_became_of_it(tmp_path, reward):
    trainer = make_trainer(
        tmp_path, reward, cls=SampledTrainer, max_steps=5, max_generation_rounds=50, num_groups_to_log=10**6
    )
    trainer.train()
    record, facts = read(tmp_path), facts_of(tmp_path)
    decode = tiny_tokenizer().decode
    for step, (rounds, (_, (trained_rows, _, trained_ids), output)) in enumerate(
        zip(trainer.all_rounds, trainer.batches, strict=True)
    ):
        sampled = [(row, rewards, ids) for batch in rounds for row, rewards, ids in zip(*batch, strict=True)]
        shown = record[record["step"] == step]
        assert list(shown["row"]) == [row for row, _, _ in sampled]
        assert list(shown["prompt"]) == [f"w{row % 17} w{row // 17 % 17}" for row, _, _ in sampled]
        assert list(shown["completion"]) == [decode(ids, skip_special_tokens=True) for _, _, ids in sampled]
        assert list(shown["length"]) == [len(ids) for _, _, ids in sampled]
        assert list(shown["is_truncated"]) == [ids[-1] != 2 for _, _, ids in sampled]
        matrix = np.array([rewards for _, rewards, _ in sampled])
        np.testing.assert_array_equal(shown[f"rewards/{reward.__name__}"], matrix[:, 0])
        np.testing.assert_array_equal(shown["rewards/soft_overlong_punishment"], matrix[:, 1])
        np.testing.assert_allclose(shown["reward"], matrix.sum(axis=1))
        # The first two mixed groups train, and the others did not fit.
        means = matrix[:, 0].reshape(-1, 4).mean(axis=1)
        mixed = [number for number, mean in enumerate(means) if 0 < mean < 1]
        fates = ["trained" if n in mixed[:2] else "surplus" if n in mixed else "filtered" for n in range(len(means))]
        verdicts = ["all_wrong" if mean == 0 else "all_correct" if mean == 1 else "informative" for mean in means]
        assert list(shown["fate"][::4]) == fates
        assert list(shown["verdict"][::4]) == verdicts
        trained = shown[shown["fate"] == "trained"]
        assert list(trained["row"]) == trained_rows
        assert list(trained["completion"]) == [decode(ids, skip_special_tokens=True) for ids in trained_ids]
        np.testing.assert_allclose(trained["advantage"], output["advantages"].numpy(), rtol=1e-6)
        assert shown["advantage"][shown["fate"] != "trained"].isna().all()
        counts = facts[step]["groups"]
        assert counts["trained"] == 2
        assert counts["surplus"] == len(mixed) - 2
        assert counts.get("all_wrong", 0) == verdicts.count("all_wrong")
        assert counts.get("all_correct", 0) == verdicts.count("all_correct")


def test_carried_group_stands_in_the_record_once_when_its_fate_is_known(tmp_path):
    trainer = make_trainer(
        tmp_path, cls=SampledTrainer, max_steps=6, surplus="carry", refill_confidence=0.999, num_groups_to_log=10**6
    )
    trainer.train()
    record = read(tmp_path)
    sampled = [(step, row) for step, rounds in enumerate(trainer.all_rounds) for rows, _, _ in rounds for row in rows]
    assert sorted(zip(record["sampled_step"], record["row"], strict=True)) == sorted(sampled)
    for step, (_, (trained_rows, _, _), output) in enumerate(trainer.batches):
        trained = record[(record["step"] == step) & (record["fate"] == "trained")]
        assert list(trained["row"]) == trained_rows
        np.testing.assert_allclose(trained["advantage"], output["advantages"].numpy(), rtol=1e-6)
    is_late = record["step"] > record["sampled_step"]
    assert set(record["fate"][is_late]) == {"trained", "stale", "surplus"}
    # What was carried to the end of the run trains no more.
    assert set(record["fate"][record["step"] == 6]) == {"surplus"}


@pytest.mark.distributed
@pytest.mark.parametrize("num_groups", [10**6, 3])
def test_two_ranks_write_the_record_of_one(tmp_path, num_groups):
    # Of 6 rows on each rank, one group of 4 straddles them.
    options = {"max_steps": 6, "max_generation_rounds": 30, "num_groups_to_log": num_groups}
    run(tmp_path / "one", 1, per_device_train_batch_size=12, **options)
    run(tmp_path / "two", 2, per_device_train_batch_size=6, **options)
    alone, together = read(tmp_path / "one"), read(tmp_path / "two")
    assert len(alone) > 0
    pd.testing.assert_frame_equal(together, alone, rtol=1e-6)
    groups = alone.groupby(["step", "position"], observed=True)
    assert set(groups.size()) == {4}
    assert groups["prompt"].nunique().eq(1).all()
    if num_groups == 3:
        assert set(groups.first().groupby("step").size()) == {3}
    for _, row in alone.iterrows():
        ids = json.loads(json.loads(row["extra"])["ids_seen"])
        assert tiny_tokenizer().decode(ids, skip_special_tokens=True) == row["completion"]


def test_without_dynamic_sampling_the_record_is_the_table_of_trl(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, dynamic_sampling=False, log_completions=True)
    trainer.train()
    record = read(tmp_path)
    for step in range(3):
        table = pd.read_parquet(tmp_path / "completions" / f"completions_{step + 1:05d}.parquet")
        shown = record[record["step"] == step]
        assert list(shown["prompt"]) == list(table["prompt"])
        assert list(shown["completion"]) == list(table["completion"])
        np.testing.assert_allclose(shown["advantage"], table["advantage"], rtol=1e-6)
        np.testing.assert_array_equal(shown["rewards/first_token_reward"], table["first_token_reward"])
    assert set(record["fate"]) == {"trained"}


def test_nothing_is_recorded_unless_asked(tmp_path):
    make_trainer(tmp_path, max_steps=1).train()
    assert not (tmp_path / "rollouts").exists()
    assert not (tmp_path / "log_history.jsonl").exists()


def test_groups_that_brought_a_run_to_its_end_are_in_the_record(tmp_path):
    options = {"max_generation_rounds": 2, "on_exhausted": "error", "num_groups_to_log": 100}
    trainer = make_trainer(tmp_path, all_wrong, **options)
    with pytest.raises(RefillExhaustedError):
        trainer.train()
    record = read(tmp_path)
    assert list(record["row"]) == [row for rows, _, _ in trainer.sampled_rounds for row in rows]
    assert set(record["verdict"]) == {"all_wrong"}
    assert set(record["fate"]) == {"filtered"}


def train_for_ever(folder, checkpoint=None):
    print_into(os.devnull)
    options = {"num_groups_to_log": 10**6, "max_steps": 10**6, "save_steps": 5, "save_strategy": "steps"}
    make_trainer(folder, **options).train(resume_from_checkpoint=checkpoint)


def train_and_kill(folder, num_files, *arguments):
    """Trains until the record has so many files, and kills the process."""
    process = start(train_for_ever, str(folder), *arguments)
    try:
        while len(list(folder.glob("rollouts/*.parquet"))) < num_files:
            assert process.is_alive()
            if num_files > 1 and (folder / "rollouts").exists():
                read(folder)  # whenever one looks, the record can be read
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()


def test_record_survives_a_kill_and_goes_on_in_a_resumed_run(tmp_path):
    train_and_kill(tmp_path, 8)
    (tmp_path / "rollouts" / ".groups-000-000999.parquet.tmp").write_bytes(b"PAR1 cut off")
    with (tmp_path / "log_history.jsonl").open("ab") as file:
        file.write(b'{"start": 0, "st')
    before = read(tmp_path)
    assert set(before["step"]) == set(range(before["step"].max() + 1))
    names = set(os.listdir(tmp_path / "rollouts"))
    train_and_kill(tmp_path, len(names) + 2, str(tmp_path / "checkpoint-5"))
    assert names <= set(os.listdir(tmp_path / "rollouts"))
    resumed = pd.concat(map(pd.read_parquet, sorted(tmp_path.glob("rollouts/groups-001-*.parquet"))))
    assert resumed["step"].min() == 5
    logged = [
        json.loads(line) for line in (tmp_path / "log_history.jsonl").read_text().splitlines() if line[-1] == "}"
    ]
    first_of_second_start = next(entry for entry in logged if entry["start"] == 1)
    assert first_of_second_start["step"] == 6


LOGGED = test_resume.CARRY | {"num_groups_to_log": 5, "reward_funcs": gold_logging_reward, "steps_per_generation": 2}


def resumed_record(folder, **options):
    """Returns the record of a run that went on from the fourth step in a folder of its own."""
    checkpoint = folder / "a" / "checkpoint-4"
    test_resume.make_trainer(folder / "b", **options).train(resume_from_checkpoint=str(checkpoint))
    return read(folder / "b")


@pytest.mark.parametrize("is_iterable", [False, True])
def test_resumed_run_records_what_one_that_was_never_interrupted_does(tmp_path, is_iterable):
    dataset = prompts_with_gold(30)
    rows = dataset.to_list()
    stream = IterableDataset.from_generator(lambda: iter(rows))
    options = LOGGED | {"dataset": stream if is_iterable else dataset}
    test_resume.make_trainer(tmp_path / "a", **options).train()
    straight = read(tmp_path / "a")
    resumed = resumed_record(tmp_path, **options)
    waiting = read_state(tmp_path / "a" / "checkpoint-4", "rank0")["parts"]["record"]["carried"]
    assert len(waiting) > 0
    assert texts_in(tmp_path / "a" / "checkpoint-4", [*dataset["prompt"], *dataset["solution"]]) == []
    expected = straight[straight["step"] >= 4].reset_index(drop=True)
    assert set(expected["solution"]) <= set(dataset["solution"])
    assert (expected["sampled_step"] < 4).any()
    pd.testing.assert_frame_equal(resumed, expected, check_categorical=False)


def test_checkpoint_of_an_earlier_release_has_the_texts_of_the_record(tmp_path):
    dataset = prompts_with_gold(30)
    test_resume.make_trainer(tmp_path / "a", dataset=dataset, **LOGGED).train()
    checkpoint = tmp_path / "a" / "checkpoint-4"
    state = read_state(checkpoint, "rank0")
    for kept in state["parts"]["record"]["carried"]:
        row = dataset[kept["group"]["draw"]["index"]]
        kept["row"] = [row["prompt"], row["solution"]] if kept.pop("has_row") else None
        for _, rollout in kept["texts"]:
            assert rollout.pop("row_columns") == ["solution"]
            rollout["extra_logs"]["solution"] = row["solution"]
    for _, rollout in state["parts"]["carried"]["rollouts"]:
        rollout["extra_logs"]["solution"] = "as it was logged"
        del rollout["row_columns"]
    mark_whole(checkpoint, write_state(checkpoint, "rank0", state))
    resumed, straight = resumed_record(tmp_path, dataset=dataset, **LOGGED), read(tmp_path / "a")
    expected = straight[straight["step"] >= 4].reset_index(drop=True)
    pd.testing.assert_frame_equal(resumed, expected, check_categorical=False)


def test_full_disk_costs_the_record_and_not_the_run(tmp_path, caplog):
    (tmp_path / "rollouts").write_text("in the way")
    trainer = make_trainer(tmp_path, max_steps=2, num_groups_to_log=4)
    trainer.train()
    assert trainer.state.global_step == 2
    assert caplog.text.count("The record of rollout groups ends here") == 1


def test_text_that_utf8_cannot_hold_is_stored_all_the_same(tmp_path):
    shards = RolloutShards(tmp_path, ["accuracy"])
    completion = as_text([{"role": "assistant", "content": "a\ud800b\x00c"}])
    shards.add([{"completion": completion, "extra": "\udfff", "rewards/accuracy": float("nan")}], {"step": 0})
    stored = read(tmp_path).iloc[0]
    assert stored["completion"] == "a?b\x00c"
    assert stored["extra"] == "?"
    assert pq.read_table(tmp_path / "rollouts")["rewards/accuracy"].null_count == 1


def test_history_has_what_the_trainer_logged(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, num_groups_to_log=1)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "log_history.jsonl").read_text().splitlines()]
    for line, entry in zip(lines, trainer.state.log_history, strict=True):
        finite = {name: value for name, value in entry.items() if value is not None and np.isfinite(value)}
        finite.pop("total_flos", None)  # added after the callbacks saw the entry
        logged = {name: value for name, value in line.items() if value is not None}
        assert logged == {"start": 0, **finite}


def test_two_ranks_without_dynamic_sampling_write_every_completion_once(tmp_path):
    # 3 groups of 4 on two ranks of 6 rows: the second group straddles them.
    args = DAPOConfig(**training_arguments(tmp_path, per_device_train_batch_size=12, num_groups_to_log=10))
    rewards = [[float(row % 4 == 1)] for row in range(12)]
    facts = [RowFacts(2, row + 1, row == 5) for row in range(12)]
    groups = GroupJudge([0]).judge([Draw(number, -1) for number in range(3)], rewards, facts)

    def work(ranks):
        mine = range(6 * ranks.rank, 6 * ranks.rank + 6)
        rewards = RewardColumns(["correct"], [2.0], [0])
        recorder = RolloutRecorder(args.shape, ranks, GroupSample(10), rewards, str(tmp_path), decode=None)
        inputs = [{"prompt": f"p{row // 4}", "answer": row // 4} for row in mine]
        logged = {"seen": [row * 10 for row in mine], "other length": [1]}
        recorder.observe_plain(groups, inputs, [f"c{row}" for row in mine], logged)
        recorder.write(None, [row / 2 for row in range(12)], step=3)

    run_ranks(2, work)
    record = read(tmp_path)
    assert list(record["completion"]) == [f"c{row}" for row in range(12)]
    assert list(record["prompt"]) == [f"p{row // 4}" for row in range(12)]
    assert list(record["solution"]) == [str(row // 4) for row in range(12)]
    assert list(record["advantage"]) == [row / 2 for row in range(12)]
    assert list(record["reward"]) == [2.0 * (row % 4 == 1) for row in range(12)]
    assert list(record["extra"]) == [f'{{"seen": {row * 10}}}' for row in range(12)]
    assert list(record["is_truncated"]) == [row == 5 for row in range(12)]
    assert set(record["step"]) == {3}
