"""What `generation_kwargs` say of the end of a completion holds for engine, metrics, masks and punishment alike."""

import pytest
import torch
from test_trainer import make_trainer
from tiny import training_arguments

from trl_dapo import DAPOConfig
from trl_dapo.sampling.generation_end import GenerationEnd


EOS, PAD = 2, 0


@pytest.mark.parametrize("dynamic_sampling", [True, False])
def test_limit_in_generation_kwargs_cuts_masks_and_punishes(tmp_path, dynamic_sampling):
    trainer = make_trainer(
        tmp_path,
        dynamic_sampling=dynamic_sampling,
        generation_kwargs={"max_new_tokens": 4},
        mask_truncated_completions=True,
        soft_punish_cache=2,
        max_steps=2,
    )
    trainer.train()
    num_cut = 0
    for rounds, record, output in trainer.batches:
        _, rewards, completion_ids = record if dynamic_sampling else rounds[0]
        for row, ids in enumerate(completion_ids):
            is_cut = len(ids) == 4 and ids[-1] != EOS
            assert output["completion_mask"][row].sum() == (0 if is_cut else len(ids))
            # Eq. 13 with L_max = 4 and L_cache = 2.
            assert rewards[row][1] == {1: 0.0, 2: 0.0, 3: -0.5, 4: -1.0}[len(ids)]
            num_cut += is_cut
    assert num_cut > 0
    if dynamic_sampling:
        sampled = [ids for _, _, completions in trainer.batches[0][0] for ids in completions]
        shares = [len(ids) == 4 and ids[-1] != EOS for ids in sampled]
        assert trainer.state.log_history[0]["completions/clipped_ratio"] == pytest.approx(sum(shares) / len(shares))


def test_announcement_counts_the_tokens_that_can_be_sampled(tmp_path, capsys):
    make_trainer(tmp_path, generation_kwargs={"max_new_tokens": 4}, max_steps=1).train()
    assert "8 to train on, at most 32 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("eos_token_id", [5, [EOS, 5]])
def test_other_end_tokens_end_a_completion_and_padding_does_not_train(tmp_path, eos_token_id):
    trainer = make_trainer(
        tmp_path, generation_kwargs={"eos_token_id": eos_token_id}, mask_truncated_completions=True, max_steps=4
    )
    trainer.train()
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
    num_ended = 0
    for rounds, (_, _, trained_ids), output in trainer.batches:
        for _, _, completions in rounds:
            # Nothing follows an end token, and what has none ran into the limit of 8.
            assert all(not ends & set(ids[:-1]) for ids in completions)
            assert all(ids[-1] in ends or len(ids) == 8 for ids in completions)
        for row, ids in enumerate(trained_ids):
            assert output["completion_mask"][row].sum() == (len(ids) if ids[-1] in ends else 0)
            num_ended += ids[-1] == 5
    assert num_ended > 0


@pytest.mark.parametrize(
    ("options", "use_vllm", "fix"),
    [
        ({"stop": ["x"]}, False, "Use eos_token_id with the tokens, or use_vllm=True"),
        ({"stop_strings": ["x"]}, False, "or use_vllm=True with stop"),
        ({"stop_token_ids": [5]}, False, "Use eos_token_id"),
        ({"max_tokens": 4}, False, "Use max_new_tokens"),
        ({"max_length": 4}, False, "Use max_new_tokens"),
        ({"max_time": 4.0}, False, "Use max_new_tokens"),
        ({"max_new_tokens": 4}, True, "Use max_tokens"),
        ({"eos_token_id": 5}, True, "Use stop_token_ids"),
    ],
)
def test_option_of_the_other_engine_is_refused_with_the_right_one(options, use_vllm, fix):
    (name,) = options
    with pytest.raises(ValueError, match=f"generation_kwargs has '{name}'.*{fix}"):
        GenerationEnd.read(options, 8, use_vllm)


def test_option_without_effect_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="generation_kwargs has 'stop'"):
        DAPOConfig(**training_arguments(tmp_path, generation_kwargs={"stop": ["x"]}))


def test_options_of_vllm_are_read_as_vllm_reads_them():
    options = {"max_tokens": 4, "stop": ["a", "b"], "stop_token_ids": [5], "ignore_eos": True}
    end = GenerationEnd.read(options, 8, use_vllm=True, max_sequence_length=30)
    assert end == GenerationEnd(4, 30, ("a", "b"), (5,), ends_at_eos=False)
    assert end.end_tokens([EOS]) == [5]
    assert GenerationEnd.read({"temperature": 0.5}, 8, use_vllm=True) == GenerationEnd(8)


def test_sequence_limit_holds_where_completions_have_none():
    assert GenerationEnd.read({"max_length": 20}, None) == GenerationEnd(None, 20)


def test_padding_after_the_end_is_cut_as_trl_cuts_it(tmp_path):
    trainer = make_trainer(tmp_path, generation_kwargs={"eos_token_id": 5}, max_steps=1)
    trainer.train()
    output = trainer.batches[0][2]
    for ids, mask in zip(output["completion_ids"], output["completion_mask"], strict=True):
        live = ids[mask.bool()].tolist()
        assert 5 not in live[:-1]
        assert torch.equal(ids[len(live) :], torch.full_like(ids[len(live) :], PAD))
