"""The log-probabilities of sampled tokens, out of what vLLM says of them."""

from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl.generation import vllm_generation

from trl_dapo.vllm_engine import generation as generation_module
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration
from trl_dapo.vllm_engine.sampled_logps import sampled_logps


class Flat(list):
    """As vLLM's: a sequence of positions, and the log-probabilities of all of them in one list."""

    def __init__(self, positions):
        super().__init__({token: SimpleNamespace(logprob=logp) for token, logp in position} for position in positions)
        self.logprobs = [logp for position in positions for _, logp in position]


ALONE = [[(7, -0.5)], [(8, -1.5)], [(7, float("nan"))]]
# The sampled token first, then the most likely ones, as vLLM has them.
AMONG_OTHERS = [[(7, -0.5), (3, -0.25)], [(8, -1.5), (7, -2.0)], [(7, float("nan")), (9, -1.0)]]


@pytest.mark.parametrize("positions", [ALONE, AMONG_OTHERS], ids=["alone", "among others"])
@pytest.mark.parametrize("kind", [Flat, lambda positions: list(Flat(positions))], ids=["flat", "objects"])
def test_they_are_those_of_the_sampled_tokens(positions, kind):
    found = sampled_logps([7, 8, 7], kind(positions))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([-0.5, -1.5, np.nan], np.float32))


def test_an_array_is_copied_as_long_as_it_is():
    values = array("f", [-0.5, float("nan")])
    held = type("Held", (), {"values": values, "logprobs": [], "__len__": lambda self: 2})()
    found = sampled_logps(array("i", [7, 8]), held)
    np.testing.assert_array_equal(found, np.array([-0.5, np.nan], np.float32))
    assert found.base is None


def test_token_of_which_the_engine_says_nothing_has_none():
    np.testing.assert_array_equal(sampled_logps([7, 8], None), np.array([np.nan, np.nan], np.float32))
    found = sampled_logps([7, 9], list(Flat(ALONE[:2])))
    np.testing.assert_array_equal(found, np.array([-0.5, np.nan], np.float32))


class Engine:
    """A stand-in for vLLM: `generate` steps until all is finished, and each step finishes one request."""

    def __init__(self):
        self.llm_engine = self
        self.unfinished = []

    def add_request(self, request_id):
        return request_id

    def step(self):
        token_ids = [3, 4 + len(self.unfinished)]
        logprobs = [{token: SimpleNamespace(logprob=-0.5 * token, rank=1)} for token in token_ids]
        completion = SimpleNamespace(token_ids=token_ids, logprobs=logprobs)
        prompt_ids = self.unfinished.pop(0)["prompt_token_ids"]
        return [SimpleNamespace(prompt_token_ids=prompt_ids, outputs=[completion], finished=True)]

    def generate(self, prompts, sampling_params, use_tqdm):
        self.unfinished, outputs = list(prompts), []
        while self.unfinished:
            outputs += self.llm_engine.step()
        return outputs


def test_trl_takes_completions_without_log_probabilities(monkeypatch):
    generation = DAPOVLLMGeneration.__new__(DAPOVLLMGeneration)
    vars(generation).update(
        mode="colocate", tensor_parallel_size=1, enable_sleep_mode=False, llm=Engine(), model=torch.nn.Linear(1, 1),
        structured_outputs_regex=None, generation_kwargs={}, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0,
        repetition_penalty=1.0, max_completion_length=4, logprobs=0, accelerator=None, _stays_awake=False, _keys=[],
        _lengths=[], dapo_args=SimpleNamespace(seed=0, vllm_request_seeds=False), slow_seeds=False,
    )  # fmt: skip
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    monkeypatch.setattr(generation_module, "ask_for_little", lambda params: None)
    prompts = [[1], [2], [3]]
    _, expected_ids, expected, _ = generation.generate(prompts, images=None, num_generations=1)
    assert expected == [[[-1.5], [-0.5 * token]] for token in (7, 6, 5)]
    with generation.as_arrays() as apart:
        prompt_ids, completion_ids, nothing, _ = generation.generate(prompts, images=None, num_generations=1)
    assert (prompt_ids, nothing) == (prompts, [()] * 3)
    assert [ids.dtype for ids in completion_ids] == [np.int32] * 3
    assert [ids.tolist() for ids in completion_ids] == expected_ids
    assert [apart[id(ids)].tolist() for ids in completion_ids] == [[logp for (logp,) in row] for row in expected]
