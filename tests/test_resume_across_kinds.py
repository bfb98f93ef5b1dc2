"""Resuming with other data, another order or another kind of model: refused with what differs, or the stream begins anew."""

import numpy as np
import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig
from test_resume import CARRY, make_trainer
from tiny import numbered_prompts

from trl_dapo import DAPOConfig
from trl_dapo.refill.prompt_source import PromptSource


LORA = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
STREAM = {"is_iterable": True}
SELECTIVE = {"selective_rollout": True}
# Saved run, resumed run, what the error says differs.
DATA = {
    "dataset to stream": ({}, STREAM, "train_dataset is an IterableDataset, but was a Dataset"),
    "stream to dataset": (STREAM, {}, "train_dataset is a Dataset, but was an IterableDataset"),
    "more rows": ({}, {"num_rows": 60}, "train_dataset has 60 rows, but had 50"),
    "fewer rows": ({}, {"num_rows": 40}, "train_dataset has 40 rows, but had 50"),
    "more rows with pass rates": (SELECTIVE, SELECTIVE | {"num_rows": 60}, "train_dataset has 60 rows, but had 50"),
    "seed": ({}, {"seed": 8}, "seed is 8, but was 7"),
    "seed of a stream": (STREAM, STREAM | {"seed": 8}, "seed is 8, but was 7"),
    "shuffling": ({}, {"shuffle_dataset": False}, "shuffle_dataset is False, but was True"),
    "shuffling of a stream": (STREAM, STREAM | {"shuffle_dataset": False}, "shuffle_dataset is False, but was True"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the last checkpoint of a run with these options, which is made once."""
    checkpoints = {}

    def checkpoint(**options):
        key = tuple(options)
        if key not in checkpoints:
            folder = tmp_path_factory.mktemp("saved")
            make_trainer(folder, max_steps=2, **CARRY, steps_per_generation=4, **options).train()
            checkpoints[key] = str(folder / "checkpoint-2")
        return checkpoints[key]

    return checkpoint


@pytest.mark.parametrize("kind", DATA)
def test_other_data_are_refused_or_begin_a_stream_anew(tmp_path, saved, kind, caplog):
    before, after, difference = DATA[kind]
    checkpoint = saved(**before)
    shape = CARRY | {"steps_per_generation": 4, "max_steps": 3} | after
    with pytest.raises(ValueError, match=difference) as raised:
        make_trainer(tmp_path / "b", **shape).train(resume_from_checkpoint=checkpoint)
    assert "restart_stream=True" in str(raised.value)

    resumed = make_trainer(tmp_path / "c", **shape, restart_stream=True)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 3
    assert caplog.text.count("restart_stream is True") == 1
    # The first prompt is the first one of a run that was never resumed, and a batch was sampled, not taken over.
    fresh = make_trainer(tmp_path / "d", **shape).dynamic_sampler.source
    assert resumed.batches[0][0][0][0][0] == fresh.row(fresh.draw(1)[0])["row"]
    assert len(resumed.batches) == 1
    if after.get("selective_rollout"):
        # Nothing is known of rows but what was sampled here.
        known = np.flatnonzero(resumed.dynamic_sampler.source.selection.rates._levels)
        assert set(known) <= {row for rows, _, _ in resumed.batches[0][0] for row in rows}


def test_stream_that_begins_anew_keeps_weights_optimizer_and_schedule(tmp_path, saved):
    checkpoint = saved()
    resumed = make_trainer(tmp_path / "b", num_rows=60, max_steps=3, restart_stream=True)
    seen = {}

    def look(samples):
        seen["weights"] = {name: value.clone() for name, value in resumed.model.state_dict().items()}
        seen["adam_steps"] = {int(state["step"]) for state in resumed.optimizer.state.values()}
        seen["schedule"] = resumed.lr_scheduler.last_epoch
        return generate(samples)

    generate, resumed._generate_and_score_completions = resumed._generate_and_score_completions, look
    resumed.train(resume_from_checkpoint=checkpoint)
    weights = type(resumed.model).from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in seen["weights"].items())
    assert (seen["adam_steps"], seen["schedule"]) == ({2}, 2)


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        (LORA, {}, "holds an adapter .LoRA., but the model of this run has none"),
        ({}, LORA, "holds the weights of a whole model, but this run trains an adapter"),
    ],
)
@pytest.mark.parametrize("restart_stream", [False, True])
def test_adapter_and_whole_model_do_not_resume_from_each_other(
    tmp_path, saved, before, after, difference, restart_stream
):
    checkpoint = saved(**before)
    with pytest.raises(ValueError, match=difference):
        make_trainer(tmp_path / "b", **after, restart_stream=restart_stream).train(resume_from_checkpoint=checkpoint)


def test_adapter_with_other_settings_is_refused_and_with_the_same_ones_resumed(tmp_path, saved):
    checkpoint = saved(**LORA)

    def train(**settings):
        config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | settings)
        trainer = make_trainer(tmp_path / "b", peft_config=config, max_steps=3, **CARRY, steps_per_generation=4)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer.state.global_step

    # The weights fit, and would count twice as much.
    with pytest.raises(
        ValueError, match=r"had other settings: lora_alpha is 16, but was 8\. Resume with its own peft_config"
    ):
        train(lora_alpha=16)
    with pytest.raises(
        ValueError, match=r"r is 4, but was 2; target_modules is \['q_proj', 'v_proj'\], but was \['q_proj'\]"
    ):
        train(r=4, target_modules=["v_proj", "q_proj"])
    assert train() == 3


def test_all_differences_are_in_one_error():
    state = PromptSource(numbered_prompts(5), seed=1).state_dict(3)
    with pytest.raises(ValueError, match="has 6 rows, but had 5; seed is 2, but was 1; shuffle_dataset is False"):
        PromptSource(numbered_prompts(6), seed=2, shuffle=False).load_state_dict(state)


def test_stream_that_became_shorter_than_its_position_is_refused():
    def source(num_rows):
        return PromptSource(IterableDataset.from_generator(lambda: iter(numbered_prompts(num_rows))), shuffle=False)

    longer = source(9)
    longer.draw(7)
    with pytest.raises(ValueError, match="gives fewer than the 7 rows"):
        source(6).load_state_dict(longer.state_dict(7))
    same = source(7)
    same.load_state_dict(longer.state_dict(7))
    assert same.row(same.draw(1)[0])["row"] == 0


def test_stream_without_dynamic_sampling_cannot_begin_anew(tmp_path):
    with pytest.raises(ValueError, match="restart_stream is True, but dynamic_sampling is False"):
        DAPOConfig(output_dir=str(tmp_path), dynamic_sampling=False, restart_stream=True, use_cpu=True)
