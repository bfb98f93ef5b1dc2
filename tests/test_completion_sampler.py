"""Keyed sampling draws from the model's distribution, whatever is in the batch."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from trl_dapo.evaluation.completion_sampler import KeyedPick, SamplingSettings, TransformersSampler, load_sampler


PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w3 w3", "w11 w2"]


@pytest.fixture(scope="module")
def sampler():
    return TransformersSampler(tiny_model(), tiny_tokenizer())


def sample_all(sampler, settings, batch_size):
    ids = sampler.encode(PROMPTS)
    keys = [f"key {number}" for number in range(len(ids))]
    completions = []
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        completions += sampler.sample(ids[part], keys[part], settings)
    return completions


def test_completions_do_not_depend_on_the_batch(sampler):
    settings = SamplingSettings(top_p=0.9, max_completion_length=20)
    alone = sample_all(sampler, settings, 1)
    assert alone == sample_all(sampler, settings, 2) == sample_all(sampler, settings, 5)
    assert len({tuple(ids) for ids in alone}) == 5
    assert all(len(ids) == 20 or ids[-1] == 2 for ids in alone)
    assert all(2 not in ids[:-1] for ids in alone)


def test_seed_and_key_change_the_completion(sampler):
    ids = sampler.encode(["w4"])
    settings = SamplingSettings(top_p=1.0, max_completion_length=20)
    first = sampler.sample(ids, ["a"], settings)
    assert first == sampler.sample(ids, ["a"], settings)
    assert first != sampler.sample(ids, ["b"], settings)
    assert first != sampler.sample(ids, ["a"], SamplingSettings(top_p=1.0, max_completion_length=20, seed=1))


def test_first_tokens_have_the_probabilities_of_temperature_and_nucleus(sampler):
    ids = sampler.encode(["w4"])[0]
    num_draws, temperature, top_p = 3000, 0.8, 0.8
    settings = SamplingSettings(temperature=temperature, top_p=top_p, max_completion_length=1)
    drawn = sampler.sample([ids] * num_draws, [str(number) for number in range(num_draws)], settings)
    with torch.no_grad():
        logits = sampler.model(torch.tensor([ids])).logits[0, -1].double()
    weights = [math.exp(logit / temperature) for logit in logits.tolist()]
    ranked = sorted(range(len(weights)), key=lambda token: -weights[token])
    nucleus, mass = [], 0.0
    while mass < top_p:
        nucleus.append(ranked[len(nucleus)])
        mass += weights[nucleus[-1]] / sum(weights)
    assert {completion[0] for completion in drawn} <= set(nucleus)
    for token in nucleus:
        expected = weights[token] / sum(weights[member] for member in nucleus)
        observed = sum(completion[0] == token for completion in drawn) / num_draws
        assert observed == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / num_draws))


def test_picks_are_never_impossible_tokens():
    scores = torch.full((200, 6), -torch.inf)
    scores[:, 2], scores[:, 4] = 0.0, -20.0
    picked = KeyedPick([str(row) for row in range(200)], seed=0)(torch.zeros(200, 1), scores).argmax(dim=1)
    assert set(picked.tolist()) <= {2, 4}


def test_temperature_zero_is_greedy_and_the_models_own_settings_do_not_matter(sampler):
    ids = sampler.encode(["w5 w6 w7"])
    with torch.no_grad():
        sequence = list(ids[0])
        while len(sequence) < 13 and sequence[-1] != 2:
            sequence.append(int(sampler.model(torch.tensor([sequence])).logits[0, -1].argmax()))
    own = sampler.model.generation_config
    own.repetition_penalty, own.do_sample, own.top_k = 5.0, True, 1
    sampler.model.train()
    settings = SamplingSettings(temperature=0, max_completion_length=10)
    try:
        assert sampler.sample(ids, ["a"], settings) == [sequence[3:]]
        assert sampler.model.training
        assert sampler.model.generation_config is own
    finally:
        own.repetition_penalty, own.do_sample, own.top_k = None, None, None
        sampler.model.eval()


def test_identity_follows_the_weights_and_not_the_place(sampler, tmp_path):
    sampler.model.save_pretrained(tmp_path)
    sampler.tokenizer.save_pretrained(tmp_path)
    loaded = load_sampler(str(tmp_path))
    assert loaded.identity() == sampler.identity()
    assert loaded.end_token_ids == [2]
    assert loaded.context_length == 64
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += 1e-3
    assert loaded.identity() != sampler.identity()
    assert load_sampler(str(tmp_path), dtype="bfloat16").identity() != sampler.identity()


def test_lora_adapter_is_sampled_wrapped_and_from_its_folder(tmp_path):
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    own = adapted.get_base_model().generation_config
    settings = SamplingSettings(max_completion_length=12)
    wrapped = sample_all(TransformersSampler(adapted, tiny_tokenizer()), settings, 5)
    assert adapted.get_base_model().generation_config is own
    assert sample_all(load_sampler(str(tmp_path / "adapter")), settings, 5) == wrapped
    assert sample_all(TransformersSampler(base, tiny_tokenizer()), settings, 5) != wrapped


def test_conversations_need_a_chat_template(sampler):
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        sampler.encode([[{"role": "user", "content": "w1"}]])
