"""What a run does before it trains, and `trl-dapo train` from data to results."""

import json

import pytest
from datasets import Dataset
from test_command_line import model_folder  # noqa: F401
from trl import ModelConfig

from trl_dapo import DAPOConfig
from trl_dapo.command_line import main
from trl_dapo.command_line.training_run import TrainingScriptArguments, load_problems, use_model


def write(path, golds):
    rows = [{"question": f"w{number}", "answer": f"#### {gold}"} for number, gold in enumerate(golds)]
    Dataset.from_list(rows).to_json(path)
    return str(path)


def test_problems_come_checked_and_without_their_duplicates(tmp_path):
    rows = [{"question": "w8", "answer": "1"}, {"question": "w9", "answer": "2"}, {"question": "w9", "answer": "2"}]
    Dataset.from_list(rows).to_json(tmp_path / "train.jsonl")
    write(tmp_path / "test.jsonl", [5, 6, 7])
    options = {"dataset_name": str(tmp_path), "dataset_test_split": "test", "num_eval_problems": 2}
    train, held_out, _ = load_problems(TrainingScriptArguments(num_shots=1, drop_duplicates=True, **options))
    assert [[turn["content"] for turn in prompt] for prompt in train["prompt"]] == [["w8", "1", "w9"]]
    assert held_out["solution"] == ["#### 5", "#### 6"]
    assert len(load_problems(TrainingScriptArguments(**options)).train) == 3


def test_unusable_rows_are_refused_by_their_number_in_the_file(tmp_path):
    rows = [{"question": "w1", "answer": "1"}, {"question": "w2", "answer": "2"}, {"question": " ", "answer": "2"}]
    Dataset.from_list(rows).to_json(tmp_path / "train.jsonl")
    write(tmp_path / "test.jsonl", [5])
    with pytest.raises(ValueError, match=r"The training dataset has 1 unusable rows.*\n.*empty prompt\n    row 2"):
        load_problems(TrainingScriptArguments(dataset_name=str(tmp_path), num_shots=1))
    with pytest.raises(ValueError, match="--num_shots is 3, but must be between 0 and 2"):
        load_problems(TrainingScriptArguments(dataset_name=str(tmp_path), num_shots=3))


def test_model_is_named_with_its_revision_and_what_the_configuration_says_wins(tmp_path):
    args = DAPOConfig(
        output_dir=str(tmp_path), use_cpu=True, model_init_kwargs={"dtype": "bfloat16", "use_cache": False}
    )
    model_args = ModelConfig(model_name_or_path=str(tmp_path), model_revision="v2", dtype="float32")
    assert use_model(args, model_args) == str(tmp_path)
    expected = {"revision": "v2", "dtype": "bfloat16", "attn_implementation": None, "use_cache": False}
    assert args.model_init_kwargs == expected
    with pytest.raises(ValueError, match="--model_name_or_path is not set"):
        use_model(args, ModelConfig())


@pytest.mark.slow
def test_trained_model_is_evaluated_through_the_entry_point(model_folder, tmp_path, capsys):  # noqa: F811
    data = write(tmp_path / "rows.jsonl", range(8))
    out = tmp_path / "out"
    options = {"model_name_or_path": model_folder, "dataset_name": data, "output_dir": out, "max_steps": 1}
    options |= {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "use_cpu": True}
    options |= {"bf16": False, "gradient_checkpointing": False, "report_to": "none", "eval_on_start": True}
    options |= {"per_device_eval_batch_size": 8, "num_generations_eval": 4, "max_generation_rounds": 2}
    options |= {"compare_grpo": True}
    main(["train", *(str(part) for name, value in options.items() for part in (f"--{name}", value))])
    results = json.loads((out / "results.json").read_text())
    for folder, name in ((out, "accuracy_after"), (out / "grpo", "grpo_accuracy_after")):
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        evaluations = [entry["eval_rewards/accuracy_reward/mean"] for entry in history if "eval_loss" in entry]
        assert results[name] == evaluations[-1]
    state = capsys.readouterr().out
    assert "eval_avg@4" in state
    assert "eval_maj@4" in state
    evaluation = ["--k", "2", "--max_completion_length", "8", "--output_dir", str(tmp_path / "figures")]
    main(["eval", "--model_name_or_path", str(out), "--dataset_name", data, *evaluation])
    assert "avg@2" in capsys.readouterr().out
