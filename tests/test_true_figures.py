"""A figure is what its name says: of this evaluation alone, of this reward function, of the best model, of this policy."""

import math
import re
from pathlib import Path

import pytest
from peft import LoraConfig
from test_trainer import make_trainer
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from trl.rewards import get_soft_overlong_punishment

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.config.dataset_checks import numbered_names
from trl_dapo.rewards import SoftOverlongPunishment


ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = numbered_prompts(60).select(range(50, 60))


def test_evaluation_has_nothing_of_a_prediction_or_of_one_that_failed(tmp_path):
    seen = []

    def reward(completion_ids, log_extra, log_metric, **kwargs):
        log_metric("calls", float(len(seen)))
        log_extra("answer", [str(ids[0]) for ids in completion_ids])
        if len(seen) == 1:
            seen.append(None)
            raise RuntimeError("the reward failed")
        seen.append(first_token_reward(completion_ids))
        return seen[-1]

    trainer = make_trainer(tmp_path, reward, eval_dataset=HELD_OUT, per_device_eval_batch_size=20)
    with pytest.raises(RuntimeError, match="the reward failed"):
        trainer.evaluate()
    trainer.predict(HELD_OUT)
    seen.clear()
    seen.extend([None, None])  # not the first calls of this test
    metrics = trainer.evaluate()
    values = [value for batch in seen[2:] for value in batch]
    groups = [values[start : start + 4] for start in range(0, 40, 4)]
    assert len(values) == 40
    assert metrics["eval_avg@4"] == pytest.approx(sum(values) / 40)
    assert metrics["eval_pass@4"] == pytest.approx(sum(max(group) for group in groups) / 10)
    assert metrics["eval_rewards/reward/mean"] == pytest.approx(sum(values) / 40)
    assert metrics["eval_calls"] == 2.5


def test_reward_functions_of_one_name_are_numbered_and_keep_their_own_values(tmp_path):
    first, second = (
        (lambda completion_ids, **kwargs: first_token_reward(completion_ids)),
        (lambda completion_ids, **kwargs: [7.0] * len(completion_ids)),
    )
    trainer = make_trainer(tmp_path, [second, first], filter_reward="<lambda>_2", max_steps=1, num_groups_to_log=8)
    assert trainer.punishment.names == ["<lambda>", "<lambda>_2", "soft_overlong_punishment"]
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/<lambda>/mean"] == 7.0
    assert 0 < log["rewards/<lambda>_2/mean"] < 1
    assert {row["reward_<lambda>"] for row in trainer.recorder.latest if "reward_<lambda>" in row} <= {7.0}
    assert numbered_names(["a_2", "a", "a"]) == ["a_2", "a", "a_3"]


@pytest.mark.parametrize("punishment", [get_soft_overlong_punishment(8, 4), SoftOverlongPunishment(8, 4)])
def test_length_is_punished_once(tmp_path, punishment):
    rewards = [first_token_reward, punishment]
    with pytest.raises(ValueError, match=r"punished twice.*set soft_punish_cache=0"):
        make_trainer(tmp_path, rewards, soft_punish_cache=4)
    trainer = make_trainer(tmp_path, rewards, soft_punish_cache=0, max_steps=1)
    trainer.train()
    for _, (_, rewards_of_batch, completion_ids), _ in trainer.batches:
        assert [row[1:] for row in rewards_of_batch] == [[-max(0, len(ids) - 4) / 4] for ids in completion_ids]
    make_trainer(tmp_path, first_token_reward, soft_punish_cache=4)


def test_best_model_is_the_one_of_highest_unshaped_accuracy(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"per_device_eval_batch_size": 8, "load_best_model_at_end": True, "max_steps": 4}
    trainer = make_trainer(tmp_path, eval_dataset=HELD_OUT, **options)
    trainer.train()
    accuracies = {entry["step"]: entry["eval_avg@4"] for entry in trainer.state.log_history if "eval_avg@4" in entry}
    assert len(set(accuracies.values())) > 1
    assert trainer.state.best_metric == max(accuracies.values())
    assert accuracies[trainer.state.best_global_step] == max(accuracies.values())

    def config(**overrides):
        return DAPOConfig(**training_arguments(tmp_path, **options | overrides))

    assert (config(num_generations_eval=2).metric_for_best_model, config().greater_is_better) == ("eval_avg@2", True)
    assert config(metric_for_best_model="loss").metric_for_best_model == "loss"
    assert config(load_best_model_at_end=False).metric_for_best_model is None
    with pytest.raises(ValueError, match=r"Set it to one of 'eval_small_avg@4', 'eval_large_avg@4'"):
        make_trainer(tmp_path, eval_dataset={"small": HELD_OUT, "large": HELD_OUT}, **options)


@pytest.mark.parametrize("is_disabled", [True, False])
def test_ratio_of_an_unchanged_policy_is_one_because_dropout_is_off(tmp_path, capsys, is_disabled):
    trainer = DAPOTrainer(
        model=tiny_model(attention_dropout=0.5),
        reward_funcs=first_token_reward,
        # Two optimizer steps on a batch; the weights do not move.
        args=DAPOConfig(
            **training_arguments(
                tmp_path,
                steps_per_generation=2,
                max_steps=2,
                learning_rate=0.0,
                **({} if is_disabled else {"disable_dropout": False}),
            )
        ),
        train_dataset=numbered_prompts(50),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    ratios = [entry[f"dapo/ratio/{end}"] for entry in trainer.state.log_history[:2] for end in ("min", "max")]
    assert (ratios == pytest.approx([1.0] * 4, abs=1e-5)) == is_disabled
    assert ("! The model has dropout" in capsys.readouterr().out) == (not is_disabled)
    trainer.create_model_card()
    assert ("dropout 0.5" in (tmp_path / "README.md").read_text()) == (not is_disabled)


def test_metrics_of_trl_mean_what_the_documentation_says(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, steps_per_generation=2, soft_punish_cache=0)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    num_tokens = 0
    sampled = [batch[0] for batch in trainer.batches]
    assert any(len(rounds) > 1 or len(rounds[0][0]) > 16 for rounds in sampled), "nothing was sampled beyond the batch"
    # Two optimizer steps on a batch; it is sampled in the first one.
    for log, batch_rounds in zip(logs[::2], sampled, strict=True):
        lengths = [len(ids) for _, _, completion_ids in batch_rounds for ids in completion_ids]
        assert log["completions/mean_length"] == pytest.approx(sum(lengths) / len(lengths))
        num_tokens += sum(lengths) + 2 * len(lengths)  # each prompt has two tokens
        assert log["num_tokens"] == num_tokens
        assert log["frac_reward_zero_std"] == 0
    table = (ROOT / "docs" / "curves.md").read_text().split("| metric of TRL |")[1].split("\n\n")[0]
    documented = {name.replace("<name>", "first_token_reward") for name in re.findall(r"^\| (.*?) \|", table, re.M)}
    documented = {name.strip("` ") for cell in documented for name in cell.split(",")}
    names = (
        "completions/",
        "num_tokens",
        "step_time",
        "frac_reward_zero_std",
        "clip_ratio/",
        "reward",
        "rewards/first",
    )
    logged = {name for log in logs for name in log if name.startswith(names)}
    assert logged - documented == set()
    assert documented - {"---"} == logged
    assert not math.isnan(logs[-1]["step_time"])
