"""Several tasks in one dataset: each group is judged by the first filter reward that scored it."""

import json
import math

import pandas as pd
import pytest
from test_trainer import all_correct, all_wrong, make_trainer
from tiny import first_token_reward, numbered_prompts, training_arguments
from trl import TrlParser

from trl_dapo import DAPOConfig, RefillExhaustedError, TrainingStoppedError
from trl_dapo.config.dataset_checks import find_filter_columns
from trl_dapo.sampling.judge import GroupJudge, RowFacts, SampledGroup
from trl_dapo.sampling.prompt_stream import Draw


NAN = math.nan


def even_rows(completion_ids, row, **kwargs):
    """Rewards even rows; None for the others, which belong to another task."""
    rewards = first_token_reward(completion_ids)
    return [None if number % 2 else reward for number, reward in zip(row, rewards, strict=True)]


def odd_rows(completion_ids, row, **kwargs):
    return [float(ids[0] > 8) if number % 2 else None for number, ids in zip(row, completion_ids, strict=True)]


def judge(columns, *groups):
    rewards = [list(completion) for group in groups for completion in zip(*group, strict=True)]
    draws = [Draw(position, position) for position in range(len(groups))]
    return GroupJudge(columns).judge(draws, rewards, [RowFacts(1, 1, 0)] * len(rewards))


def test_group_is_judged_by_the_first_filter_reward_that_scored_it():
    groups = judge(
        [0, 1],
        ([1.0, 0.0], [1.0, 1.0]),  # both scored it: the first judges
        ([NAN, NAN], [1.0, 0.0]),  # the first did not
        ([NAN, 0.0], [1.0, 0.0]),  # one value is enough to judge
        ([NAN, NAN], [NAN, NAN]),
        ([NAN, math.inf], [0.0, 0.0]),  # infinite is no value
    )
    assert [group.filter_column for group in groups] == [0, 1, 0, 0, 1]
    assert [group.verdict.value for group in groups] == [
        "informative",
        "informative",
        "all_wrong",
        "unscorable",
        "all_wrong",
    ]
    assert groups[1].marks == [True, False]
    restored = SampledGroup.from_state_dict(json.loads(json.dumps(groups[1].state_dict())))
    assert (restored.filter_column, restored.marks) == (1, [True, False])


def test_reward_that_is_not_named_never_judges():
    (group,) = judge([0], ([NAN, NAN], [1.0, 0.0]))
    assert (group.filter_column, group.verdict.value) == (0, "unscorable")


def test_names_are_asked_in_the_order_of_the_list():
    assert find_filter_columns(["b", "a"], ["a", "b", "c"]) == [1, 0]
    with pytest.raises(
        ValueError, match=r"filter_reward is \['a', 'd'\], but must be one of the reward functions: 'a'"
    ):
        find_filter_columns(["a", "d"], ["a", "b", "c"])
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="must name each reward function once"):
            find_filter_columns(names, ["a", "b"])


@pytest.mark.parametrize("filter_reward", [None, ["odd_rows", "even_rows"]])
def test_both_tasks_train_where_each_reward_is_none_outside_its_own(tmp_path, filter_reward, capsys):
    trainer = make_trainer(
        tmp_path, [even_rows, odd_rows], filter_reward=filter_reward, max_steps=6, steps_per_generation=2,
        num_groups_to_log=64, eval_dataset=numbered_prompts(6), per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer.train()
    trained = [row for _, (rows, _, _), _ in trainer.batches for row in rows[::4]]
    assert {row % 2 for row in trained} == {0, 1}
    for _, (rows, rewards, _), _ in trainer.batches:
        for start in range(0, len(rows), 4):
            own = [values[rows[start] % 2] for values in rewards[start : start + 4]]
            assert set(own) == {0.0, 1.0}
    names = ["even_rows", "odd_rows"]
    logs = trainer.state.log_history[0]
    marks = [
        max(value for value in reward[:2] if not math.isnan(value))
        for _, matrix, _ in trainer.batches[0][0]
        for reward in matrix
    ]
    assert logs["dapo/sampled_accuracy"] == pytest.approx(sum(marks) / len(marks))
    record = pd.read_parquet(tmp_path / "rollouts")
    assert [names[row % 2] for row in record["row"]] == list(record["filter_reward"])
    order = "odd_rows, else even_rows" if filter_reward else "even_rows, else odd_rows"
    assert f"Dynamic sampling by {order}: " in capsys.readouterr().out
    marks = []
    compute = trainer.reward_calls.compute

    def compute_and_mark(*args):
        rewards = compute(*args)
        marks.extend(value for value in rewards[:, :2].flatten().tolist() if not math.isnan(value))
        return rewards

    trainer.reward_calls.compute = compute_and_mark
    metrics = trainer.evaluate()
    # Over the problems of both tasks; the first reward alone has seen half of them.
    assert len(marks) == 6 * 4
    assert metrics["eval_avg@4"] == pytest.approx(sum(marks) / len(marks))


def test_punishment_never_judges(tmp_path):
    def nothing(completion_ids, **kwargs):
        return [None] * len(completion_ids)

    trainer = make_trainer(tmp_path, [nothing, nothing], max_steps=1, max_generation_rounds=2, soft_punish_cache=8)
    assert trainer.filter_names == ["nothing", "nothing_2"]
    assert trainer.punishment.names[-1] == "soft_overlong_punishment"
    trainer.train()
    assert trainer.state.log_history[0]["dapo/frac_unscorable"] == 1.0


def test_second_reward_does_not_judge_what_the_first_has_scored(tmp_path):
    trainer = make_trainer(tmp_path, [all_wrong, first_token_reward], max_steps=1, max_generation_rounds=2)
    trainer.train()
    assert trainer.state.log_history[0]["dapo/frac_all_wrong"] == 1.0


def test_command_line_and_file_take_one_name_or_several(tmp_path):
    options = training_arguments(tmp_path)
    words = [f"--{name}={value}" for name, value in options.items()]
    for extra, expected in (
        (["--filter_reward", "a"], ["a"]),
        (["--filter_reward", "a", "b"], ["a", "b"]),
        ([], None),
    ):
        (args,) = TrlParser((DAPOConfig,)).parse_args_and_config([*words, *extra])
        assert args.filter_reward == expected
    file = tmp_path / "run.yaml"
    file.write_text("filter_reward: [a, b]\n")
    (args,) = TrlParser((DAPOConfig,)).parse_args_and_config([*words, "--config", str(file)])
    assert args.filter_reward == ["a", "b"]


def test_exhaustion_names_the_filter_and_the_reward_that_would_have_found_something(tmp_path):
    trainer = make_trainer(
        tmp_path, [all_wrong, first_token_reward], on_exhausted="error", max_generation_rounds=2, soft_punish_cache=8
    )
    with pytest.raises(RefillExhaustedError) as caught:
        trainer.train()
    rewards = [[reward[1] for reward in matrix] for _, matrix, _ in trainer.sampled_rounds]
    groups = [row[start : start + 4] for row in rewards for start in range(0, len(row), 4)]
    num_mixed = sum(0 < sum(group) < 4 for group in groups)
    assert f"Judged by all_wrong ({len(groups)} groups)." in str(caught.value)
    assert (
        f"first_token_reward differs in {num_mixed} of the {len(groups)} groups that other rewards found all alike or did "
        "not score: filter_reward='first_token_reward' would train on those." in str(caught.value)
    )
    assert "soft_overlong_punishment" not in str(caught.value)  # it always differs


def test_advice_of_the_stop_message_helps(tmp_path):
    rewards, options = [all_wrong, first_token_reward], {"max_steps": 6, "max_generation_rounds": 3}
    trainer = make_trainer(tmp_path, rewards, **options)
    with pytest.raises(TrainingStoppedError, match="filter_reward='first_token_reward' would train on those"):
        trainer.train()
    trainer = make_trainer(tmp_path / "advised", rewards, filter_reward="first_token_reward", **options)
    trainer.train()
    assert all(entry.get("dapo/exhausted", 0.0) == 0.0 for entry in trainer.state.log_history)
    assert trainer.state.global_step == 6


def test_other_rewards_that_are_alike_too_are_not_mentioned(tmp_path):
    trainer = make_trainer(tmp_path, [all_wrong, all_correct], on_exhausted="error", max_generation_rounds=2)
    with pytest.raises(RefillExhaustedError) as caught:
        trainer.train()
    assert "would train on those" not in str(caught.value)
