"""`train()` called again, on the same data or on others."""

import pytest
from datasets import Dataset
from test_trainer import make_trainer
from tiny import numbered_prompts

from trl_dapo.sampling.prompt_stream import PromptStream


CARRY = {"surplus": "carry", "refill_confidence": 0.99, "max_prompts_per_round": 100}


def other_prompts(num_rows, first=1000):
    return Dataset.from_dict(
        {"prompt": [f"w{row % 5}" for row in range(num_rows)], "row": list(range(first, first + num_rows))}
    )


def sampled_rows(trainer, first_batch=0):
    return [row for rounds, _, _ in trainer.batches[first_batch:] for rows, _, _ in rounds for row in rows[::4]]


@pytest.mark.parametrize("options", [{}, CARRY, {"steps_per_generation": 4}, {"dynamic_sampling": False}])
def test_other_dataset_is_what_the_next_train_samples_and_trains(tmp_path, options):
    trainer = make_trainer(tmp_path, max_steps=3, **options)
    trainer.train()
    num_batches = len(trainer.batches)
    other = other_prompts(30)
    trainer.train_dataset = other
    trainer.train()
    rows = sampled_rows(trainer, num_batches)
    assert rows
    assert min(rows) >= 1000
    if options.get("dynamic_sampling", True):
        trained = [row for _, (rows, _, _), _ in trainer.batches[num_batches:] for row in rows]
        assert min(trained) >= 1000
        # A new stream, from its beginning. What the first batch had no room for is sampled again.
        first = sampled_rows(trainer, num_batches)[:5]
        assert first == [draw.index + 1000 for draw in PromptStream(30, seed=7).peek(5)]


def test_same_dataset_goes_on_in_its_stream(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    position = trainer.dynamic_sampler.source.position
    num_batches = len(trainer.batches)
    trainer.train()
    stream = [draw.index for draw in PromptStream(50, seed=7).peek(position + 5)]
    assert sampled_rows(trainer, num_batches)[:5] == stream[position : position + 5]


def test_other_dataset_is_checked_as_the_first_one(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train_dataset = numbered_prompts(20).rename_column("prompt", "question")
    with pytest.raises(ValueError, match="train_dataset has no column 'prompt'"):
        trainer.train()


def test_checkpoint_of_the_second_train_is_of_the_other_dataset(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1} | CARRY
    trainer = make_trainer(tmp_path, **options)
    trainer.train()
    other = other_prompts(30)
    trainer.train_dataset = other
    trainer.train()
    resumed = make_trainer(tmp_path, **options | {"max_steps": 4})
    resumed.train_dataset = other
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(resumed.batches) == 2
    assert min(row for _, (rows, _, _), _ in resumed.batches for row in rows) >= 1000
    stream = resumed.dynamic_sampler.source.stream
    assert stream.position > trainer.dynamic_sampler.source.position


@pytest.mark.parametrize("options", [{}, CARRY], ids=["requeue", "carry"])
def test_stream_follows_a_dataset_and_a_dataset_a_stream(tmp_path, options):
    trainer = make_trainer(tmp_path, max_steps=2, shuffle_dataset=False, **options)
    trainer.train()
    stream, other = other_prompts(30).to_iterable_dataset(), other_prompts(30, first=2000)
    for dataset, first in ((stream, 1000), (other, 2000), (stream, 1000)):
        num_batches = len(trainer.batches)
        trainer.train_dataset = dataset
        trainer.train()
        rows = sampled_rows(trainer, num_batches)
        # Each begins at its first row.
        assert rows[0] == first
        assert {min(rows), *(row - row % 1000 for row in rows)} == {first}
    assert trainer.shared_prompts() == {}


def test_evaluation_after_another_dataset_is_of_the_evaluation_data_that_are_set(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, eval_dataset=numbered_prompts(8), per_device_eval_batch_size=8)
    trainer.train()
    trainer.train_dataset, trainer.eval_dataset = other_prompts(30), other_prompts(4, first=3000)
    trainer.train()
    trainer.sampled_rounds = []
    trainer.evaluate()
    assert {row for rows, _, _ in trainer.sampled_rounds[-2:] for row in rows} <= set(range(3000, 3004))
