"""Prompts that leave no room for a completion in the model's context are refused, passed over, or said."""

import pytest
from datasets import Dataset, IterableDataset
from test_trainer import RecordingTrainer
from tiny import first_token_reward, tiny_model, tiny_tokenizer, training_arguments
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from trl_dapo import DAPOConfig
from trl_dapo.data.context_length import context_length, find_long_prompts


def learned_positions(num_positions=32):
    """A model with a table of positions: beyond it generation ends with an IndexError."""
    config = GPT2Config(
        vocab_size=20, n_positions=num_positions, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def prompts(lengths):
    """Returns a dataset with prompts of these numbers of tokens."""
    return Dataset.from_list([{"prompt": " ".join(["w1"] * length), "row": row} for row, length in enumerate(lengths)])


LENGTHS = [2] * 13 + [25] + [2] * 6  # row 13: 25 + 8 > 32


def make_trainer(tmp_path, dataset, model=None, **overrides):
    extras = {"eval_dataset": overrides.pop("eval_dataset")} if "eval_dataset" in overrides else {}
    return RecordingTrainer(
        model=model or learned_positions(),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path, per_device_eval_batch_size=8, **overrides)),
        train_dataset=dataset,
        processing_class=tiny_tokenizer(),
        **extras,
    )


MESSAGE = (
    r"(?s){} has 1 row.*row 13: .* 25 tokens, and max_completion_length is 8, but .* 32 .*max_completion_length=7"
)


def test_row_that_would_run_out_of_positions_is_refused_with_both_lengths(tmp_path):
    with pytest.raises(ValueError, match=MESSAGE.format("train_dataset")):
        make_trainer(tmp_path, prompts(LENGTHS))
    with pytest.raises(ValueError, match=MESSAGE.format("eval_dataset")):
        make_trainer(tmp_path, prompts([2] * 20), eval_dataset=prompts(LENGTHS))
    # One token less fits, and does not run into the end.
    make_trainer(tmp_path, prompts([24] * 20), max_steps=1).train()
    make_trainer(tmp_path, prompts(LENGTHS), max_completion_length=7, max_steps=1).train()


def test_without_dynamic_sampling_it_is_said_only(tmp_path, capsys):
    make_trainer(tmp_path, prompts(LENGTHS), dynamic_sampling=False, max_steps=0, num_train_epochs=0).train()
    assert "! Row 13 of train_dataset has a prompt of 25 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(("length", "is_said"), [(56, False), (57, True)])
def test_rotary_positions_that_run_beyond_the_context_are_said(tmp_path, capsys, length, is_said):
    # They are computed for any length, but the model was trained up to 64.
    trainer = make_trainer(tmp_path, prompts([2] * 13 + [length] + [2] * 6), tiny_model(), max_steps=1)
    trainer.train()
    line = (
        f"  ! Row 13 of train_dataset has a prompt of {length} tokens, which with max_completion_length 8 goes beyond the 64 "
        "positions of the model."
    )
    assert (line in capsys.readouterr().out) == is_said


def test_completion_limit_beyond_the_context_is_said(tmp_path, capsys):
    make_trainer(tmp_path, prompts([2] * 20), tiny_model(), max_completion_length=64, max_steps=1).train()
    out = capsys.readouterr().out
    assert "  ! max_completion_length is 64, but the model has 64 positions for prompt and completion together." in out
    assert "Row 0" not in out


def test_row_of_a_stream_is_passed_over(tmp_path, caplog):
    stream = IterableDataset.from_generator(lambda: iter(list(prompts(LENGTHS))))
    trainer = make_trainer(tmp_path, stream, max_steps=6, shuffle_dataset=False)
    trainer.train()
    rows = [row for rounds, _, _ in trainer.batches for sampled, _, _ in rounds for row in sampled]
    assert max(rows) > 13
    assert 13 not in rows
    assert "Row 13 of train_dataset is passed over: the prompt has 25 tokens" in caplog.text


def test_context_is_read_from_the_configuration():
    assert context_length(learned_positions().config) == 32
    assert context_length(LlamaConfig(max_position_embeddings=64)) == 64
    stretched = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    assert context_length(LlamaConfig(max_position_embeddings=64, rope_parameters=stretched)) == 256
    assert context_length(LlamaConfig(max_position_embeddings=256, rope_parameters=stretched)) == 256
    assert context_length(object()) is None


def test_long_prompts_are_those_counted_by_the_tokenizer():
    calls = []

    def tokenize(texts):
        calls.extend(texts)
        return [text.split() for text in texts]

    lengths = [3, 9, 10, 11, 2, 40]
    found = list(find_long_prompts(prompts(lengths), tokenize, most_tokens=10))
    assert found == [(3, 11), (5, 40)]
    # A short text needs no tokenizer: no text has more tokens than bytes. The first row is the measure of a template.
    assert len(calls) == 1 + sum(length * 3 - 1 + 3 > 10 for length in lengths)
