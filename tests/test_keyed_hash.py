"""The hash of all seeded decisions. A run with the same seed makes the same decisions in every release of the package."""

import hashlib
import sys
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from trl_dapo.evaluation.completion_sampler import SamplingSettings
from trl_dapo.evaluation.vllm_sampler import VLLMSampler
from trl_dapo.report.group_sample import GroupSample
from trl_dapo.sampling.prompt_stream import PromptStream, SequenceKey, keyed_hash
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration


@given(st.text(), st.integers(1, 64), st.binary(max_size=64))
def test_number_is_the_bytes_of_blake2b_with_the_lowest_first(text, num_bytes, key):
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=key, digest_size=num_bytes).digest()
    expected = sum(byte * 256**place for place, byte in enumerate(digest))
    assert keyed_hash(text.encode("utf-8", "surrogatepass"), num_bytes, key) == expected
    if text.isascii():
        assert keyed_hash(text, num_bytes, key) == expected


# The values below were written down before these callers shared one function.


def test_order_of_the_prompts_stays():
    stream = PromptStream(1000, seed=7)
    stream.seek(995)
    assert [draw.index for draw in stream.peek(10)] == [996, 224, 798, 664, 1, 945, 58, 436, 719, 69]


def test_groups_chosen_for_the_record_stay():
    sample = GroupSample(3, seed=5)
    sample.next_batch()
    for position in range(50):
        sample.offer(position)
    assert sorted(sample.chosen) == [3, 18, 28]


def test_seed_of_a_vllm_request_in_training_stays():
    engine = SimpleNamespace(_seeds_requests=True, dapo_args=SimpleNamespace(seed=11))
    assert (
        DAPOVLLMGeneration.request_seed(engine, SequenceKey(position=4, sample=2), num_tokens=9) == 23548299660228362
    )


def test_seed_of_a_vllm_request_in_evaluation_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    seeds = []

    def generate(prompts, params, use_tqdm):
        seeds.extend(request.seed for request in params)
        return []

    sampler = SimpleNamespace(llm=SimpleNamespace(generate=generate), end_token_ids=[0])
    VLLMSampler.sample(sampler, [[1]], ["ab/1"], SamplingSettings(seed=3))
    assert seeds == [55442463793519348]
