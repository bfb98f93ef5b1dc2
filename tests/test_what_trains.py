"""What a user passes as prompts, rewards and model is what trains, or is answered at once."""

import pytest
from datasets import Dataset, IterableDataset
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer


OFF = {"dynamic_sampling": False}


def trainer_of(tmp_path, *, model=None, rewards=first_token_reward, dataset=None, tokenizer=None, **options):
    return DAPOTrainer(
        model=model or tiny_model(),
        reward_funcs=rewards,
        args=DAPOConfig(**training_arguments(tmp_path, **{"max_steps": 1, **options})),
        train_dataset=numbered_prompts(20) if dataset is None else dataset,
        processing_class=tokenizer or tiny_tokenizer(),
    )


# Texts, where the model has a chat template


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}w16"
    return tokenizer


def described(trainer):
    return trainer._describe_run(1)


NOT_APPLIED = "! The prompts are texts, so the chat template of the model is not applied"


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
def test_texts_on_a_chat_model_are_said(tmp_path, options):
    assert NOT_APPLIED in described(trainer_of(tmp_path, tokenizer=chat_tokenizer(), **options))
    assert NOT_APPLIED not in described(trainer_of(tmp_path, **options))


def test_conversations_and_texts_with_the_template_applied_are_not_said(tmp_path):
    turns = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"w{row % 5}"}] for row in range(20)]})
    applied = Dataset.from_dict({"prompt": [f"<bos> w{row % 5}" for row in range(20)]})
    for dataset in (turns, applied):
        assert NOT_APPLIED not in described(trainer_of(tmp_path, dataset=dataset, tokenizer=chat_tokenizer()))


def test_texts_of_a_stream_or_a_transform_are_said(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(list(numbered_prompts(20))))
    transformed = numbered_prompts(20).with_transform(lambda rows: rows)
    for dataset in (stream, transformed):
        assert NOT_APPLIED in described(trainer_of(tmp_path, dataset=dataset, tokenizer=chat_tokenizer()))
