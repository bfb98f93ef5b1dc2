"""Evaluation data without the columns that the rewards need are refused when the trainer is built."""

import functools

import pytest
from datasets import IterableDataset
from test_trainer import make_trainer
from tiny import first_token_reward, numbered_prompts

from trl_dapo import DAPOConfig


PROMPTS = numbered_prompts(8)
OFF = {"dynamic_sampling": False}


def needs_row(completion_ids, row, **kwargs):
    return first_token_reward(completion_ids)


def build(tmp_path, eval_dataset, reward=needs_row, **options):
    return make_trainer(tmp_path, reward, eval_dataset=eval_dataset, per_device_eval_batch_size=8, **options)


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
def test_missing_column_is_named_with_dataset_and_reward(tmp_path, options):
    without = PROMPTS.remove_columns("row")
    message = r"'needs_row' needs the columns \['row'\], but eval_dataset{} has only \['prompt'\]"
    with pytest.raises(ValueError, match=message.format("")):
        build(tmp_path, without, **options)
    with pytest.raises(ValueError, match=message.format(r"\['large'\]")):
        build(tmp_path, {"small": PROMPTS, "large": without}, **options)
    with pytest.raises(ValueError, match=message.format("")):
        build(
            tmp_path, without, [first_token_reward, functools.update_wrapper(functools.partial(needs_row), needs_row)]
        )
    with pytest.raises(ValueError, match="eval_dataset has no column 'prompt'"):
        build(tmp_path, PROMPTS.rename_column("prompt", "question"), **options)
    build(tmp_path, without, first_token_reward, **options)
    build(tmp_path, PROMPTS, **options).evaluate()


def test_stream_and_transform_are_not_judged_by_columns_that_they_do_not_tell(tmp_path):
    build(tmp_path, IterableDataset.from_generator(lambda: iter(list(PROMPTS))))
    other = PROMPTS.remove_columns("prompt").with_transform(lambda rows: {**rows, "prompt": ["w1"] * len(rows["row"])})
    build(tmp_path, other).evaluate()


def test_training_columns_are_checked_without_dynamic_sampling_too(tmp_path):
    def needs_gold(completion_ids, gold, **kwargs):
        return first_token_reward(completion_ids)

    with pytest.raises(ValueError, match=r"needs the columns \['gold'\], but train_dataset has only"):
        make_trainer(tmp_path, needs_gold, **OFF)


def test_removing_the_columns_of_rewards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="remove_unused_columns is True, but"):
        DAPOConfig(output_dir=str(tmp_path), remove_unused_columns=True, bf16=False)
    # As TRL, where no reward needs a column.
    trainer = make_trainer(tmp_path, max_steps=1, remove_unused_columns=True, cls=_Plain, **OFF)
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(ValueError, match=r"needs the columns \['row'\], which remove_unused_columns=True takes"):
        make_trainer(tmp_path, needs_row, remove_unused_columns=True, **OFF)


def _Plain(**arguments):
    from trl_dapo import DAPOTrainer

    return DAPOTrainer(**arguments)


def test_reward_without_a_readable_signature_is_left_alone(tmp_path):
    class Reward:
        __name__ = "unreadable"
        __signature__ = "not one"

        def __call__(self, completion_ids, **kwargs):
            return first_token_reward(completion_ids)

    build(tmp_path, PROMPTS, Reward()).evaluate()
