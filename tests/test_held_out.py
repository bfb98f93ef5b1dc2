"""What measures a model does not train it: held-out problems are cut, compared and counted by prompt."""

import pytest
from datasets import Dataset, DatasetDict
from test_trainer import make_trainer
from tiny import numbered_prompts

from trl_dapo.command_line.training_run import TrainingScriptArguments, load_problems
from trl_dapo.data.held_out import prompt_key
from trl_dapo.data.problems import SplitNotFoundError, load_rows
from trl_dapo.publishing.card import render_card
from trl_dapo.publishing.facts import RunFacts


def rows(questions):
    return Dataset.from_list([{"question": text, "answer": f"#### {number}"} for number, text in enumerate(questions)])


def questions(problems):
    return [" ".join(prompt[-1]["content"].casefold().split()) for prompt in problems["prompt"]]


def load(name, **options):
    return load_problems(TrainingScriptArguments(dataset_name=str(name), **options))


def is_whole_split(loaded, names):
    """Whether no prompt is in both parts, and each is in one."""
    train, held_out = set(questions(loaded.train)), set(questions(loaded.held_out))
    return not train & held_out and train | held_out == names


def test_problems_of_one_file_are_cut_by_prompt_so_that_no_duplicate_leaks(tmp_path):
    # 30 prompts, each once as it is and once written otherwise.
    texts = [text for number in range(30) for text in (f"What is w{number}?", f"what  IS w{number}?")]
    rows(texts).to_json(tmp_path / "rows.jsonl")
    loaded = load(tmp_path / "rows.jsonl")
    assert is_whole_split(loaded, {f"what is w{number}?" for number in range(30)})
    # A tenth of the prompts, and both rows of each are out of training.
    assert (len(loaded.held_out), len(loaded.train), loaded.split.num_left_out) == (3, 54, 6)
    file = load_rows(str(tmp_path / "rows.jsonl"), "train")
    assert [file[row]["answer"] for row in loaded.split.rows] == list(loaded.held_out["solution"])
    assert load(tmp_path / "rows.jsonl").split == loaded.split
    assert len(load(tmp_path / "rows.jsonl", num_eval_problems=2).held_out) == 2


def test_same_data_under_another_name_or_split_are_not_measured_on(tmp_path):
    names = {f"q{number}" for number in range(20)}
    rows(sorted(names)).to_json(tmp_path / "train.jsonl")
    file = tmp_path / "train.jsonl"
    (tmp_path / "link.jsonl").symlink_to(file)
    for options in (
        {"dataset_name": str(file), "eval_dataset_name": str(tmp_path / "link.jsonl")},
        {"dataset_name": str(tmp_path), "dataset_test_split": "train"},
        {"dataset_name": str(tmp_path)},  # there is no test.jsonl
    ):
        loaded = load_problems(TrainingScriptArguments(**options))
        assert loaded.split.is_cut_from_training
        assert is_whole_split(loaded, names)
    with pytest.raises(SplitNotFoundError, match="validation"):
        load(tmp_path, dataset_test_split="validation")
    DatasetDict(train=rows(names)).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved").split.is_cut_from_training


def test_hub_dataset_without_a_test_split_is_cut(monkeypatch):
    def load_dataset(path, name, split):
        if split != "train":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")
        return rows([f"q{number}" for number in range(20)])

    monkeypatch.setattr("trl_dapo.data.problems.require_local_or_hub", lambda *args: None)
    monkeypatch.setattr("trl_dapo.data.problems.load_dataset", load_dataset)
    loaded = load("someone/problems")
    assert loaded.split.is_cut_from_training
    assert is_whole_split(loaded, {f"q{number}" for number in range(20)})


def test_prompts_in_both_parts_are_counted_and_do_not_train(tmp_path):
    rows(["q1", "q2", "Q2 ", "q3", "q4"]).to_json(tmp_path / "train.jsonl")
    rows(["q2", "q4", "q9"]).to_json(tmp_path / "test.jsonl")
    loaded = load(tmp_path)
    assert questions(loaded.train) == ["q1", "q3"]
    assert questions(loaded.held_out) == ["q2", "q4", "q9"]
    assert (loaded.split.num_left_out, loaded.split.is_cut_from_training) == (3, False)
    assert "3 training rows with the same prompts were left out" in loaded.split.describe()
    # A held-out problem that every prompt shows with its answer is not measured.
    rows(["q9", "q2", "q1", "q5"]).to_json(tmp_path / "train.jsonl")
    assert questions(load(tmp_path, num_shots=1).held_out) == ["q2", "q4"]


def test_nothing_left_to_train_on_is_refused(tmp_path):
    rows(["q1", "q2"]).to_json(tmp_path / "train.jsonl")
    rows(["q2", "q1", "q3"]).to_json(tmp_path / "test.jsonl")
    with pytest.raises(ValueError, match="nothing is left to train on"):
        load(tmp_path)
    rows(["q1", "Q1"]).to_json(tmp_path / "one.jsonl")
    with pytest.raises(ValueError, match="has 1 different prompts, which is too few"):
        load(tmp_path / "one.jsonl")


def test_trainer_says_which_prompts_it_also_trains_and_their_metrics_are_no_result(tmp_path, capsys):
    shared = numbered_prompts(56).select(range(46, 56))  # 4 of them among the 50 that train
    options = {"eval_on_start": True, "max_steps": 0, "per_device_eval_batch_size": 8, "save_strategy": "steps"}
    trainer = make_trainer(tmp_path, eval_dataset=shared, **options)
    trainer.train()
    assert "! 4 prompts of the evaluation dataset are in the training data too" in capsys.readouterr().out
    facts = RunFacts.read(tmp_path)
    assert facts.num_shared_prompts == {"": 4}
    card = render_card(facts)
    assert card.data.eval_results is None
    assert "4 prompts are in the training data too" in str(card)
    assert facts.held_out is None


def test_quickstart_measures_no_prompt_that_it_trains(monkeypatch, tmp_path):
    from trl_dapo.recipes import word_problems

    monkeypatch.setattr(word_problems, "prepare_tiny_model", lambda *args, **kwargs: None)
    from trl_dapo import DAPOConfig

    args = DAPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    script = word_problems.TinyTaskArguments()
    script.num_eval_problems = 256
    _, train, held_out = word_problems.prepare_tiny_task(script, args)
    assert not {prompt_key(prompt) for prompt in train["prompt"]} & {prompt_key(p) for p in held_out["prompt"]}
    assert len(held_out) == 256
