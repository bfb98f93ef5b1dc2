"""Speculative decoding in a real vLLM: it samples from the policy, with its log-probabilities, in rounds and streamed."""

import itertools
import random
from importlib.util import find_spec

import pytest
import torch
from tiny import tiny_tokenizer
from tiny_engine import (
    OPTIONS,
    VOCABULARY,
    engines_by,
    exact_logps,
    largest_gap,
    make_trainer,
    merged_copy,
    save_model,
)
from transformers import LlamaForCausalLM

from trl_dapo import DAPOTrainer, StaleEngineError
from trl_dapo.config.vllm_options import draft_method
from trl_dapo.evaluation.completion_sampler import SamplingSettings
from trl_dapo.evaluation.vllm_sampler import VLLMSampler
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ROUNDING = 1e-4
# Factor on the logits of a policy that says nearly the same of a prompt each time.
SURER = 4.0
DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
NGRAM = OPTIONS | {"speculative_config": DRAFTS, "max_num_seqs": 6}
# With 24 drafts, which is the default, vLLM would draft nothing in the last 24 positions of the context, of which there are 64.
SUFFIX = OPTIONS | {"speculative_config": {"method": "suffix", "num_speculative_tokens": 8}, "max_num_seqs": 6}
BUILD = DAPOVLLMGeneration._build_engine
RUN = {"vllm_engine_kwargs": NGRAM, "max_completion_length": 40, "soft_punish_cache": 8, "learning_rate": 5e-3}
needs_suffix = pytest.mark.skipif(
    find_spec("arctic_inference") is None,
    reason="the suffix method needs the package arctic-inference 0.1.1, which `make vllm-env` builds where a C++ compiler is",
)
# Those of "suffix" run first: see conftest.py.
BOTH = pytest.mark.parametrize(
    "options", [pytest.param(SUFFIX, id="suffix", marks=needs_suffix), pytest.param(NGRAM, id="ngram")]
)


PROMPTS = [[3, 4, 5, 6, 7, 8, 3, 4, 5, 6, 7 + number % 3] for number in range(60)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A policy that repeats itself, so that many drafts are accepted and many are not."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, tied=False)
    save_sharper(folder, folder, 3.0)
    return folder


def save_sharper(source, folder, factor):
    """Saves a model whose logits are those of another one, times a factor."""
    model = LlamaForCausalLM.from_pretrained(source)
    model.lm_head.weight.data.mul_(factor)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module", autouse=True)
def engine():
    with engines_by(lambda backend, options: draft_method(backend.dapo_args.vllm_engine_kwargs)):
        yield


@pytest.fixture
def as_vllm_has_it(monkeypatch):
    """The rejection sampler of vLLM's CPU port without the correction."""
    from vllm.v1.sample import rejection_sampler

    def with_its_kernel(x, cu_num_tokens, num_tokens, replace_from=0, replace_to=0):
        # What `new_empty` finds in memory depends on what was there: here the values of another request.
        spread = torch.full((num_tokens,), 4.0, dtype=x.dtype)
        rejection_sampler._expand(spread, x, cu_num_tokens, replace_from, replace_to)
        return spread

    monkeypatch.setattr(rejection_sampler, "expand_batch_to_tokens", with_its_kernel)


def distributions(policy, prompt, completion, temperature, top_k):
    """Returns the log-probabilities of all tokens where each one of a completion was sampled, in float64."""
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1] / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    return logits.log_softmax(-1)


def sampled(trainer, temperature, top_k):
    """Samples 60 completions of 48 tokens, each with a seed, and returns each prompt with its tokens and their log-probabilities."""
    from vllm import SamplingParams

    trainer.vllm_generation.sync_weights()
    params = [
        SamplingParams(
            max_tokens=48,
            logprobs=0,
            temperature=temperature,
            top_k=top_k,
            ignore_eos=True,
            detokenize=False,
            seed=seed,
        )
        for seed in range(60)
    ]
    outputs = trainer.vllm_generation.llm.generate(
        [{"prompt_token_ids": prompt} for prompt in PROMPTS], params, use_tqdm=False
    )
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        (completion,) = output.outputs
        logps = [of[id].logprob for id, of in zip(completion.token_ids, completion.logprobs, strict=True)]
        yield prompt, completion.token_ids, logps


def deviations(policy, samples, temperature=1.0, top_k=0):
    """
    Returns how far completions are from a policy.

    Standard errors between the surprisal of all tokens and its mean under the policy, and between the number of each token
    that is not rare and its mean, the largest; and the largest distance of a log-probability.
    """
    surprise, surprise_variance, gap = 0.0, 0.0, 0.0
    counts = torch.zeros(3, policy.config.vocab_size, dtype=torch.float64)  # seen, expected, their variance
    for prompt, completion, given in samples:
        ids = torch.tensor(completion)
        logps = distributions(policy, prompt, completion, temperature, top_k)
        exact = logps.gather(1, ids.unsqueeze(1)).squeeze(1)
        gap = max(gap, (torch.tensor(given) - exact).abs().max().item())
        probabilities, surprisals = logps.exp(), -logps.clamp_min(-700)
        mean = (probabilities * surprisals).sum(-1)
        surprise += (-exact.clamp_min(-700) - mean).sum().item()
        surprise_variance += ((probabilities * surprisals**2).sum(-1) - mean**2).sum().item()
        counts[0] += torch.bincount(ids, minlength=counts.shape[1])
        counts[1] += probabilities.sum(0)
        counts[2] += (probabilities * (1 - probabilities)).sum(0)
    # The number of a rare token is not about normal.
    seen, expected, variance = counts[:, counts[2] > 9]
    per_token = ((seen - expected) / variance.sqrt()).abs().max().item()
    return abs(surprise) / surprise_variance**0.5, per_token, gap


@pytest.fixture(scope="module")
def two_passes(engine, model_folder, tmp_path_factory):
    """
    The trainer of a run with the suffix method, and what its engine sampled of the same prompts, twice, with the same weights.

    Of each pass: prompts, tokens and log-probabilities; the passes of single sequences, and how many drafts were accepted. And the
    seeds of all requests.
    """
    folder, choose = tmp_path_factory.mktemp("surer"), random.Random(0)
    save_sharper(model_folder, folder, SURER)
    prompts = [[choose.randrange(3, VOCABULARY) for _ in range(11)] for _ in range(60)]
    options = RUN | {"vllm_engine_kwargs": SUFFIX}
    trainer = make_trainer(folder, folder, cls=DAPOTrainer, dynamic_sampling=True, **options)
    generation, passes, seeds = trainer.vllm_generation, [], []
    generation.sync_weights()
    load, generate = generation.load, generation.llm.generate

    def generate_and_look(prompts, sampling_params, **options):
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params]
        seeds.extend(one.seed for one in params)
        return generate(prompts, sampling_params, **options)

    # Without seeds of requests, what is drawn depends on torch's generator.
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation.llm, "generate", generate_and_look)
        for number in range(2):
            passes_before, accepted_before = load._num_passes, load._num_accepted
            generation.name_requests([SequenceKey(number * len(prompts) + row, 0) for row in range(len(prompts))])
            _, completions, logps, *_ = generation.generate(prompts, images=None, num_generations=1)
            of_tokens = [[logp for (logp,) in of] for of in logps]
            samples = list(zip(prompts, completions, of_tokens, strict=True))
            passes.append((samples, load._num_passes - passes_before, load._num_accepted - accepted_before))
    return trainer, passes, seeds


@needs_suffix
def test_suffix_drafts_leave_distribution_and_log_probabilities_as_they_are(two_passes):
    trainer, passes, _ = two_passes
    for samples, _, _ in passes:
        surprisal, per_token, gap = deviations(merged_copy(trainer.model), samples)
        assert surprisal < 5
        assert per_token < 5
        # Logits are as much larger, and so is their rounding.
        assert gap < SURER * ROUNDING


@needs_suffix
def test_more_suffix_drafts_are_accepted_when_prompts_come_again(two_passes):
    _, passes, _ = two_passes
    tokens_a_pass = [sum(len(ids) for _, ids, _ in samples) / num_passes for samples, num_passes, _ in passes]
    assert 1.1 < tokens_a_pass[0] < tokens_a_pass[1]
    # One in ten at least is a draft.
    for samples, _, num_accepted in passes:
        assert num_accepted > sum(len(ids) for _, ids, _ in samples) / 10


@needs_suffix
def test_requests_have_no_seeds_where_drafts_come_from_other_completions(two_passes):
    trainer, _, seeds = two_passes
    assert set(seeds) == {None}
    assert trainer.vllm_generation.request_seed(SequenceKey(0, 0)) is None


@pytest.fixture
def trainer(model_folder, tmp_path):
    return make_trainer(tmp_path, model_folder, cls=DAPOTrainer, dynamic_sampling=True, **RUN)


@BOTH
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 5)])
def test_tokens_have_the_distribution_of_the_policy(model_folder, tmp_path, temperature, top_k, options):
    options = RUN | {"vllm_engine_kwargs": options}
    trainer = make_trainer(tmp_path, model_folder, cls=DAPOTrainer, dynamic_sampling=True, **options)
    samples = sampled(trainer, temperature, top_k)
    surprisal, per_token, gap = deviations(merged_copy(trainer.model), samples, temperature, top_k)
    assert surprisal < 5
    assert per_token < 5
    assert gap < ROUNDING
    # One in ten at least is a draft.
    load = trainer.vllm_generation.load
    assert load._num_accepted > 288
    assert load._num_drafted > load._num_accepted * 1.1


def test_without_the_correction_the_distribution_is_another_one_and_the_canary_says_so(
    trainer, model_folder, tmp_path, as_vllm_has_it
):
    surprisal, per_token, gap = deviations(merged_copy(trainer.model), sampled(trainer, 1.0, 0))
    assert max(surprisal, per_token) > 10
    assert gap > 0.5
    trainer = make_trainer(tmp_path, model_folder, dynamic_sampling=True, reward=even_sum_reward, **RUN)
    with pytest.raises(StaleEngineError):
        trainer.train()


def even_sum_reward(completion_ids, **kwargs):
    """Half of the completions are right."""
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]


def logged(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


@BOTH
def test_rounds_sample_with_the_weights_of_the_last_optimizer_step(model_folder, tmp_path, options):
    options = RUN | {"vllm_engine_kwargs": options, "max_steps": 6}
    trainer = make_trainer(tmp_path, model_folder, dynamic_sampling=True, reward=even_sum_reward, **options)
    trainer.train()
    steps = {step for step, _, _ in trainer.rounds}
    assert steps == {0, 2, 4}
    gaps = [largest_gap(generated, policy) for _, policy, generated in trainer.rounds]
    assert max(gaps) < ROUNDING
    # The weights before are others.
    by_step = {step: (policy, generated) for step, policy, generated in trainer.rounds}
    assert largest_gap(by_step[4][1], by_step[2][0]) > 100 * ROUNDING
    assert 0.1 < max(logged(trainer, "dapo/vllm/frac_drafts_accepted")) < 1
    most = 1 + trainer.args.vllm_engine_kwargs["speculative_config"]["num_speculative_tokens"]
    assert 1 < max(logged(trainer, "dapo/vllm/tokens_per_pass")) < most


class CollectingTrainer(DAPOTrainer):
    """Keeps each batch, with the policy that was trained when it was collected."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.collected = []
        collect = self.dynamic_sampler.collect

        def collect_and_keep(*args, **kwargs):
            policy = merged_copy(self.model)
            self.collected.append((policy, collect(*args, **kwargs)))
            return self.collected[-1][1]

        self.dynamic_sampler.collect = collect_and_keep


@BOTH
def test_streamed_completions_go_on_under_new_weights(model_folder, tmp_path, options):
    options = RUN | {"vllm_engine_kwargs": options, "max_steps": 12}
    options |= {"refill": "stream", "surplus": "carry", "max_prompts_per_round": 12}
    trainer = make_trainer(
        tmp_path, model_folder, cls=CollectingTrainer, dynamic_sampling=True, reward=even_sum_reward, **options
    )
    trainer.train()
    num_mixed, earlier = 0, None
    for policy, batch in trainer.collected:
        for rollout, is_filler in zip(batch.rollouts, batch.is_filler, strict=True):
            if is_filler:
                continue
            num_old = 0 if rollout.old_logps is None else len(rollout.old_logps)
            num_mixed += 0 < num_old < len(rollout.completion_ids)
            ids = rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()
            exact = exact_logps(policy, *ids)
            if num_old:
                exact[:num_old] = exact_logps(earlier, *ids)[:num_old]
            assert (rollout.sampling_logps - exact).abs().max() < ROUNDING
        earlier = policy
    assert num_mixed >= 3
    assert max(logged(trainer, "dapo/vllm/frac_drafts_accepted")) > 0.1
    assert max(logged(trainer, "dapo/vllm/logp_gap")) < ROUNDING


def test_withdrawn_tokens_begin_the_completion_and_a_seed_draws_the_same_in_any_company(model_folder, tmp_path):
    options = RUN | {"refill": "stream", "max_steps": 1}
    trainer = make_trainer(
        tmp_path, model_folder, cls=DAPOTrainer, dynamic_sampling=True, reward=even_sum_reward, **options
    )
    trainer.train()
    requests, policy = trainer.dynamic_sampler.refill.groups.engine, merged_copy(trainer.model)
    keys = [SequenceKey(100 + number // 4, number % 4) for number in range(16)]
    prompts = {key: [3 + key.position % 7, 5] for key in keys}

    def sample(keys, withdrawn_at=()):
        """Returns what was decoded of each, where some are withdrawn after so many steps."""
        requests.begin()
        for key in keys:
            requests.submit(key, prompts[key], [])
        decoded = {}
        for number in itertools.count(1):
            decoded |= requests.step()
            decoded |= requests.withdraw(dict(withdrawn_at).get(number, []))
            if not requests.num_unfinished:
                return {key: (one.token_ids.tolist(), one.logps.tolist()) for key, one in decoded.items()}

    whole = sample(keys)
    lengths = set()
    for withdrawn_at in ((), {2: keys[0:2], 5: [*keys[2:4], keys[15]], 9: keys[5:12]}):
        for key, (ids, logps) in sample(keys[::-1], withdrawn_at).items():
            assert ids == whole[key][0][: len(ids)]
            assert len(logps) == len(ids)
            lengths.add(len(ids))
            if ids:
                gap = torch.tensor(logps, dtype=torch.float64) - exact_logps(policy, prompts[key], ids)
                assert gap.abs().max() < ROUNDING
    assert len(lengths) > 3
    alone = {key: sample([key])[key][0] for key in keys[::5]}
    assert alone == {key: whole[key][0] for key in keys[::5]}


def test_evaluation_has_the_correction_too(trainer, model_folder, as_vllm_has_it, monkeypatch):
    from vllm.v1.sample import rejection_sampler

    # vLLM's CPU port starts no second engine in a process that has drafted with n-grams.
    monkeypatch.setattr("vllm.LLM", lambda **options: trainer.vllm_generation.llm)
    uncorrected = rejection_sampler.expand_batch_to_tokens
    sampler = VLLMSampler(str(model_folder), engine_kwargs=NGRAM)
    assert rejection_sampler.expand_batch_to_tokens is not uncorrected
    settings = SamplingSettings(top_p=0.9, max_completion_length=24)
    prompts, keys = [[3, 4, 5, 3, 4], [6, 7, 6, 7], [8, 8, 8]], ["a", "b", "c"]
    together = sampler.sample(prompts, keys, settings)
    alone = [sampler.sample([ids], [key], settings)[0] for ids, key in zip(prompts, keys, strict=True)]
    assert together == alone
    with pytest.raises(
        ValueError, match="method of 'speculative_config' to 'suffix': with it a completion depends on"
    ):
        VLLMSampler(str(model_folder), engine_kwargs={"speculative_config": {"method": "suffix"}})


def test_second_model_runner_is_refused(model_folder, tmp_path, trainer, monkeypatch):
    monkeypatch.setattr("trl_dapo.vllm_engine.generation.is_second_model_runner", lambda runner: True)
    monkeypatch.setattr("vllm.LLM", lambda **options: trainer.vllm_generation.llm)
    monkeypatch.setattr(DAPOVLLMGeneration, "_build_engine", BUILD)
    with pytest.raises(
        ValueError, match=r"has a speculative_config, but vLLM has its Model Runner V2.* Unset VLLM_USE"
    ):
        make_trainer(tmp_path, model_folder, dynamic_sampling=True, **RUN)
