"""Whatever a reward function logs, the run trains on, saves its checkpoints and its tables, and goes on from them."""

import datetime
from collections import defaultdict, deque

import numpy as np
import pandas as pd
import pytest
import torch
from test_trainer import make_trainer
from tiny import first_token_reward, numbered_prompts

from trl_dapo.checkpoints.files import read_state
from trl_dapo.report.completion_table import columns_in_step


class Odd:
    def __repr__(self):
        return "an odd one"


# What a reward function may log for completion i, and what stands in the table of completions.
VALUES = {
    "numpy number": (lambda i: np.float32(i), lambda i: float(i)),
    "tensor": (lambda i: torch.tensor(i), lambda i: i),
    "array": (lambda i: np.arange(3) + i, lambda i: [i, i + 1, i + 2]),
    "empty mapping": (lambda i: {}, lambda i: "{}"),
    "mapping with numbers for keys": (lambda i: {1: i}, lambda i: {"1": i}),
    "mapping that looks like a tensor on disk": (lambda i: {"__tensor__": "0"}, lambda i: '{"__tensor__": "0"}'),
    "mixed": (lambda i: [i, "text", None, 1.5, {}, [i]][i % 6], lambda i: [f"{i}", "text", None, "1.5", "{}", f"[{i}]"][i % 6]),
    "huge": (lambda i: 2**70 + i, lambda i: str(2**70 + i)),
    "yes or number": (lambda i: [True, 2][i % 2], lambda i: ["true", "2"][i % 2]),
    "date": (lambda i: datetime.date(2025, 7, 1 + i), lambda i: f"2025-07-{1 + i:02d}"),
    "object": (lambda i: Odd(), lambda i: "an odd one"),
    "set": (lambda i: {i}, lambda i: f"{{{i}}}"),
    "bytes": (lambda i: b"\xff", lambda i: "b'\\xff'"),
    "nothing": (lambda i: None, lambda i: None),
    "surrogate": (lambda i: ["\ud800"], lambda i: ["?"]),
}  # fmt: skip


def plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and np.isnan(value) else value


@pytest.mark.parametrize("options", [{"surplus": "carry"}, {"dynamic_sampling": False}], ids=str)
def test_what_is_logged_is_in_checkpoint_and_table(tmp_path, options):
    def reward(completion_ids, log_extra, **kwargs):
        for name, (make, _) in VALUES.items():
            log_extra(name, [make(number) for number in range(len(completion_ids))])
        return first_token_reward(completion_ids)

    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "log_completions": True, **options}
    trainer = make_trainer(tmp_path / "a", reward, **options)
    trainer.train()
    table = pd.read_parquet(tmp_path / "a" / "completions" / "completions_00001.parquet")
    assert len(table) == 8
    for name, (_, expected) in VALUES.items():
        # Rounds of 28 completions, of which 8 train; without dynamic sampling the 8 of the batch.
        values, allowed = [plain(value) for value in table[name]], [expected(number) for number in range(28)]
        assert all(value in allowed for value in values), name
        if not trainer.args.dynamic_sampling:
            assert values == allowed[:8], name
    state = read_state(tmp_path / "a" / "checkpoint-1", "rank0")
    rollouts = state["parts"]["carried"]["rollouts"] if trainer.args.dynamic_sampling else []
    assert all(rollout["extra_logs"].keys() == VALUES.keys() for _, rollout in rollouts)
    resumed = make_trainer(tmp_path / "b", reward, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    assert resumed.state.log_history[-2]["loss"] == trainer.state.log_history[-2]["loss"]


@pytest.mark.parametrize("options", [{}, {"dynamic_sampling": False}], ids=str)
def test_columns_that_are_not_logged_every_time_stay_beside_their_completions(tmp_path, options):
    calls = []

    def reward(completion_ids, log_extra, **kwargs):
        calls.append(None)
        texts = [str(ids) for ids in completion_ids]
        log_extra("always", texts)
        log_extra("late" if len(calls) > 2 else "early", texts)
        return first_token_reward(completion_ids)

    # One call of the reward function a batch.
    options = {"max_generation_rounds": 1, "refill_confidence": 0.99, **options}
    make_trainer(tmp_path, reward, max_steps=4, log_completions=True, **options).train()
    assert len(calls) == 4
    for step in range(1, 5):
        table = pd.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        logged, other = ("late", "early") if step > 2 else ("early", "late")
        assert list(table[logged]) == list(table["always"])
        assert other not in table or table[other].isna().all()


@pytest.mark.parametrize("options", [{}, {"dynamic_sampling": False}], ids=str)
def test_column_with_another_number_of_values_is_left_out_and_named_once(tmp_path, caplog, options):
    def reward(completion_ids, log_extra, **kwargs):
        log_extra("seen", [str(ids) for ids in completion_ids] * 2)
        return first_token_reward(completion_ids)

    make_trainer(tmp_path, reward, max_steps=2, log_completions=True, **options).train()
    assert "seen" not in pd.read_parquet(tmp_path / "completions" / "completions_00002.parquet")
    assert caplog.text.count("log_extra got") == 1
    num_completions = 8 if options else 28
    assert f"{2 * num_completions} values for the column 'seen', but there are {num_completions}" in caplog.text


@pytest.mark.parametrize(
    ("before", "added", "after"),
    [
        ({"a": [1, 2]}, {"a": [3, 4]}, {"a": [3, 4]}),
        ({"a": [1, 2]}, {}, {"a": [None, None]}),
        ({"a": [1, 2]}, {"b": [3, 4]}, {"a": [None, None], "b": [3, 4]}),
        ({}, {"a": [3, 4]}, {"a": [3, 4]}),
        # A table of two, to which one is added.
        ({"a": [1, 2]}, {"b": [3]}, {"a": [2, None], "b": [None, 3]}),
    ],
)
def test_table_has_a_value_beside_each_completion(before, added, after):
    def table(columns):
        return {name: deque(values, maxlen=2) for name, values in columns.items()}

    logs = {"prompt": deque(["x", "y"], maxlen=2), "extra": defaultdict(lambda: deque(maxlen=2), table(before))}
    with columns_in_step(logs):
        num_added = len(next(iter(added.values()), "two"[:2]))
        logs["prompt"].extend(range(num_added))
        for name, values in added.items():
            logs["extra"][name].extend(values)
    assert {name: list(values) for name, values in logs["extra"].items()} == after
    assert list(logs["prompt"]) == ["x", "y", *range(num_added)][-2:]


@pytest.mark.parametrize("options", [{}, {"dynamic_sampling": False}], ids=str)
@pytest.mark.parametrize(("value", "logged"), [(np.float32(0.5), 0.5), (torch.tensor(2), 2.0), (None, None), ("x", None), ([1.0], None)])  # fmt: skip
def test_metric_is_a_number_or_left_out(tmp_path, caplog, value, logged, options):
    def reward(completion_ids, log_metric, **kwargs):
        log_metric("mine", value)
        return first_token_reward(completion_ids)

    trainer = make_trainer(
        tmp_path, reward, max_steps=2, save_strategy="steps", save_steps=1, eval_dataset=numbered_prompts(8),
        per_device_eval_batch_size=8, **options
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[0].get("mine") == logged
    assert trainer.evaluate().get("eval_mine") == logged
    assert caplog.text.count("log_metric got") == (logged is None)
