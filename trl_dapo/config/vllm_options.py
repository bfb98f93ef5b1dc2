"""Options of a colocated vLLM engine for which TRL has no field."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

from trl.import_utils import is_vllm_available


# Options that TRL sets from a field of its own, and (`None`) options that generation relies on, which must stay as they are.
_FIELD_OF_OPTION: dict[str, str | None] = {
    "tensor_parallel_size": "vllm_tensor_parallel_size",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "max_model_len": "vllm_max_model_length",
    "enable_sleep_mode": "vllm_enable_sleep_mode",
    "model_impl": "vllm_model_impl",
    "trust_remote_code": "trust_remote_code",
    "enable_lora": "vllm_adapter_sync",
    "max_loras": None,
    "model": None,
    "seed": None,
    "logprobs_mode": None,
    "distributed_executor_backend": None,
}

# Sampling options that treat the tokens of a prompt otherwise than those of a completion.
_LOOK_BACK = {
    "structured_outputs",
    "guided_decoding",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "stop",
    "bad_words",
    "logits_processors",
}

# Ways to draft tokens that read tokens alone. Models that draft share weights with the policy, which a sync does not bring them.
_DRAFTS = ("ngram", "suffix")

# What TRL passes, and what the engine schedules in one step at least.
_MAX_NUM_BATCHED_TOKENS = 4096
# Sequences that a refill may add beyond TRL's: each slot costs memory (a row of logits in the sampler), and an engine
# that decodes more than it has CUDA graphs for launches the kernels of a step one by one.
_MAX_REFILL_SEQS = 512


def check_engine_kwargs(options: Any, mode: str, known_options: Collection[str] | None) -> None:
    """
    Refuses what cannot reach the engine, before anything is loaded.

    Args:
        options (`Any`):
            The value of `vllm_engine_kwargs`.
        mode (`str`):
            TRL's `vllm_mode`.
        known_options (`Collection[str]` or `None`):
            Names of vLLM's `EngineArgs`. `None`: vLLM is not there to ask.

    Raises:
        `ValueError`: the value is no mapping, there is no engine of ours to pass it to, an option belongs to another
        field, or vLLM has no such option.
    """
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise ValueError(
            f"vllm_engine_kwargs is {options!r}, but must be a mapping from names of vLLM's EngineArgs to values, in a "
            'recipe or as JSON on the command line, for example {"enforce_eager": true}.'
        )
    if options and mode != "colocate":
        raise ValueError(
            f"vllm_engine_kwargs is {dict(options)}, but vllm_mode is {mode!r}: the server was started with options of its "
            'own. Pass them to `trl-dapo serve`, or set vllm_mode="colocate".'
        )
    for name, value in options.items():
        if name in _FIELD_OF_OPTION:
            field = _FIELD_OF_OPTION[name]
            fix = f"Set {field} instead." if field else "The trainer depends on its own value: leave it out."
            raise ValueError(f"vllm_engine_kwargs sets {name!r} to {value!r}, but this option is not free. {fix}")
        if known_options is not None and name not in known_options:
            raise ValueError(
                f"vllm_engine_kwargs sets {name!r} to {value!r}, but vLLM's EngineArgs have no such option. Did you mean "
                f"{' or '.join(map(repr, _similar(name, known_options))) or 'a field of GRPOConfig'}?"
            )


def check_speculation(options: Any, sampling_options: Any, min_p: float | None, request_seeds: bool | None) -> None:
    """
    Refuses speculative decoding that would not sample exactly from the policy, or that vLLM has no way for.

    Args:
        options (`Any`):
            The value of `vllm_engine_kwargs`, a mapping or `None`. Its `speculative_config` is checked, if it is there.
        sampling_options (`Any`):
            The value of `generation_kwargs`.
        min_p (`float` or `None`), request_seeds (`bool` or `None`):
            The values of `min_p` and `vllm_request_seeds`.

    Raises:
        `ValueError`: naming the option.
    """
    drafts = (options or {}).get("speculative_config")
    if drafts is None:
        return
    if not isinstance(drafts, Mapping):
        raise ValueError(
            f"vllm_engine_kwargs sets 'speculative_config' to {drafts!r}, but must set it to a mapping, for example "
            '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}.'
        )
    method = draft_method(options)
    if method not in _DRAFTS:
        raise ValueError(
            f"vllm_engine_kwargs sets the method of 'speculative_config' to {method!r}, but must set it to one of "
            f"{', '.join(map(repr, _DRAFTS))}: a weight sync does not bring weights to a model that drafts. Set one of them, or "
            "leave speculative_config out."
        )
    rejection = drafts.get("rejection_sample_method", "standard")
    if rejection != "standard":
        raise ValueError(
            f"vllm_engine_kwargs sets the rejection_sample_method of 'speculative_config' to {rejection!r}, but only 'standard' "
            "is known to sample from the policy. Leave it out."
        )
    if min_p:
        raise ValueError(
            f"min_p is {min_p}, but vllm_engine_kwargs has a speculative_config, with which vLLM takes none. Set min_p=None, or leave "
            "speculative_config out."
        )
    for name in ("logit_bias", "stop"):
        if name in (sampling_options or {}):
            reason = {
                "logit_bias": "with which vLLM takes none",
                "stop": "with which vLLM keeps the tokens that were accepted behind a stop string",
            }[name]
            raise ValueError(
                f"generation_kwargs sets {name!r}, but vllm_engine_kwargs has a speculative_config, {reason}. Leave one of them "
                "out."
            )
    if method == "suffix" and request_seeds:
        raise ValueError(
            "vllm_request_seeds is True, but the method of 'speculative_config' is 'suffix': which tokens are drafted, and so "
            "what is drawn with a seed, depends on all completions that the engine has sampled. Leave it None, or set the method to "
            "'ngram'."
        )


def draft_method(options: Any) -> str | None:
    """
    Returns how an engine with these options drafts tokens; `None`: it does not.

    >>> draft_method({"speculative_config": {"method": "ngram", "num_speculative_tokens": 4}})
    'ngram'
    >>> draft_method({"speculative_config": {"model": "some/draft-model", "num_speculative_tokens": 4}})
    'draft_model'
    """
    drafts = (options or {}).get("speculative_config")
    if drafts is None:
        return None
    method = drafts.get("method") or drafts.get("model")
    return {"[ngram]": "ngram"}.get(method, method if "method" in drafts or method in _DRAFTS else "draft_model")


def check_resumable(sampling_options: Any, regex: str | None) -> None:
    """
    Refuses sampling options under which a completion cannot go on from the tokens that it has.

    Args:
        sampling_options (`Any`):
            The value of `generation_kwargs`.
        regex (`str` or `None`):
            The value of `vllm_structured_outputs_regex`.

    Raises:
        `ValueError`: naming the option.
    """
    used = [name for name in (sampling_options or {}) if name in _LOOK_BACK]
    if regex is not None:
        used.append("vllm_structured_outputs_regex")
    if used:
        raise ValueError(
            f'{used[0]} is set, but with refill="stream" and surplus="carry" a completion may go on as a new request, '
            'for which its first tokens are part of the prompt. Leave it out, or set surplus="requeue".'
        )


def known_engine_options() -> set[str] | None:
    """Returns the names of vLLM's `EngineArgs`, or `None` where vLLM is not installed."""
    if not is_vllm_available():
        return None
    from vllm import EngineArgs  # takes seconds, so only a run that uses it pays for it

    return {field.name for field in dataclasses.fields(EngineArgs)}


def engine_options(options: Mapping[str, Any], rows_per_batch: int, rows_per_largest_round: int) -> dict[str, Any]:
    """
    Returns the options that an engine gets beside, and in place of, those of TRL.

    `max_num_seqs` is TRL's one generation batch, or as many more as the largest refill round has, up to the 512
    for which vLLM records CUDA graphs by default.
    `max_num_batched_tokens`, which vLLM wants no smaller, grows with it from TRL's 4,096. It has room for the draft tokens of
    all sequences, so that none depends on how many others are decoded.

    Args:
        options (`Mapping[str, Any]`):
            What the user asked for. It comes before any default.
        rows_per_batch (`int`):
            Completions of a generation batch that this engine samples.
        rows_per_largest_round (`int`):
            Completions of the largest round that this engine samples.

    >>> engine_options({"enforce_eager": True}, rows_per_batch=512, rows_per_largest_round=2048)
    {'max_num_seqs': 512, 'max_num_batched_tokens': 4096, 'enforce_eager': True}
    """
    num_seqs = max(rows_per_batch, min(rows_per_largest_round, _MAX_REFILL_SEQS))
    num_seqs = options.get("max_num_seqs", num_seqs)
    drafts = options.get("speculative_config") or {}
    num_tokens = num_seqs * (1 + (drafts.get("num_speculative_tokens") or 0))
    return {
        "max_num_seqs": num_seqs,
        "max_num_batched_tokens": max(_MAX_NUM_BATCHED_TOKENS, num_tokens),
        **options,
    }


def _similar(name: str, known_options: Collection[str]) -> list[str]:
    return difflib.get_close_matches(name, sorted(known_options), n=2)
