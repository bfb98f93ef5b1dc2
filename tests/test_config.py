import dataclasses
import functools

import pytest
import torch
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from trl import GRPOConfig, TrlParser

from trl_dapo import DAPOConfig, DAPOTrainer


def make_config(tmp_path, **overrides):
    return DAPOConfig(**training_arguments(tmp_path, **overrides))


def test_defaults_are_those_of_the_paper(tmp_path):
    config = make_config(tmp_path, max_completion_length=20480)
    assert (config.epsilon, config.epsilon_high) == (0.2, 0.28)
    assert config.dynamic_sampling
    assert config.loss_type == "dapo"
    assert config.beta == 0.0
    assert config.scale_rewards == "group"
    assert config.temperature == 1.0
    assert config.soft_punish_cache == 4096  # 20 % of 20,480
    assert config.overlong_penalty_factor == 1.0
    assert not config.mask_truncated_completions


def test_config_needs_no_more_than_a_folder(monkeypatch):
    monkeypatch.setattr("trl_dapo.config.dapo_config.is_torch_bf16_gpu_available", lambda: False)
    assert DAPOConfig(output_dir="x", epsilon_high=0.28).bf16 is False


def test_a_use_cpu_that_comes_after_the_choice_of_a_device_is_refused(tmp_path, monkeypatch):
    config = make_config(tmp_path, use_cpu=False)
    config.use_cpu = True
    build = functools.partial(DAPOTrainer, tiny_model(), first_token_reward, config, numbered_prompts(8))
    assert build(processing_class=tiny_tokenizer()).args.use_cpu  # The device is the CPU: nothing is wrong.
    monkeypatch.setattr(DAPOConfig, "device", torch.device("cuda:0"))
    with pytest.raises(ValueError, match=r"chosen cuda:0 with bf16=False.*DAPOConfig\(use_cpu=True"):
        build(processing_class=tiny_tokenizer())


def test_new_fields_are_exactly_these():
    new = {field.name for field in dataclasses.fields(DAPOConfig)} - {f.name for f in dataclasses.fields(GRPOConfig)}
    assert new == {
        "dynamic_sampling",
        "filter_reward",
        "filter_range",
        "max_generation_rounds",
        "max_prompts_per_round",
        "on_exhausted",
        "refill",
        "overlap",
        "refill_confidence",
        "surplus",
        "max_off_policy_steps",
        "selective_rollout",
        "exploration_share",
        "evict_above",
        "pass_rate_column",
        "label_column",
        "loss_normalization",
        "soft_punish_cache",
        "overlong_penalty_factor",
        "truncated_in_statistics",
        "max_non_finite_steps",
        "reward_timeout",
        "env_timeout",
        "num_groups_to_log",
        "restart_stream",
        "vllm_engine_kwargs",
        "vllm_check_interval",
        "vllm_max_logp_gap",
        "vllm_request_seeds",
        "vllm_adapter_sync",
        "vllm_weight_folder",
    }


def test_every_new_field_is_documented_with_its_default():
    for field in dataclasses.fields(DAPOConfig):
        if field.name not in {f.name for f in dataclasses.fields(GRPOConfig)} | {"epsilon_high"}:
            assert field.metadata["help"]
            entry = DAPOConfig.__doc__.split(f"        {field.name} (")[1].split("):")[0]
            if field.default is not None:
                assert f"defaults to `{field.default!r}`".replace("'", '"') in entry


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_generations": 3}, "generation_batch_size .* must be divisible by num_generations"),
        ({"num_generations": 1}, "at least 2 generations"),
        ({"on_exhausted": "ignore"}, "on_exhausted is 'ignore', but must be one of 'partial', 'error'"),
        ({"max_generation_rounds": 0}, "max_generation_rounds is 0, but must be 1 or more"),
        ({"max_non_finite_steps": 0}, "max_non_finite_steps is 0, but must be 1 or more, or None"),
        ({"reward_timeout": 0}, "reward_timeout is 0, but must be above 0 seconds, or None"),
        ({"env_timeout": -1.0}, "env_timeout is -1.0, but must be above 0 seconds, or None"),
        ({"num_groups_to_log": -1}, r"num_groups_to_log is -1, but must be 0 \(none\) or more groups a batch"),
        ({"max_prompts_per_round": 0}, "max_prompts_per_round is 0, but must be 1 or more"),
        ({"temperature": 0.0}, "temperature is 0.0, but must be above 0"),
        ({"top_p": 0.0}, "top_p is 0.0, but must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5, but must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k is -1, but must be a number of tokens, or 0"),
        ({"min_p": 2.0}, "min_p is 2.0, but must be between 0 and 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, but must be above 0"),
        ({"top_entropy_quantile": 20.0}, "top_entropy_quantile is 20.0, but must be between 0 and 1"),
        ({"reward_weights": [1.0, float("nan")]}, r"reward_weights is \[1.0, nan\], but must be finite numbers"),
        ({"scale_rewards": "grup"}, "scale_rewards is 'grup', but must be one of 'group', 'batch', 'none'"),
        ({"importance_sampling_level": "tok"}, "importance_sampling_level is 'tok', but must be one of 'token'"),
        ({"vllm_mode": "local"}, "vllm_mode is 'local', but must be one of 'colocate', 'server'"),
        (
            {"multi_objective_aggregation": "sum", "dynamic_sampling": False},
            "multi_objective_aggregation is 'sum', but must be one of 'sum_then_normalize'",
        ),
        ({"refill_confidence": 1.0}, "refill_confidence is 1.0, but must lie strictly between 0 and 1"),
        (
            {"loss_normalization": "token"},
            "loss_normalization is 'token', but must be None or one of 'batch', 'group', 'generation_batch'",
        ),
        ({"refill": "flow"}, "refill is 'flow', but must be one of 'rounds', 'stream'"),
        ({"refill": "stream"}, 'refill is "stream", but use_vllm is False'),
        ({"vllm_weight_folder": "/shared"}, "vllm_weight_folder is '/shared', but use_vllm is False"),
        pytest.param(
            {"refill": "stream", "use_vllm": True, "vllm_mode": "colocate", "vllm_tensor_parallel_size": 2},
            "vllm_tensor_parallel_size is 2",
            marks=pytest.mark.refuses("stream_elsewhere"),
        ),
        (
            {
                "refill": "stream",
                "use_vllm": True,
                "vllm_mode": "colocate",
                "surplus": "carry",
                "generation_kwargs": {"min_tokens": 3},
            },
            "min_tokens is set, but",
        ),
        ({"surplus": "drop"}, "surplus is 'drop', but must be one of 'requeue', 'carry'"),
        ({"max_off_policy_steps": 0}, "max_off_policy_steps is 0, but must be 1 or more"),
        ({"filter_range": (0.9, 0.1)}, r"filter_range is \(0.9, 0.1\), but must be two values, the lower one first"),
        ({"filter_range": [0.1]}, "filter_range is"),
        ({"soft_punish_cache": 9}, r"soft_punish_cache is 9, but must be between 0 \(off\) and max_completion_length"),
        ({"soft_punish_cache": -1}, "soft_punish_cache is -1"),
        ({"overlong_penalty_factor": -0.5}, "overlong_penalty_factor is -0.5, but must be 0 or more"),
        ({"max_completion_length": None}, "soft_punish_cache is None"),
        ({"max_completion_length": None, "soft_punish_cache": 4}, "max_completion_length is None"),
        ({"vllm_check_interval": -1}, "vllm_check_interval is -1, but must be 0"),
        ({"vllm_adapter_sync": "lora"}, "vllm_adapter_sync is 'lora', but must be one of 'merged', 'adapter'"),
        (
            {"vllm_adapter_sync": "adapter"},
            "'adapter', but use_vllm is False and vllm_mode is .*only a colocated engine",
        ),
        ({"vllm_max_logp_gap": 0.0}, "vllm_max_logp_gap is 0.0, but must be above 0"),
        ({"use_vllm": True, "vllm_mode": "colocate", "vllm_engine_kwargs": "eager"}, "vllm_engine_kwargs is 'eager'"),
        pytest.param(
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            r"steps_per_generation is 3, but must be a multiple of gradient_accumulation_steps \(2\)",
            marks=pytest.mark.refuses("ragged_steps"),
        ),
    ],
)
def test_bad_value_is_refused_with_its_name_and_range(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **overrides)


def test_what_only_dynamic_sampling_forbids_is_allowed_without_it(tmp_path):
    overrides = {"steps_per_generation": 3, "gradient_accumulation_steps": 2}
    assert not make_config(tmp_path, dynamic_sampling=False, **overrides).dynamic_sampling


def test_fields_parse_from_a_command_line(tmp_path):
    arguments = (
        f"--output_dir {tmp_path} --use_cpu true --bf16 false --epsilon_high 0.3 --filter_range 0.1 0.9 "
        "--on_exhausted error --soft_punish_cache 0 --dynamic_sampling true"
    ).split()
    arguments += ["--vllm_engine_kwargs", '{"enforce_eager": true, "max_num_seqs": 64}']
    (config,) = TrlParser((DAPOConfig,)).parse_args_and_config(arguments)
    assert config.epsilon_high == 0.3
    assert config.filter_range == (0.1, 0.9)
    assert config.on_exhausted == "error"
    assert config.soft_punish_cache == 0
    assert config.vllm_engine_kwargs == {"enforce_eager": True, "max_num_seqs": 64}


def test_engine_options_parse_from_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("vllm_engine_kwargs:\n  dtype: float32\n  enforce_eager: true\n")
    (config,) = TrlParser((DAPOConfig,)).parse_args_and_config(
        f"--config {recipe} --output_dir {tmp_path} --use_cpu true --bf16 false".split()
    )
    assert config.vllm_engine_kwargs == {"dtype": "float32", "enforce_eager": True}
