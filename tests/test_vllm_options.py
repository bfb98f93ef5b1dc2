"""What the vLLM engine is built with, and when it sleeps. Without vLLM: a real one is in tests/with_vllm."""

import json
import types

import numpy as np
import pytest
import shared_engine
from forked import run_ranks
from tiny import training_arguments

from trl_dapo import DAPOConfig
from trl_dapo.config.vllm_options import check_engine_kwargs, check_speculation, engine_options
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration


KNOWN = {"dtype", "enforce_eager", "max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "seed", "model"}


@pytest.mark.parametrize(
    ("options", "mode", "message"),
    [
        ('enforce_eager=True', "colocate", "vllm_engine_kwargs is 'enforce_eager=True', but must be a mapping"),
        ({"dtype": "float32"}, "server", "vllm_mode is 'server'.* Pass them to `trl-dapo serve`"),
        ({"enforce_eagre": True}, "colocate", "sets 'enforce_eagre' to True.* no such option. Did you mean 'enforce_eager'"),
        ({"zzz": 1}, "colocate", "sets 'zzz' to 1.* Did you mean a field of GRPOConfig"),
        ({"tensor_parallel_size": 2}, "colocate", "'tensor_parallel_size' to 2.* Set vllm_tensor_parallel_size instead"),
        ({"max_model_len": 64}, "colocate", "Set vllm_max_model_length instead"),
        ({"seed": 3}, "colocate", "sets 'seed' to 3, but this option is not free. The trainer depends on its own value"),
    ],
)  # fmt: skip
def test_option_that_cannot_reach_the_engine_is_refused_with_the_fix(options, mode, message):
    with pytest.raises(ValueError, match=message):
        check_engine_kwargs(options, mode, KNOWN)


def test_known_options_pass_and_unknown_ones_do_where_vllm_is_not_there_to_ask():
    check_engine_kwargs({"dtype": "float32", "max_num_seqs": 8}, "colocate", KNOWN)
    check_engine_kwargs({"anything": 1}, "colocate", None)
    check_engine_kwargs(None, "server", KNOWN)


@pytest.mark.parametrize(
    ("rows_per_batch", "rows_per_largest_round", "expected"),
    [
        (256, 2048, (512, 4096)),  # as many as there are CUDA graphs for
        (128, 384, (384, 4096)),  # the whole round at once
        (128, 0, (128, 4096)),  # no dynamic sampling
        (8192, 32768, (8192, 8192)),  # TRL's own is never lowered, and vLLM wants as many tokens
    ],
)
def test_slots_are_those_of_the_largest_round_within_reason(rows_per_batch, rows_per_largest_round, expected):
    options = engine_options({}, rows_per_batch, rows_per_largest_round)
    assert (options["max_num_seqs"], options["max_num_batched_tokens"]) == expected


def test_what_the_user_asks_for_comes_first():
    options = engine_options({"max_num_seqs": 6000, "dtype": "half"}, 512, 2048)
    assert options == {"max_num_seqs": 6000, "max_num_batched_tokens": 6000, "dtype": "half"}
    assert engine_options({"max_num_batched_tokens": 512}, 8, 8)["max_num_batched_tokens"] == 512


class RecordedEngine:
    """Stands in for vLLM's `LLM`: keeps what it was built with, and its naps."""

    def __init__(self, **options):
        self.options = options


@pytest.mark.parametrize(("num_ranks", "tensor_parallel", "rows"), [(1, 1, 160), (4, 1, 40), (4, 2, 80)])
def test_engine_gets_the_rows_that_its_ranks_sample(tmp_path, monkeypatch, num_ranks, tensor_parallel, rows):
    args = DAPOConfig(**training_arguments(tmp_path, max_prompts_per_round=40, vllm_engine_kwargs={"dtype": "half"}))
    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "vllm", types.SimpleNamespace(LLM=RecordedEngine))
    platforms = types.SimpleNamespace(current_platform=types.SimpleNamespace(is_cpu=lambda: False))
    monkeypatch.setitem(modules, "vllm.platforms", platforms)
    generation = DAPOVLLMGeneration.__new__(DAPOVLLMGeneration)
    generation.dapo_args, generation.max_num_seqs, generation.mode = args, 8, "colocate"
    generation.tensor_parallel_size, generation.slow_seeds = tensor_parallel, False
    generation.accelerator = types.SimpleNamespace(num_processes=num_ranks)
    options = generation._build_engine(max_num_seqs=8, max_num_batched_tokens=4096, seed=5).options
    assert options == {"max_num_seqs": rows, "max_num_batched_tokens": 4096, "seed": 5, "dtype": "half"}


@pytest.mark.distributed
def test_ranks_that_share_an_engine_draw_the_same_tokens_whatever_a_reward_function_draws(tmp_path):
    run_ranks(shared_engine.main, [str(tmp_path)], 2, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    prompts = [[0, 0], [0, 1], [1, 0], [1, 1]]
    for number, (first, second) in enumerate(zip(*ranks, strict=True)):
        # The engine of each rank has the prompts of both, and for each a seed, the same and no other's.
        assert first["calls"] == second["calls"]
        for call, *returned in zip(first["calls"], first["returned"], second["returned"], strict=True):
            assert [prompt for prompt, _ in call] == prompts
            seeds = [seed for _, seed in call]
            assert len(set(seeds)) == 4
            tokens = [(np.random.default_rng(seed).random(4) * 1000).astype(int).tolist() for seed in seeds]
            assert [row for rows in returned for row in rows] == tokens
        named, partly, unnamed = [[seed for _, seed in call] for call in first["calls"]]
        if number < 3:
            assert named == [*first["expected"], *second["expected"]]
            assert partly[:3] == named[:3]
        else:
            assert first["expected"] == [None, None]
        # Of the rows without a name, each call has others.
        assert len({*named, *partly, *unnamed}) == (9 if number < 3 else 12)


def test_seeds_are_left_out_where_the_engine_loops_over_them():
    generation = DAPOVLLMGeneration.__new__(DAPOVLLMGeneration)
    generation.mode = "colocate"
    key = SequenceKey(4, 2)
    seeded, lines = {}, {}
    for wanted in (None, True, False):
        for slow in (False, True):
            for tensor_parallel in (1, 2):
                generation.dapo_args = types.SimpleNamespace(
                    seed=11, vllm_request_seeds=wanted, vllm_engine_kwargs=None
                )
                generation.slow_seeds, generation.tensor_parallel_size = slow, tensor_parallel
                seeded[wanted, slow, tensor_parallel] = generation.request_seed(key, 9) == 23548299660228362
                lines[wanted, slow, tensor_parallel] = generation.describe_seeds()
    without = {(None, True, 1), *((False, slow, size) for slow in (False, True) for size in (1, 2))}
    assert {setting for setting, is_seeded in seeded.items() if not is_seeded} == without
    # The first lines of a run say so where nobody asked for it.
    assert {setting for setting, line in lines.items() if line} == {(None, True, 1)}
    assert "a resumed run samples other completions" in lines[None, True, 1]


NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}


@pytest.mark.parametrize(
    ("drafts", "options", "message"),
    [
        ("ngram", {}, "sets 'speculative_config' to 'ngram', but must set it to a mapping"),
        ({"method": "eagle", "model": "x"}, {}, "method of 'speculative_config' to 'eagle', but .* one of 'ngram', 'suffix'"),
        ({"model": "some/model"}, {}, "to 'draft_model', but .*a weight sync does not bring weights"),
        (NGRAM | {"rejection_sample_method": "synthetic"}, {}, "rejection_sample_method .* to 'synthetic', but only 'standard'"),
        (NGRAM, {"min_p": 0.1}, "min_p is 0.1, but .* with which vLLM takes none. Set min_p=None"),
        (NGRAM, {"sampling_options": {"stop": ["."]}}, "generation_kwargs sets 'stop'.* tokens that were accepted behind"),
        (NGRAM, {"sampling_options": {"logit_bias": {3: 1}}}, "generation_kwargs sets 'logit_bias'.* takes none"),
        ({"method": "suffix"}, {"request_seeds": True}, "vllm_request_seeds is True.* Leave it None, or set the method"),
    ],
)  # fmt: skip
def test_speculation_that_would_not_sample_from_the_policy_is_refused(drafts, options, message):
    defaults = {"sampling_options": None, "min_p": None, "request_seeds": None}
    with pytest.raises(ValueError, match=message):
        check_speculation({"speculative_config": drafts}, **defaults | options)


def test_drafts_of_tokens_pass_and_have_room_in_a_step_for_all_sequences():
    for drafts in (NGRAM, {"model": "[ngram]", "num_speculative_tokens": 2}, {"method": "suffix"}, None):
        check_speculation({"speculative_config": drafts}, {"stop_token_ids": [3]}, None, None)
    check_speculation({"speculative_config": NGRAM}, None, None, True)
    check_speculation({}, {"stop": ["."]}, 0.1, True)
    assert engine_options({"speculative_config": NGRAM}, 1024, 2048)["max_num_batched_tokens"] == 5 * 1024


def test_seeds_are_left_out_where_drafts_come_from_other_completions():
    generation = DAPOVLLMGeneration.__new__(DAPOVLLMGeneration)
    generation.mode, generation.slow_seeds, generation.tensor_parallel_size = "colocate", False, 1
    seeds, lines = {}, {}
    for method in ("ngram", "suffix"):
        options = {"speculative_config": {"method": method}}
        generation.dapo_args = types.SimpleNamespace(seed=11, vllm_request_seeds=None, vllm_engine_kwargs=options)
        seeds[method] = generation.request_seed(SequenceKey(4, 2), 9)
        lines[method] = generation.describe_seeds()
    assert seeds == {"ngram": 23548299660228362, "suffix": None}
    assert lines["ngram"] is None
    assert "drafts tokens from the completions that it has sampled: requests have no seeds" in lines["suffix"]
