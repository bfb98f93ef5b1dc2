"""What a round keeps of a real vLLM: the same tokens and log-probabilities as TRL reads, in a fraction of the memory."""

import gc
import tracemalloc

import numpy as np
import pytest
from tiny_engine import engines_by, exact_logps, make_trainer, merged_copy, save_model

from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.trl_seams import decoded_so_far, hold_in_arrays
from trl_dapo.vllm_engine.sampled_logps import ask_for_little


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", autouse=True)
def engines():
    with engines_by(lambda backend, options: None):
        yield


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, tied=True)
    return folder


@pytest.fixture(scope="module")
def generation(tmp_path_factory, model_folder):
    options = {"max_steps": 1, "max_completion_length": 40, "soft_punish_cache": 0, "vllm_request_seeds": True}
    trainer = make_trainer(tmp_path_factory.mktemp("out"), model_folder, **options)
    trainer.vllm_generation.sync_weights()
    return trainer.vllm_generation


def sample(generation, num_prompts=16):
    generation.name_requests([SequenceKey(row, 0) for row in range(num_prompts)])
    return generation.generate([[3, 4, 5]] * num_prompts, images=None, num_generations=1)


def test_tokens_and_log_probabilities_are_those_that_trl_reads(generation):
    _, expected_ids, expected, _ = sample(generation)
    with generation.as_arrays() as apart:
        _, completion_ids, nothing, _ = sample(generation)
    assert [ids.tolist() for ids in completion_ids] == expected_ids
    assert nothing == [()] * 16
    for ids, logps in zip(completion_ids, expected, strict=True):
        np.testing.assert_array_equal(apart[id(ids)], np.float32([logp for (logp,) in logps]))
    # Whoever calls it directly, as a rollout function does, gets what TRL's gives.
    assert all(isinstance(logp, float) for row in expected for (logp,) in row)


def test_a_round_takes_a_fraction_of_the_memory(generation):
    def bytes_a_token(outputs_of):
        gc.collect()
        tracemalloc.start()
        kept = outputs_of()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return held / sum(map(len, kept[0]))

    def apart():
        with generation.as_arrays() as logps:
            _, completion_ids, *_ = sample(generation, 200)
        return completion_ids, [logps[id(ids)] for ids in completion_ids]

    plain = bytes_a_token(lambda: sample(generation, 200)[1:3])
    # Of a few tokens; of more, 8 bytes each.
    assert bytes_a_token(apart) < plain / 4


def test_text_is_made_only_where_a_stop_string_is_found_in_it():
    from vllm import SamplingParams

    plain, stopped = SamplingParams(logprobs=0), SamplingParams(logprobs=0, stop=["</answer>"])
    for params in (plain, stopped):
        ask_for_little(params)
    assert (plain.detokenize, stopped.detokenize) == (False, True)
    assert plain.flat_logprobs


def test_what_is_sampled_for_a_request_is_held_in_arrays_unless_text_is_made_of_it(generation):
    engine, params = generation.llm.llm_engine, generation.request_params()
    ask_for_little(params)
    stopped = params.clone()
    stopped.stop, stopped.detokenize = ["</answer>"], True
    ids = [
        engine.add_request(name, {"prompt_token_ids": [3, 4, 5]}, one)
        for name, one in (("held", params), ("stopped", stopped))
    ]
    assert [hold_in_arrays(engine, name) for name in ids] == [True, False]
    for _ in range(3):
        engine.step()
    tokens, logprobs = decoded_so_far(engine, ids[0])
    assert (tokens.typecode, logprobs.values.typecode) == ("i", "f")
    assert len(tokens) == len(logprobs) == 3
    # No object for a token.
    assert not any(map(len, (logprobs.logprobs, logprobs.token_ids, logprobs.ranks, logprobs.start_indices)))
    engine.abort_request(ids, internal=True)


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_trl_computes_with_the_log_probabilities_where_no_group_is_filtered(tmp_path, model_folder, is_training):
    options = {"dynamic_sampling": False, "max_steps": 1, "vllm_importance_sampling_correction": True}
    trainer = make_trainer(tmp_path, model_folder, **options)
    policy = merged_copy(trainer.model)
    trainer.model.train(is_training)
    rows = [trainer.train_dataset[row // 4] for row in range(16)]
    output = trainer._generate_and_score_completions(rows)
    for row in range(16):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        completion = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
        found = output["sampling_per_token_logps"][row][: len(completion)]
        assert (found - exact_logps(policy, prompt, completion)).abs().max() < 1e-4
