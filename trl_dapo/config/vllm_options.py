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

# What TRL passes, and what the engine schedules in one step at least.
_MAX_NUM_BATCHED_TOKENS = 4096
# Sequences that a refill may add beyond TRL's: each slot costs memory (a row of logits in the sampler), and an engine
# with this many gains little from more.
_MAX_REFILL_SEQS = 1024


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

    `max_num_seqs` is TRL's one generation batch, or as many more as the largest refill round has, up to 1,024.
    `max_num_batched_tokens`, which vLLM wants no smaller, grows with it from TRL's 4,096.

    Args:
        options (`Mapping[str, Any]`):
            What the user asked for. It comes before any default.
        rows_per_batch (`int`):
            Completions of a generation batch that this engine samples.
        rows_per_largest_round (`int`):
            Completions of the largest round that this engine samples.

    >>> engine_options({"enforce_eager": True}, rows_per_batch=512, rows_per_largest_round=2048)
    {'max_num_seqs': 1024, 'max_num_batched_tokens': 4096, 'enforce_eager': True}
    """
    num_seqs = max(rows_per_batch, min(rows_per_largest_round, _MAX_REFILL_SEQS))
    num_seqs = options.get("max_num_seqs", num_seqs)
    return {
        "max_num_seqs": num_seqs,
        "max_num_batched_tokens": max(_MAX_NUM_BATCHED_TOKENS, num_seqs),
        **options,
    }


def _similar(name: str, known_options: Collection[str]) -> list[str]:
    return difflib.get_close_matches(name, sorted(known_options), n=2)
