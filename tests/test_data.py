import json
import time

import pytest
from datasets import Dataset
from huggingface_hub import constants

from trl_dapo import HubUnreachableError
from trl_dapo.data.hub_access import require_local_or_hub
from trl_dapo.data.problems import as_problems, load_rows


ROWS = [
    {"question": f"What is {n} + 1?", "answer": f"{n}+1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(4)
]


@pytest.fixture
def unreachable_hub(monkeypatch):
    """A Hub address at which nothing listens."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "trl_dapo.data.hub_access.HfApi", lambda: __import__("huggingface_hub").HfApi("http://127.0.0.1:9")
    )


def write_jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_local_jsonl_and_parquet_load(tmp_path):
    assert load_rows(str(write_jsonl(tmp_path / "rows.jsonl")), "train").to_list() == ROWS
    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet"), "test").to_list() == ROWS


def test_folder_loads_by_split_in_every_layout(tmp_path):
    for layout in ("plain", "hub", "saved"):
        (tmp_path / layout).mkdir()
    write_jsonl(tmp_path / "plain" / "train.jsonl")
    (tmp_path / "hub" / "data").mkdir()
    Dataset.from_list(ROWS[:2]).to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet")
    Dataset.from_list(ROWS[2:]).to_parquet(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for layout in ("plain", "hub", "saved"):
        assert load_rows(str(tmp_path / layout), "train").to_list() == ROWS


def test_missing_split_says_what_is_there(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    with pytest.raises(FileNotFoundError, match=r"holds no split 'test'.*found are \['train.jsonl'\]"):
        load_rows(str(tmp_path), "test")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere.jsonl"])
def test_path_that_does_not_exist_is_no_hub_id(name):
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        load_rows(name, "train")


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_unreachable_hub_fails_in_seconds_and_says_what_to_do(unreachable_hub, repo_type):
    start = time.monotonic()
    with pytest.raises(
        HubUnreachableError, match=r"Pass a local file or folder with `--option`.*trl-dapo train --config quickstart"
    ):
        require_local_or_hub("some/name", repo_type, "--option")
    # The timeout is 5 seconds, the libraries' own retries last 24 and more.
    assert time.monotonic() - start < 15


def test_gsm8k_rows_become_problems():
    problems = as_problems(
        Dataset.from_list(ROWS), template=r"{question} Answer in \boxed{}.", system_prompt="Be brief."
    )
    assert problems[1]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": r"What is 1 + 1? Answer in \boxed{}."},
    ]
    assert problems[1]["solution"] == ROWS[1]["answer"]


def test_shots_come_before_the_question_without_calculator_notes():
    rows = Dataset.from_list(ROWS)
    problems = as_problems(rows.select([2]), shots=rows.select([0, 1]))
    assert [turn["role"] for turn in problems[0]["prompt"]] == ["user", "assistant", "user", "assistant", "user"]
    assert problems[0]["prompt"][1]["content"] == "0+1 = 1\n#### 1"


def test_dapo_math_rows_become_problems(shared_data):
    problems = as_problems(load_rows(str(shared_data / "aime-2024.parquet"), "train"))
    assert len(problems) == 960
    assert problems[0]["prompt"][0]["role"] == "user"
    assert problems[0]["solution"] == "540"


def test_plain_prompts_become_conversations():
    problems = as_problems(Dataset.from_list([{"prompt": "1 + 1?", "solution": 2}]))
    assert problems[0] == {"prompt": [{"role": "user", "content": "1 + 1?"}], "solution": "2"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a"}], {}, r"has the columns \['text'\], but must have 'prompt' and 'solution'"),
        ([{"prompt": "a"}], {}, r"has the columns \['prompt'\]"),
        ([], {}, "has no rows"),
        ([{"prompt": "a", "solution": "b"}], {"template": "Solve!"}, r"is 'Solve!', but must contain \{question\}"),
    ],
)
def test_unusable_rows_are_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        as_problems(Dataset.from_list(rows), **options)


QUESTION = "Find $x$ with $x + 1 = 3$."
DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    f"$Answer (without quotes) where $Answer is the answer to the problem.\n\n{QUESTION}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
DAPO_ROW = {
    "prompt": [{"role": "user", "content": DAPO_PROMPT}],
    "reward_model": {"ground_truth": "2", "style": "rule"},
}


def test_dapo_template_is_the_prompt_of_dapos_data():
    problems = as_problems(Dataset.from_list([{"prompt": QUESTION, "solution": "2"}]), template="dapo")
    assert problems[0]["prompt"] == DAPO_ROW["prompt"]


def test_dapo_prompt_stays_unless_another_template_is_asked_for():
    rows = Dataset.from_list([DAPO_ROW])
    assert as_problems(rows)[0]["prompt"] == DAPO_ROW["prompt"]
    boxed = as_problems(rows, template="boxed", system_prompt="Be brief.")[0]["prompt"]
    assert boxed == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": QUESTION + "\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        },
    ]
    other = [{"role": "user", "content": "Hello"}]
    assert as_problems(Dataset.from_list([DAPO_ROW | {"prompt": other}]), template="boxed")[0]["prompt"] == other


def test_exact_duplicates_are_dropped_on_request_only():
    other_gold = DAPO_ROW | {"reward_model": {"ground_truth": "3", "style": "rule"}}
    rows = Dataset.from_list([DAPO_ROW, DAPO_ROW, other_gold, DAPO_ROW])
    assert len(as_problems(rows)) == 4
    assert as_problems(rows, drop_duplicates=True)["solution"] == ["2", "3"]


def test_aime_2024_has_thirty_problems(shared_data):
    rows = load_rows(str(shared_data / "aime-2024.parquet"), "train")
    problems = as_problems(rows, template="boxed", drop_duplicates=True)
    assert len(problems) == 30
    raw = {row["extra_info"]["raw_problem"] for row in rows}
    suffix = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert {problem["prompt"][0]["content"].removesuffix(suffix) for problem in problems} == raw


def test_missing_question_and_gold_become_empty_ones():
    rows = [{"question": None, "answer": "1"}, {"question": "1 + 1?", "answer": None}]
    problems = as_problems(Dataset.from_list(rows), template="boxed")
    assert problems["prompt"][0] == []
    assert problems["solution"] == ["1", ""]


def test_question_that_is_no_text_is_refused_by_row():
    with pytest.raises(ValueError, match=r"question of row 0 is 5 \(int\), but must be a text or a conversation"):
        as_problems(Dataset.from_list([{"question": 5, "answer": "1"}]))
