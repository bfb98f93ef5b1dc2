"""A row that cannot be trained on is named by its number when the trainer is built; in a stream it is passed over."""

import pytest
from datasets import Dataset, IterableDataset
from test_trainer import RecordingTrainer
from tiny import first_token_reward, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig
from trl_dapo.config.row_checks import find_bad_rows, prompt_fault


def make_trainer(tmp_path, train_dataset, **overrides):
    extras = {name: overrides.pop(name) for name in ("eval_dataset", "processing_class") if name in overrides}
    return RecordingTrainer(
        model=tiny_model(),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path, **overrides)),
        train_dataset=train_dataset,
        **{"processing_class": tiny_tokenizer()} | extras,
    )


def texts(number, prompt, num_rows=20):
    prompts = [f"w{row % 17}" for row in range(num_rows)]
    prompts[number] = prompt
    return Dataset.from_list([{"prompt": text, "row": row} for row, text in enumerate(prompts)])


def conversations(number, prompt, num_rows=20):
    prompts = [[{"role": "user", "content": f"w{row % 17}"}] for row in range(num_rows)]
    prompts[number] = prompt
    return Dataset.from_list([{"prompt": turns, "row": row} for row, turns in enumerate(prompts)])


def templated():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}"
    return tokenizer


BAD_TEXTS = [("", "no tokens"), (" ", "no tokens"), (None, "None")]
BAD_CONVERSATIONS = [
    ([], "no turns"),
    (None, "None"),
    ([{"role": "user", "content": None}], "no content"),
    ([{"role": None, "content": "w1"}], "no role"),
]


@pytest.mark.parametrize("options", [{}, {"dynamic_sampling": False}], ids=str)
@pytest.mark.parametrize(("prompt", "fault"), BAD_TEXTS)
def test_text_that_cannot_be_sampled_is_refused_with_its_row(tmp_path, prompt, fault, options):
    with pytest.raises(ValueError, match=rf"(?s)train_dataset has 1 row.*row 13: .*{fault}"):
        make_trainer(tmp_path, texts(13, prompt), **options)
    with pytest.raises(ValueError, match=rf"(?s)eval_dataset has 1 row.*row 3: .*{fault}"):
        make_trainer(tmp_path, texts(13, "w1"), eval_dataset=texts(3, prompt), per_device_eval_batch_size=8, **options)


@pytest.mark.parametrize(("prompt", "fault"), BAD_CONVERSATIONS)
def test_conversation_that_cannot_be_sampled_is_refused_with_its_row(tmp_path, prompt, fault):
    with pytest.raises(ValueError, match=rf"(?s)train_dataset has 1 row.*row 13: .*{fault}"):
        make_trainer(tmp_path, conversations(13, prompt), processing_class=templated())


def test_numbers_are_no_prompts(tmp_path):
    numbers = Dataset.from_dict({"prompt": list(range(20)), "row": list(range(20))})
    with pytest.raises(ValueError, match=r"(?s)train_dataset has 20 rows.*row 0: the prompt is 0.*15 more"):
        make_trainer(tmp_path, numbers)
    named = {"small": texts(3, "w1"), "large": numbers}
    with pytest.raises(ValueError, match=r"(?s)eval_dataset\['large'\] has 20 rows"):
        make_trainer(tmp_path, texts(1, "w1"), eval_dataset=named, per_device_eval_batch_size=8)


def test_rows_are_numbered_as_in_the_dataset_that_is_passed(tmp_path):
    shuffled = texts(13, None).select([19, 13, *range(10)])
    with pytest.raises(ValueError, match=r"row 1: "):
        make_trainer(tmp_path, shuffled)


def test_empty_text_is_a_prompt_where_the_tokenizer_begins_with_a_token(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = _begins_with_bos()
    trainer = make_trainer(tmp_path, texts(13, ""), processing_class=tokenizer, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


def _begins_with_bos():
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)])


def test_other_dataset_of_a_second_training_is_checked(tmp_path):
    trainer = make_trainer(tmp_path, texts(13, "w1"), max_steps=1)
    trainer.train_dataset = texts(7, "")
    with pytest.raises(ValueError, match=r"row 7: "):
        trainer.train()


def stream_of(dataset):
    return IterableDataset.from_generator(lambda: iter(list(dataset)))


def test_row_at_the_head_of_a_stream_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)train_dataset has 1 row.*row 3: .*None"):
        make_trainer(tmp_path, stream_of(texts(3, None)))


def test_row_further_on_in_a_stream_is_passed_over_and_named(tmp_path, caplog):
    trainer = make_trainer(tmp_path, stream_of(texts(13, "")), max_steps=6, shuffle_dataset=False)
    trainer.train()
    rows = [row for rounds, _, _ in trainer.batches for sampled, _, _ in rounds for row in sampled[::4]]
    assert max(rows) > 13
    assert 13 not in rows
    assert caplog.text.count("Row 13 of train_dataset") == 1
    assert trainer.state.global_step == 6


def test_stream_resumes_behind_a_row_that_is_passed_over(tmp_path):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    trainers = [make_trainer(tmp_path, stream_of(texts(13, None)), **options) for _ in range(2)]
    trainers[0].train()
    trainers[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [batch[1] for batch in trainers[1].batches] == [batch[1] for batch in trainers[0].batches[3:]]


def test_row_of_a_transform_is_named_when_it_is_drawn(tmp_path):
    def transform(rows):
        return {"prompt": [None if row == 13 else f"w{row % 17}" for row in rows["row"]], "row": rows["row"]}

    trainer = make_trainer(tmp_path, texts(0, "w1").with_transform(transform), max_steps=6)
    with pytest.raises(ValueError, match="Row 13 of train_dataset cannot be used: the prompt is None"):
        trainer.train()


def test_image_rows_are_checked_by_their_number_of_images():
    turns = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "?"}]}]
    rows = [{"prompt": turns, "images": [{"bytes": b"x", "path": None}] * count} for count in (1, 2, 0)]
    assert [number for number, _ in find_bad_rows(Dataset.from_list(rows))] == [1, 2]
    assert "1 places for images, but the row has 2" in dict(find_bad_rows(Dataset.from_list(rows)))[1]
    text = [{"prompt": "w1", "images": [{"bytes": b"x", "path": None}]}]
    assert "must be a conversation" in dict(find_bad_rows(Dataset.from_list(text)))[0]
    assert "images" in dict(find_bad_rows(Dataset.from_list([{"prompt": turns, "images": "a.png"}])))[0]


@pytest.mark.parametrize(
    "prompt",
    [
        "w1",
        [{"role": "user", "content": "w1"}],
        [{"role": "user", "content": [{"type": "text", "text": "w1"}]}],
        [{"role": "user", "content": "w1"}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}],
    ],
)
def test_usable_prompts_have_no_fault(prompt):
    assert prompt_fault(prompt) is None
