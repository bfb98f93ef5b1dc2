"""What the vLLM engine is built with, and when it sleeps. Without vLLM: a real one is in tests/with_vllm."""

import types

import pytest
from tiny import training_arguments

from trl_dapo import DAPOConfig
from trl_dapo.config.vllm_options import check_engine_kwargs, engine_options
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
        (512, 2048, (1024, 4096)),  # capped
        (128, 512, (512, 4096)),  # the whole round at once
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
    generation.tensor_parallel_size = tensor_parallel
    generation.accelerator = types.SimpleNamespace(num_processes=num_ranks)
    options = generation._build_engine(max_num_seqs=8, max_num_batched_tokens=4096, seed=5).options
    assert options == {"max_num_seqs": rows, "max_num_batched_tokens": 4096, "seed": 5, "dtype": "half"}
