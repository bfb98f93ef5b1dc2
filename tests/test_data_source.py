"""Where data came from, as it is told to others."""

from datasets import Dataset, NamedSplit

from trl_dapo.data.problems import as_problems
from trl_dapo.data.source import DataSource, is_hub_id


REVISION = "e53f048856ff4f594e959d75785d2c2d37b678ee"


def test_dataset_from_the_hub_says_so_through_what_is_done_to_it():
    rows = Dataset.from_list([{"question": "1 + 1?", "answer": "#### 2"}] * 3, split=NamedSplit("train"))
    # What `load_dataset` records of a file of the Hub.
    file = f"hf://datasets/openai/gsm8k@{REVISION}/main/train-00000-of-00001.parquet"
    rows.info.download_checksums = {file: {"num_bytes": 1, "checksum": None}}
    rows.info.config_name = "main"
    problems = as_problems(rows, system_prompt="Think.").shuffle(seed=0).select(range(2))
    assert DataSource.of_dataset(problems) == DataSource("openai/gsm8k", True, "main", "train", REVISION)


def test_dataset_from_elsewhere_says_nothing():
    assert DataSource.of_dataset(Dataset.from_list([{"prompt": "a"}])) == DataSource()
    assert DataSource.of_dataset(None) == DataSource()


def test_name_that_was_given_is_a_hub_id_or_the_end_of_a_path(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert DataSource.named(str(tmp_path / "rows.jsonl"), "main", "test") == DataSource("rows.jsonl")
    assert DataSource.named(str(tmp_path), split="test") == DataSource(tmp_path.name, split="test")
    assert DataSource.named("openai/gsm8k", "main", "test") == DataSource("openai/gsm8k", True, "main", "test")
    gone = DataSource.named("/home/me/gone/rows.jsonl")
    assert gone == DataSource("rows.jsonl")


def test_hub_ids_have_at_most_one_slash_and_no_markup():
    assert [is_hub_id(name) for name in ("a/b", "b", "a/b/c", "a b", "a/b\nc", "-b", "")] == [True, True] + [False] * 5
