import pytest
from test_trainer import make_trainer, rare_reward

from trl_dapo.report.group_table import one_of_each


def group(fate, verdict="informative"):
    return [{"fate": fate, "verdict": verdict}]


@pytest.mark.parametrize(
    ("most", "expected"), [(0, []), (2, [0, 2]), (3, [0, 2, 4]), (4, [0, 1, 2, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_table_has_one_of_each_fate_before_a_second(most, expected):
    groups = [
        group("trained"),
        group("trained"),
        group("filtered", "all_wrong"),
        group("trained"),
        group("filtered", "all_correct"),
    ]
    assert one_of_each(groups, most) == [groups[number] for number in expected]


def test_log_completions_prints_groups_with_what_became_of_them(tmp_path, capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    trainer = make_trainer(tmp_path, rare_reward, max_steps=1, max_generation_rounds=50, log_completions=True)
    trainer.train()
    logs, printed = trainer.state.log_history[0], capsys.readouterr().out
    sampled = int(logs["dapo/prompts_drawn"])
    assert f"Step 0: {sampled} groups sampled (2 trained" in printed
    assert f"{round(logs['dapo/frac_all_wrong'] * sampled)} all wrong" in printed
    assert "Advantage" in printed  # TRL's own table


def test_markup_in_a_completion_is_shown_and_not_obeyed(tmp_path, capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "250")
    trainer = make_trainer(
        tmp_path, max_steps=1, num_groups_to_log=4, log_completions=True, num_completions_to_print=4
    )
    row = {"position": 0, "fate": "trained", "verdict": "informative", "prompt": "[/bold][red]x", "solution": None}
    row |= {
        "filter_reward": "first_token_reward",
        "rewards/first_token_reward": None,
        "length": 3,
        "completion": "[link=file:///etc/passwd]here[/link]",
    }
    trainer.recorder.latest = [row]
    trainer.recorder.latest_facts = {"step": 0, "groups": {"[blink]": 1}}
    trainer.log({"loss": 0.0})
    printed = capsys.readouterr().out
    assert "[/bold][red]x" in printed
    assert "[link=file:///etc/passwd]here[/link]" in printed
