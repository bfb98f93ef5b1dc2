"""The reward functions, as a trainer calls them."""

import json
import logging
import math
import pickle
import subprocess
import sys
from typing import Any

import pytest

from trl_dapo.command_line import main
from trl_dapo.grading.pool import GradingPool
from trl_dapo.rewards import REWARDS, AccuracyReward, SoftOverlongPunishment, accuracy, accuracy_reward, get_reward
from trl_dapo.rewards.accuracy import completion_text


def test_accuracy_is_one_for_a_correct_answer_and_zero_otherwise():
    completions = [r"\boxed{4}", r"\boxed{5}", "no idea what it is", "Answer: " + "1+" * 600]
    assert accuracy_reward(completions, solution=["4"] * 4) == [1.0, 0.0, 0.0, 0.0]


def test_a_bad_gold_gives_none_and_leaves_the_others_alone():
    assert accuracy_reward(["Answer: 4", "Answer: 4"], solution=[r"\frac{4}{", "4"]) == [None, 1.0]


def test_a_missing_gold_gives_none_and_an_integer_gold_is_read():
    assert accuracy_reward(["Answer: 4", "Answer: 4"], solution=[None, 4]) == [None, 1.0]  # type: ignore[list-item]


def test_the_last_assistant_message_counts():
    completion = [
        {"role": "assistant", "content": "Answer: 3"},
        {"role": "tool", "content": "Answer: 5"},
        {"role": "assistant", "content": "Answer: 4"},
        {"role": "user", "content": "Answer: 5"},
    ]
    assert accuracy_reward([completion], solution=["4"]) == [1.0]


def test_text_parts_are_joined():
    content = [{"type": "text", "text": "\\boxed{"}, {"type": "image"}, {"type": "text", "text": "4}"}]
    assert completion_text([{"role": "assistant", "content": content}]) == r"\boxed{4}"


@pytest.mark.parametrize(
    "completion", [[], [{"role": "assistant", "content": None}], [{"role": "user", "content": "4"}]]
)
def test_a_completion_without_assistant_text_scores_zero(completion: list[dict[str, Any]]):
    assert accuracy_reward([completion], solution=["4"]) == [0.0]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (None, 0.0),
        ({"role": "assistant", "content": "Answer: 4"}, 1.0),
        ({"content": "Answer: 5"}, 0.0),
        (["Ans", "wer: 4"], 1.0),
        ([{"type": "text", "text": "Answer: 4"}], 1.0),
        ([{"role": "tool", "content": "4"}], 0.0),
        ([{"role": "assistant", "content": "Answer: 4"}, {"role": "tool", "content": "Answer: 5"}], 1.0),
        ([{"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "4"}}]}], 0.0),
        ([{"role": "assistant", "reasoning_content": "Answer: 4", "content": ""}], 0.0),
        ([{"role": "assistant", "reasoning_content": "Answer: 5", "content": "Answer: 4"}], 1.0),
        ([{"role": "assistant", "content": [{"type": "reasoning", "text": "Answer: 5"}, "Answer: 4"]}], 1.0),
        (({"role": "assistant", "content": "Answer: 4"},), 1.0),
        ([], 0.0),
        ({}, 0.0),
    ],
)
def test_a_completion_of_any_shape_is_graded_by_what_the_model_says(completion: object, reward: float):
    assert accuracy_reward([completion], solution=["4"]) == [reward]


@pytest.mark.parametrize(
    "completion", [4, 4.0, b"Answer: 4", [4], {"content": 4}, [{"role": "assistant", "content": {}}]]
)
def test_a_completion_that_is_no_text_is_refused_with_its_row(completion: object):
    with pytest.raises(TypeError, match=r"`completions\[1\]` cannot be graded: .* is of type"):
        accuracy_reward(["Answer: 4", completion], solution=["4", "4"])


def test_a_gold_of_several_elements_is_their_list_and_one_of_a_wrong_type_is_refused():
    assert accuracy_reward([r"\boxed{3, 2}", r"\boxed{2}"], solution=[["2", "3"], ["2"]]) == [1.0, 1.0]
    assert accuracy_reward([r"\boxed{nan}"], solution=[math.nan]) == [None]
    with pytest.raises(TypeError, match=r"`solution\[1\]` is of type dict"):
        accuracy_reward(["4", "4"], solution=["4", {"answer": "4"}])


def test_the_trainers_other_columns_are_ignored():
    assert accuracy_reward(["4"], solution=["4"], prompts=["2 + 2"], completion_ids=[[1]], trainer_state=None) == [1.0]


def test_extras_are_logged_for_every_row():
    columns: dict[str, list[Any]] = {}
    accuracy_reward(
        ["Answer: 4", "Answer: 5", "who knows what"], solution=["4", "4", "4"], log_extra=columns.__setitem__
    )
    assert columns == {
        "solution": ["4", "4", "4"],
        "answer": ["4", "5", None],
        "grade": ["correct", "wrong", "no_answer"],
    }


def test_fractions_of_ungraded_completions_are_logged():
    metrics: dict[str, float] = {}
    completions = ["Answer: 4", "who knows what", "Answer: 4", "Answer: " + "1+" * 600]
    accuracy_reward(completions, solution=["4", "4", "", "4"], log_metric=metrics.__setitem__)
    assert 0 < metrics.pop("grading/seconds") < 60
    assert metrics == {
        "grading/frac_gave_up": 0.25,
        "grading/frac_no_answer": 0.25,
        "grading/frac_bad_gold": 0.25,
        "grading/workers_restarted": 0.0,
    }


def test_a_worker_lost_to_a_limit_is_counted(monkeypatch: pytest.MonkeyPatch):
    metrics: dict[str, float] = {}
    with GradingPool(num_workers=1, cpu_seconds=0.3) as pool:
        monkeypatch.setattr(accuracy, "shared_pool", lambda: pool)
        completions = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{\sqrt{16}}"]
        assert accuracy_reward(completions, solution=["4", "4"], log_metric=metrics.__setitem__) == [0.0, 1.0]
    assert (metrics["grading/workers_restarted"], metrics["grading/frac_gave_up"]) == (1.0, 0.5)


def test_a_signed_reward_is_minus_one_where_the_other_is_zero():
    completions = [r"\boxed{4}", r"\boxed{5}", "no idea what it is", "Answer: 4"]
    solution = ["4", "4", "4", r"\frac{4}{"]
    assert accuracy_reward(completions, solution) == [1.0, 0.0, 0.0, None]
    assert AccuracyReward()(completions, solution) == [1.0, -1.0, -1.0, None]
    assert get_reward("signed_accuracy_reward")(completions, solution) == [1.0, -1.0, -1.0, None]


def test_a_signed_reward_survives_pickling_with_its_values_and_its_name():
    reward = pickle.loads(pickle.dumps(AccuracyReward(correct=2.0, wrong=0.5, name="mine")))
    assert reward(["4", "5"], solution=["4", "4"]) == [2.0, 0.5]
    assert reward.__name__ == "mine"
    assert AccuracyReward().__name__ == "accuracy_reward"


@pytest.mark.parametrize("wrong", [1.0, 2.0, math.nan])
def test_a_wrong_answer_must_earn_less_than_a_correct_one(wrong: float):
    with pytest.raises(ValueError, match="`wrong` is"):
        AccuracyReward(correct=1.0, wrong=wrong)


def test_a_bad_gold_is_warned_about_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accuracy, "_warned_golds", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            accuracy_reward(["Answer: 4"] * 2, solution=[r"\frac{once}{"] * 2)
    assert len(caplog.records) == 1
    assert "once" in caplog.text
    assert "Fix or drop the row" in caplog.text


def test_warnings_about_bad_golds_are_bounded(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accuracy, "_warned_golds", set())
    golds = [rf"\frac{{{n}}}{{" for n in range(50)]
    with caplog.at_level(logging.WARNING):
        accuracy_reward(["Answer: 4"] * 50, solution=golds)
    assert len(caplog.records) == accuracy.MAX_GOLD_WARNINGS + 1


def test_a_length_mismatch_is_refused():
    with pytest.raises(ValueError, match="longer"):
        accuracy_reward(["4", "4"], solution=["4"])


@pytest.mark.parametrize(
    ("num_tokens", "punishment"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0)]
)
def test_the_punishment_follows_equation_13(num_tokens: int, punishment: float):
    assert SoftOverlongPunishment(max_completion_length=100, cache=20)([[7] * num_tokens]) == [punishment]


def test_the_factor_scales_the_punishment():
    punish = SoftOverlongPunishment(max_completion_length=100, cache=20, factor=0.5)
    assert punish(completion_ids=[[7] * 90, [7] * 200], solution=["4", "4"]) == [-0.25, -0.5]


def test_a_cache_of_the_whole_length_punishes_from_the_first_token():
    assert SoftOverlongPunishment(max_completion_length=4, cache=4)([[], [7], [7] * 4]) == [0.0, -0.25, -1.0]


def test_a_punishment_of_factor_zero_is_zero():
    assert SoftOverlongPunishment(max_completion_length=4, cache=4, factor=0.0)([[7] * 9]) == [0.0]


def test_the_punishment_survives_pickling():
    punish = pickle.loads(pickle.dumps(SoftOverlongPunishment(max_completion_length=100, cache=20, factor=2.0)))
    assert punish([[7] * 90]) == [-1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_completion_length": 0, "cache": 1}, "`max_completion_length` is 0"),
        ({"max_completion_length": 100, "cache": 0}, "`cache` is 0, but must be from 1 to"),
        ({"max_completion_length": 100, "cache": 101}, r"`cache` is 101, but must be from 1 to .*\(100\)"),
        ({"max_completion_length": 100, "cache": 20, "factor": -1.0}, "`factor` is -1.0"),
        ({"max_completion_length": 100, "cache": 20, "factor": math.nan}, "`factor` is nan"),
    ],
)
def test_a_punishment_out_of_range_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SoftOverlongPunishment(**arguments)


def test_rewards_have_the_names_that_metrics_use():
    punish = SoftOverlongPunishment(max_completion_length=100, cache=20)
    assert (accuracy_reward.__name__, punish.__name__) == ("accuracy_reward", "soft_overlong_punishment")


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_registered_reward_is_found_by_its_name(name: str):
    assert get_reward(name).__name__ == name


def test_an_unknown_reward_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"Did you mean 'accuracy_reward'.*think_format_reward"):
        get_reward("acuracy_reward")


OWN_REWARDS = """
import functools
LIMIT = 10
def brevity(completions, **kwargs):
    return [float(len(text) < LIMIT) for text in completions]
class Brevity:
    def __call__(self, completions, **kwargs):
        return [0.0] * len(completions)
nameless = functools.partial(brevity)
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_a_user.py").write_text(OWN_REWARDS)
    (tmp_path / "rewards_that_need_more.py").write_text("import a_module_that_nobody_has")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    for name in ("rewards_of_a_user", "rewards_that_need_more"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("own_module")
def test_a_reward_of_the_current_directory_is_found_by_its_dotted_path():
    reward = get_reward("rewards_of_a_user.brevity")
    assert reward(["short", "longer than ten"]) == [1.0, 0.0]
    assert reward.__name__ == "brevity"


def test_an_installed_reward_is_found_by_its_dotted_path():
    assert get_reward("trl_dapo.rewards.accuracy.accuracy_reward") is accuracy_reward


@pytest.mark.usefixtures("own_module")
def test_a_file_of_the_current_directory_does_not_hide_an_installed_module(tmp_path):
    (tmp_path / "json.py").write_text("def dumps(): raise AssertionError")
    assert get_reward("json.dumps") is json.dumps


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reward_of_a_user.brevity", r"no module 'reward_of_a_user', neither .* Did you mean 'rewards_of_a_user'\?"),
        ("rewards_of_a_user.sub.brevity", r"no module 'rewards_of_a_user\.sub'"),
        ("rewards_of_a_user.brevty", r"rewards_of_a_user\.py\) has no 'brevty'\. Did you mean 'brevity'\?"),
        ("rewards_of_a_user.LIMIT", "is of type `int` and cannot be called"),
        ("rewards_of_a_user.Brevity", r"is a class.* `reward = Brevity\(\.\.\.\)`"),
        ("rewards_of_a_user.nameless", "has no `__name__`"),
        ("rewards_of_a_user.py", "with a dot between them"),
        ("rewards_of_a_user:brevity", "with a dot between them"),
        ("./rewards_of_a_user.brevity", "with a dot between them"),
        ("brevity", "For a function of your own, write module.function"),
    ],
)
def test_a_wrong_dotted_path_is_refused_with_what_is_wrong(name, message):
    with pytest.raises(ValueError, match=message):
        get_reward(name)


@pytest.mark.usefixtures("own_module")
def test_what_a_module_raises_while_it_is_imported_is_not_changed():
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        get_reward("rewards_that_need_more.brevity")


def test_a_wrong_reward_name_ends_the_command_before_data_and_model_are_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--output_dir", "out", "--use_cpu", "true", "--reward_names", "no_such_module_here.brevity"]
    with pytest.raises(SystemExit, match="there is no module 'no_such_module_here'"):
        main(["train", *options, "--dataset_name", "no/data", "--model_name_or_path", "no/model"])


def test_rewards_import_without_torch_trl_and_sympy():
    code = "import sys, trl_dapo.rewards; assert not {'torch', 'trl', 'sympy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
