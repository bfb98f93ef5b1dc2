"""How a run ends: what was measured, what is saved whatever fails, and what says that it failed."""

import json
import sys

import pytest
from test_command_line import model_folder  # noqa: F401
from test_training_run import write
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer, TrainingStoppedError
from trl_dapo.command_line import main, training_run
from trl_dapo.command_line.training_run import complete_run
from trl_dapo.publishing.facts import RunFacts


METRIC = "eval_rewards/first_token_reward/mean"


def all_wrong(completion_ids, **kwargs):
    return [0.0] * len(completion_ids)


def make_trainer(folder, reward=first_token_reward, model=None, **overrides):
    options = {"per_device_eval_batch_size": 8, "max_steps": 1, "max_generation_rounds": 2}
    return DAPOTrainer(
        model=model or tiny_model(),
        reward_funcs=reward,
        args=DAPOConfig(**training_arguments(folder, **options | overrides)),
        train_dataset=numbered_prompts(20),
        eval_dataset=numbered_prompts(28).select(range(20, 28)),
        processing_class=tiny_tokenizer(),
    )


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def evaluated(trainer):
    return [entry for entry in trainer.state.log_history if METRIC in entry]


def test_accuracy_before_is_there_only_if_it_was_measured(tmp_path, capsys):
    trainer = make_trainer(tmp_path / "without", eval_strategy="steps", eval_steps=1, max_steps=2)
    complete_run(trainer)
    assert [entry["step"] for entry in evaluated(trainer)] == [1, 2, 2]
    results = results_of(tmp_path / "without")
    assert "accuracy_before" not in results
    assert results["accuracy_after"] == evaluated(trainer)[-1][METRIC]
    printed = capsys.readouterr().out
    assert f"Held-out accuracy (sampled, 8 problems): {results['accuracy_after']:.1%} after." in printed
    assert " before, " not in printed
    assert "  accuracy_before:" not in printed

    trainer = make_trainer(tmp_path / "with", eval_on_start=True)
    complete_run(trainer)
    assert [entry["step"] for entry in evaluated(trainer)] == [0, 1]
    results = results_of(tmp_path / "with")
    assert [results["accuracy_before"], results["accuracy_after"]] == [e[METRIC] for e in evaluated(trainer)]
    assert (
        f"{results['accuracy_before']:.1%} before, {results['accuracy_after']:.1%} after." in capsys.readouterr().out
    )


def test_stopped_run_is_saved_and_says_so_and_is_not_pushed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training_run, "push_run", lambda *args: pytest.fail("a stopped run was pushed"))
    trainer = make_trainer(tmp_path, all_wrong, max_steps=9)
    trainer.args.push_to_hub = True
    monkeypatch.setattr(trainer, "_push_from_checkpoint", lambda folder: None)
    with pytest.raises(TrainingStoppedError, match="stopped at step 5 of 9"):
        complete_run(trainer)
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "checkpoint-5").is_dir()
    results = results_of(tmp_path)
    assert "5 consecutive generation batches had no informative group" in results["stopped"]
    assert not any(name.startswith("accuracy") for name in results)
    assert "Held-out accuracy was not measured." in capsys.readouterr().out
    assert RunFacts.read(tmp_path).stop_reason == results["stopped"]
    assert "Training was stopped before its end" in (tmp_path / "README.md").read_text()


def test_command_of_a_stopped_run_ends_with_a_status_and_the_reason(model_folder, tmp_path):  # noqa: F811
    data, out = write(tmp_path / "rows.jsonl", range(100, 108)), tmp_path / "out"
    options = {"model_name_or_path": model_folder, "dataset_name": data, "output_dir": out, "max_steps": 9}
    options |= {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "use_cpu": True}
    options |= {"bf16": False, "gradient_checkpointing": False, "report_to": "none", "max_generation_rounds": 2}
    with pytest.raises(SystemExit, match=r"TrainingStoppedError: Training was stopped at step 5 of 9") as ended:
        main(["train", *(str(part) for name, value in options.items() for part in (f"--{name}", value))])
    assert ended.value.code not in (None, 0)
    assert "stopped" in results_of(out)
    assert results_of(out)["held_out"]["num_problems"] == 1


def test_evaluation_batches_that_split_groups_are_refused_before_the_model_is_loaded(tmp_path):
    options = {"num_generations": 16, "per_device_train_batch_size": 16}
    with pytest.raises(ValueError, match=r"must be whole groups of 16 .*Set per_device_eval_batch_size=16"):
        make_trainer(tmp_path, model="./nowhere", **options)
    # What the message says works.
    make_trainer(tmp_path, per_device_eval_batch_size=16, **options).evaluate()
    make_trainer(tmp_path, num_generations_eval=4, **options).evaluate()


def break_evaluation(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "evaluate", fail)


def break_card(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "create_model_card", fail)


def break_results(trainer, monkeypatch):
    monkeypatch.setattr(training_run, "_results", fail)


def break_push(trainer, monkeypatch):
    monkeypatch.setattr(training_run, "push_run", fail)


def fail(*args, **kwargs):
    raise OSError("no space")


BREAKS = {
    "the evaluation of the trained model": break_evaluation,
    "writing the model card": break_card,
    "writing results.json": break_results,
    "the push": break_push,
}


@pytest.mark.parametrize("step", BREAKS)
def test_step_that_fails_after_training_loses_no_other(tmp_path, monkeypatch, step):
    pushed = []
    monkeypatch.setattr(training_run, "push_run", lambda folder, *args: pushed.append(sorted(folder.iterdir())))
    trainer = make_trainer(tmp_path)
    trainer.args.push_to_hub = True
    BREAKS[step](trainer, monkeypatch)
    with pytest.raises(OSError, match="no space") as failed:
        complete_run(trainer)
    assert failed.value.__notes__ == [f"This was {step}. The model is saved in {tmp_path}."]
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "results.json").is_file() == (step != "writing results.json")
    assert (tmp_path / "README.md").is_file() == (step != "writing the model card")
    assert len(pushed) == (step != "the push")
    if step != "writing results.json":
        assert ("accuracy_after" in results_of(tmp_path)) == (step != "the evaluation of the trained model")


def test_first_error_is_raised_and_names_the_others(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    break_evaluation(trainer, monkeypatch)
    with pytest.raises(OSError, match="no space") as failed:
        complete_run(trainer, lambda: 1 // 0)
    assert failed.value.__notes__[1] == "What failed too: the comparison with GRPOTrainer (ZeroDivisionError)."
    assert (tmp_path / "results.json").is_file()


def test_run_without_matplotlib_keeps_results_and_push(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    pushed = []
    monkeypatch.setattr(training_run, "push_run", lambda folder, *args: pushed.append(folder))
    trainer = make_trainer(tmp_path)
    trainer.args.push_to_hub = True
    complete_run(trainer)
    assert "accuracy_after" in results_of(tmp_path)
    assert (tmp_path / "README.md").is_file()
    assert not (tmp_path / "curves.png").exists()
    assert pushed == [tmp_path]
