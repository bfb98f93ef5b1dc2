"""Evaluation with a real vLLM: the distribution and the greedy tokens of the model, and runs that go on."""

import collections
import json

import pytest
import torch
from datasets import Dataset
from tiny_engine import CPU_ENGINE, save_model  # noqa: F401 - its environment

from trl_dapo.evaluation.completion_sampler import SamplingSettings, load_sampler
from trl_dapo.evaluation.evaluator import evaluate
from trl_dapo.evaluation.vllm_sampler import VLLMSampler


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

PROMPTS = [[3, 4], [5, 6, 7], [8], [9, 10, 11, 12]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, tied=True)
    return folder


@pytest.fixture(scope="module")
def samplers(folder):
    options = {"enforce_eager": True, "gpu_memory_utilization": 0.3, "max_num_seqs": 64}
    return load_sampler(str(folder)), VLLMSampler(str(folder), engine_kwargs=options)


def test_greedy_tokens_are_those_of_transformers(samplers):
    settings = SamplingSettings(temperature=0.0, top_p=1.0, max_completion_length=20)
    mine, its = (sampler.sample(PROMPTS, ["a", "b", "c", "d"], settings) for sampler in samplers)
    assert mine == its


def test_same_weights_have_the_same_digest(samplers):
    transformers, vllm = (sampler.identity() for sampler in samplers)
    assert transformers["weights"] == vllm["weights"]
    assert (transformers["engine"], vllm["engine"]) == ("transformers", "vllm")


def test_completion_depends_on_its_key_alone(samplers):
    settings = SamplingSettings(top_p=0.9, max_completion_length=10)
    keys = ["a", "b", "c", "d"]
    together = samplers[1].sample(PROMPTS, keys, settings)
    alone = [samplers[1].sample([ids], [key], settings)[0] for ids, key in zip(PROMPTS, keys, strict=True)]
    assert together == alone
    assert samplers[1].sample([PROMPTS[0]] * 8, list("abcdefgh"), settings) != [together[0]] * 8


def test_first_tokens_have_the_distribution_of_the_model_within_its_nucleus(samplers):
    number, settings = 3000, SamplingSettings(top_p=0.7, max_completion_length=1)
    drawn = collections.Counter(
        ids[0] for ids in samplers[1].sample([PROMPTS[1]] * number, [str(key) for key in range(number)], settings)
    )
    with torch.no_grad():
        probabilities = samplers[0].model(torch.tensor([PROMPTS[1]])).logits[0, -1].double().softmax(-1)
    order = probabilities.argsort(descending=True).tolist()
    nucleus, total = [], 0.0
    for token in order:
        nucleus.append(token)
        total += probabilities[token].item()
        if total >= 0.7:
            break
    assert set(drawn) <= set(nucleus)
    for token in nucleus:
        share = probabilities[token].item() / total
        assert abs(drawn[token] / number - share) < 5 * (share * (1 - share) / number) ** 0.5


def test_evaluation_goes_on_with_the_engine_it_began_with(samplers, tmp_path):
    problems = Dataset.from_list([{"prompt": f"w{row} w3", "solution": str(row)} for row in range(6)])
    options = {"k": 2, "output_dir": tmp_path, "max_completion_length": 8}
    first = evaluate(samplers[1], problems, **options)
    assert first.num_sampled == 12
    lines = (tmp_path / "completions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "completions.jsonl").write_text("".join(lines[:5]))
    again = evaluate(samplers[1], problems, **options)
    assert again.num_sampled == 7
    resumed = (tmp_path / "completions.jsonl").read_text().splitlines()
    assert sorted(resumed) == sorted(line.strip() for line in lines)
    assert json.loads((tmp_path / "settings.json").read_text())["engine"] == "vllm"
    with pytest.raises(ValueError, match=r"engine is 'transformers' \(in the folder: 'vllm'\)"):
        evaluate(samplers[0], problems, **options)


def test_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a LoRA adapter"):
        VLLMSampler(str(tmp_path))
