"""
Two ranks of a tensor-parallel group, with TRL's own exchange of prompts and an engine that stands in for vLLM.

Run by `test_vllm_options.py`. The engine draws as vLLM's second model runner does: without a seed, from numpy's global state.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trl.generation import vllm_generation

from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.trl_seams import replaced
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration


class Params(SimpleNamespace):
    """Stands in for vLLM's `SamplingParams`."""

    seed = None

    def clone(self):
        return Params(**vars(self))


class Engine:
    """Keeps the prompts and seeds of each call."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts, sampling_params, use_tqdm):
        each = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        self.calls.append(
            [[prompt["prompt_token_ids"], params.seed] for prompt, params in zip(prompts, each, strict=True)]
        )
        return [self._output(*prompt) for prompt in self.calls[-1]]

    def _output(self, prompt_ids, seed):
        drawn = np.random if seed is None else np.random.default_rng(seed)
        token_ids = [int(token) for token in np.minimum(drawn.random(4) * 1000, 999)]
        logprobs = [{token: SimpleNamespace(logprob=-1.0, rank=1)} for token in token_ids]
        completion = SimpleNamespace(token_ids=token_ids, logprobs=logprobs)
        return SimpleNamespace(prompt_token_ids=prompt_ids, outputs=[completion])


def make_generation(seeds_requests, slow_seeds):
    generation = DAPOVLLMGeneration.__new__(DAPOVLLMGeneration)
    rank = torch.distributed.get_rank()
    vars(generation).update(
        mode="colocate", tensor_parallel_size=2, tp_group=torch.distributed.group.WORLD, enable_sleep_mode=False,
        llm=Engine(), model=torch.nn.Linear(1, 1), structured_outputs_regex=None, generation_kwargs={}, temperature=1.0,
        top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, max_completion_length=4, logprobs=0,
        accelerator=SimpleNamespace(process_index=rank, local_process_index=rank, num_processes=2),
        dapo_args=SimpleNamespace(seed=3, vllm_request_seeds=seeds_requests, vllm_engine_kwargs=None), slow_seeds=slow_seeds, _num_calls=0,
        _stays_awake=False, _keys=[], _lengths=[],
    )  # fmt: skip
    return generation


def main(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    results = []
    for seeds_requests, slow_seeds in ((None, False), (None, True), (True, True), (False, False)):
        generation = make_generation(seeds_requests, slow_seeds)
        returned = []
        keys = [SequenceKey(10 + rank, 0), SequenceKey(10 + rank, 1)]
        for names in (keys, keys[: 2 - rank], []):
            # As a reward function may do, on each rank as often as it likes.
            np.random.seed(100 + rank)
            prompts = [[rank, 0], [rank, 1]]
            if names:
                generation.name_requests(names, [5] * len(names))
            with replaced(vllm_generation, "SamplingParams", Params):
                prompt_ids, completion_ids, *_ = generation.generate(prompts, images=None, num_generations=1)
            assert prompt_ids == prompts
            returned.append(completion_ids)
        expected = [generation.request_seed(key, 5) for key in keys]
        results.append({"calls": generation.llm.calls, "returned": returned, "expected": expected})
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
