"""A run that was interrupted and resumed against one that never was: the same batches, weights and log lines, to the bit."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import IterableDataset
from test_trainer import RecordingTrainer, all_wrong
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from trl import GRPOTrainer

from trl_dapo import DAPOConfig, TrainingStoppedError


# Figures of the clock.
TIMING = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "dapo/seconds_sampling"}

CARRY = {"surplus": "carry", "refill_confidence": 0.99, "max_prompts_per_round": 100, "max_off_policy_steps": 100}
GROUPS = {"loss_normalization": "group", "steps_per_generation": 4, "gradient_accumulation_steps": 2}
OFF = {"dynamic_sampling": False, "soft_punish_cache": 0, "loss_normalization": "generation_batch"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    # The picture at the end of a run is no part of a checkpoint, and drawing it takes as long as the run.
    monkeypatch.setattr("trl_dapo.publishing.card.plot_curves", lambda *args, **kwargs: None)


def make_trainer(folder, num_rows=50, reward_funcs=first_token_reward, **overrides):
    extras = {name: overrides.pop(name) for name in ("eval_dataset", "peft_config") if name in overrides}
    dataset = overrides.pop("dataset", None) or numbered_prompts(num_rows)
    if overrides.pop("is_iterable", False):
        rows = dataset.to_list()
        dataset = IterableDataset.from_generator(lambda: iter(rows))
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1, "gradient_checkpointing": False} | overrides
    return RecordingTrainer(
        model=tiny_model(),
        reward_funcs=reward_funcs,
        args=DAPOConfig(**training_arguments(folder, **options)),
        train_dataset=dataset,
        processing_class=tiny_tokenizer(),
        **extras,
    )


def without_timing(entry):
    return {k: str(v) for k, v in entry.items() if k not in TIMING and not k.startswith("dapo/seconds/")}


def state_of(trainer):
    """All that a checkpoint would hold of the sampler and the reporter now, without the clock."""
    sampler = trainer.dynamic_sampler
    state = sampler.state_dict() | {"carried": sampler.carried_state_dict(), "reporter": trainer.reporter.state_dict()}
    del state["planner"]["cost"]
    return state


def assert_same_run(resumed, straight, num_steps_before):
    """Compares weights, the batches that were generated after the checkpoint, and all log lines but the summary."""
    for (name, mine), its in zip(
        resumed.model.state_dict().items(), straight.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, its), name
    args, last = straight.args, straight.state.global_step
    first, end = (step * args.gradient_accumulation_steps for step in (num_steps_before, last))
    cycle = args.steps_per_generation * args.num_iterations
    assert len(resumed.batches) == sum(micro_step % cycle == 0 for micro_step in range(first, end))
    for mine, its in zip(reversed(resumed.batches), reversed(straight.batches), strict=False):
        assert str(mine[:2]) == str(its[:2])
        assert mine[2].keys() == its[2].keys()
        for name, value in mine[2].items():
            assert torch.equal(value, its[2][name]) if isinstance(value, torch.Tensor) else value == its[2][name], name
    if straight.dynamic_sampler is not None:
        assert str(state_of(resumed)) == str(state_of(straight))
    mine, its = resumed.state.log_history[:-1], straight.state.log_history[:-1]
    assert [without_timing(entry) for entry in mine] == [without_timing(entry) for entry in its]


SHAPES = [
    {},
    {"steps_per_generation": 4},
    {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2},
    {"num_iterations": 3, "logging_steps": 3},
    CARRY,
    CARRY | {"steps_per_generation": 2, "selective_rollout": True},
    CARRY | {"is_iterable": True, "num_rows": 30},
    {"selective_rollout": True, "max_steps": 12},
    {"is_iterable": True, "num_rows": 20, "steps_per_generation": 2},
    GROUPS | {"num_iterations": 2, "logging_steps": 4},
    {"steps_per_generation": 2, "ignore_data_skip": True},  # but for the epoch, which transformers counts anew
    {"steps_per_generation": 4, "learning_rate": 5e-2, "optim": "sgd", "lr_scheduler_type": "cosine"},
    {"num_train_epochs": 3.0, "max_steps": -1, "num_rows": 9},  # an epoch has 4 batches
    {"max_generation_rounds": 1, "max_prompts_per_round": 1, "steps_per_generation": 2, "logging_steps": 5},
    {"mask_truncated_completions": True, "truncated_in_statistics": False, "steps_per_generation": 2},
    {"log_completions": True, "steps_per_generation": 4},
    OFF,
    OFF | {"steps_per_generation": 4, "num_iterations": 2, "num_rows": 20},
    OFF | {"steps_per_generation": 2, "num_rows": 9, "max_steps": 12},  # an epoch has 4 optimizer steps
    OFF | {"steps_per_generation": 3, "gradient_accumulation_steps": 2, "num_rows": 13},  # steps across batches
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_resumed_run_is_the_one_that_was_never_interrupted(tmp_path, shape):
    straight = make_trainer(tmp_path / "a", **shape)
    straight.train()
    last = straight.state.global_step
    # Inside a generation batch and between two, inside an epoch and between two.
    for step in (3, last - 3):
        resumed = make_trainer(tmp_path / "b", **shape | {"save_strategy": "no"})
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
        if "ignore_data_skip" in shape:
            for entry in straight.state.log_history + resumed.state.log_history:
                entry.pop("epoch", None)
        assert_same_run(resumed, straight, step)


@pytest.mark.parametrize("shape", [{}, CARRY | {"steps_per_generation": 2}, OFF | {"num_iterations": 2}], ids=str)
def test_run_that_was_done_takes_no_further_step(tmp_path, shape):
    # Killed after its last checkpoint, say. In the midst of an epoch, where transformers takes one more.
    straight = make_trainer(tmp_path, **shape, max_steps=3)
    straight.train()
    resumed = make_trainer(tmp_path, **shape, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    assert_same_run(resumed, straight, 3)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in (1, 2, 3)]


def test_loss_of_the_summary_is_that_of_the_steps_since_the_checkpoint(tmp_path):
    shape = {"num_iterations": 3}
    each_step = make_trainer(tmp_path / "a", **shape, save_strategy="no")
    each_step.train()
    losses = [entry["loss"] for entry in each_step.state.log_history if "loss" in entry]
    straight = make_trainer(tmp_path / "b", **shape, logging_steps=3)
    straight.train()
    resumed = make_trainer(tmp_path / "c", **shape, logging_steps=3)
    # The losses of steps 4 and 5 are in the checkpoint, for the log line of step 6.
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-5"))
    for trainer, first in ((straight, 0), (resumed, 5)):
        mean = sum(losses[first:]) / len(losses[first:])
        assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(mean, abs=1e-6)


def test_resumed_adapter_is_the_one_that_was_never_interrupted(tmp_path):
    from peft import LoraConfig

    shape = {"steps_per_generation": 2, "peft_config": LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)}
    straight = make_trainer(tmp_path / "a", **shape)
    straight.train()
    resumed = make_trainer(tmp_path / "b", **shape)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert_same_run(resumed, straight, 3)


def test_run_with_evaluations_is_resumed(tmp_path):
    shape = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": numbered_prompts(4), "eval_on_start": True}
    shape |= {"per_device_eval_batch_size": 4, "steps_per_generation": 2, "logging_steps": 3}
    straight = make_trainer(tmp_path / "a", **shape)
    straight.train()
    resumed = make_trainer(tmp_path / "b", **shape)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    # Transformers evaluates once more where the run resumes, which must disturb nothing.
    extra = next(number for number, entry in enumerate(resumed.state.log_history) if number and entry["step"] == 5
                 and "eval_runtime" in entry)  # fmt: skip
    del resumed.state.log_history[extra]
    straight.state.log_history = [e for e in straight.state.log_history if "eval_runtime" not in e]
    resumed.state.log_history = [e for e in resumed.state.log_history if "eval_runtime" not in e]
    assert_same_run(resumed, straight, 5)


def test_run_with_nothing_to_learn_stops_where_it_would_have_stopped(tmp_path):
    # After five empty batches in a row, of which a resumed run has seen three.
    shape = {"max_steps": 9, "max_generation_rounds": 2}
    trainers = [make_trainer(tmp_path / name, reward_funcs=all_wrong, **shape) for name in "ab"]
    with pytest.raises(TrainingStoppedError):
        trainers[0].train()
    with pytest.raises(TrainingStoppedError):
        trainers[1].train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert [trainer.state.global_step for trainer in trainers] == [5, 5]


def test_resume_of_a_resumed_run(tmp_path):
    straight = make_trainer(tmp_path / "a", **CARRY, steps_per_generation=2)
    straight.train()
    for step in (3, 4, 7):
        resumed = make_trainer(tmp_path / "b", **CARRY, steps_per_generation=2)
        source = tmp_path / ("a" if step == 3 else "b") / f"checkpoint-{step}"
        resumed.train(resume_from_checkpoint=str(source))
        assert_same_run(resumed, straight, step)


@pytest.mark.parametrize("shape", [{}, {"steps_per_generation": 3, "num_iterations": 2, "num_rows": 20}], ids=str)
def test_dataloader_that_paces_the_steps_is_as_long_as_that_of_trl(tmp_path, shape):
    trainer = make_trainer(tmp_path, **shape)
    theirs = GRPOTrainer.get_train_dataloader(trainer)
    assert len(trainer.get_train_dataloader()) == len(theirs)
    assert trainer.num_examples(trainer.get_train_dataloader()) == trainer.num_examples(theirs)
    # It must not touch the random numbers that sample.
    before = torch.get_rng_state()
    assert len(list(trainer.get_train_dataloader())) == len(theirs)
    assert torch.equal(torch.get_rng_state(), before)


def test_table_of_completions_is_that_of_the_batch_that_is_being_trained(tmp_path):
    shape = {"log_completions": True, "steps_per_generation": 4}
    make_trainer(tmp_path / "a", **shape).train()
    resumed = make_trainer(tmp_path / "b", **shape)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for step in (3, 4, 5):
        tables = [pd.read_parquet(tmp_path / x / "completions" / f"completions_0000{step}.parquet") for x in "ab"]
        pd.testing.assert_frame_equal(*tables)
        assert len(tables[0]) == 32


def test_run_on_another_layout_goes_on_in_the_stream(tmp_path, caplog):
    straight = make_trainer(tmp_path / "a", **CARRY, steps_per_generation=2)
    straight.train()
    state = json.loads(Path(tmp_path, "a", "checkpoint-5", "dapo_state", "rank0.json").read_text())["parts"]
    assert state["carried"]["groups"], "the seed no longer carries anything here"
    resumed = make_trainer(tmp_path / "b", **CARRY, steps_per_generation=4, max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert "steps_per_generation from 2 to 4" in caplog.text
    # The batch that was half trained is dropped; the first of the carried groups is sampled again.
    first_row = resumed.batches[0][0][0][0][0]
    assert first_row == state["carried"]["groups"][0]["draw"]["index"]


def test_checkpoint_of_grpo_begins_the_stream_and_says_so(tmp_path, caplog):
    make_trainer(tmp_path / "a", max_steps=2).train()
    checkpoint = tmp_path / "a" / "checkpoint-2"
    shutil.rmtree(checkpoint / "dapo_state")
    (checkpoint / "dapo_manifest.json").unlink()
    resumed = make_trainer(tmp_path / "b", max_steps=3)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert "holds no state of trl-dapo" in caplog.text
    assert resumed.batches[0][0][0][0][0] == resumed.dynamic_sampler.source.stream._index_at(0)


def test_checkpoint_of_grpo_goes_on_in_the_phase_of_its_generation_batch(tmp_path):
    shape = OFF | {"steps_per_generation": 2}
    straight = make_trainer(tmp_path / "a", **shape)
    straight.train()
    checkpoint = tmp_path / "a" / "checkpoint-3"
    shutil.rmtree(checkpoint / "dapo_state")
    (checkpoint / "dapo_manifest.json").unlink()
    resumed = make_trainer(tmp_path / "b", **shape)
    steps, generate = [], resumed._generate_and_score_completions
    resumed._generate_and_score_completions = lambda inputs: (
        steps.append(resumed.state.global_step) or generate(inputs)
    )
    resumed.train(resume_from_checkpoint=str(checkpoint))
    # What is left of the batch is sampled again, and each of the others where it would have been.
    assert steps == [3, 4, 6]
    rows = [[record[0][0] for record in trainer.batches[-3:]] for trainer in (resumed, straight)]
    assert [batch[0] for batch in rows[0]] == [batch[0] for batch in rows[1]]


def test_state_of_another_release_is_refused(tmp_path):
    make_trainer(tmp_path / "a", max_steps=1).train()
    checkpoint = tmp_path / "a" / "checkpoint-1"
    (checkpoint / "dapo_manifest.json").unlink()
    path = checkpoint / "dapo_state" / "rank0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(ValueError, match="has version 99, but this release reads version 2"):
        make_trainer(tmp_path / "b").train(resume_from_checkpoint=str(checkpoint))
