"""What ends a completion: read here, and nowhere else, from the settings of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


# Options that an engine does not read, and what to write instead.
_NOT_OF_TRANSFORMERS = {
    "max_tokens": "max_new_tokens",
    "stop": "eos_token_id with the tokens, or use_vllm=True",
    "stop_strings": "eos_token_id with the tokens, or use_vllm=True with stop",
    "stop_token_ids": "eos_token_id",
    "ignore_eos": "eos_token_id",
    "max_time": "max_new_tokens",
}
_NOT_OF_VLLM = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens, or vllm_max_model_length",
    "eos_token_id": "stop_token_ids",
    "stop_strings": "stop",
    "max_time": "max_tokens",
}


@dataclass(frozen=True, slots=True)
class GenerationEnd:
    """
    What ends a completion.

    Attributes:
        max_completion_length (`int` or `None`):
            Most tokens of a completion. `None`: no such limit.
        max_sequence_length (`int` or `None`):
            Most tokens of prompt and completion together. `None`: no such limit.
        stop_strings (`tuple[str, ...]`):
            Texts with which a completion ends.
        more_end_tokens (`tuple[int, ...]`):
            Tokens with which a completion ends, beside the end-of-sequence tokens.
        ends_at_eos (`bool`):
            Whether the end-of-sequence tokens of model and tokenizer end a completion.
    """

    max_completion_length: int | None
    max_sequence_length: int | None = None
    stop_strings: tuple[str, ...] = ()
    more_end_tokens: tuple[int, ...] = ()
    ends_at_eos: bool = True

    @classmethod
    def read(
        cls,
        generation_kwargs: Mapping[str, Any] | None,
        max_completion_length: int | None,
        use_vllm: bool = False,
        max_sequence_length: int | None = None,
    ) -> "GenerationEnd":
        """
        Reads the settings of a run. `generation_kwargs` come before the fields, as in TRL.

        Args:
            generation_kwargs (`Mapping[str, Any]` or `None`):
                Options of transformers' `GenerationConfig`, or of vLLM's `SamplingParams`.
            max_completion_length (`int` or `None`):
                TRL's field.
            use_vllm (`bool`, *optional*, defaults to `False`):
                Which of the two engines generates.
            max_sequence_length (`int`, *optional*):
                Length of the context window of the engine.

        Raises:
            `ValueError`: naming an option that this engine does not read, and what to write instead.

        Example:

        >>> GenerationEnd.read({"max_new_tokens": 4, "eos_token_id": 5}, max_completion_length=8).max_completion_length
        4
        >>> GenerationEnd.read({"stop": "</answer>"}, max_completion_length=8, use_vllm=True).stop_strings
        ('</answer>',)
        """
        options = generation_kwargs or {}
        engine, unknown = ("vLLM", _NOT_OF_VLLM) if use_vllm else ("transformers", _NOT_OF_TRANSFORMERS)
        for name in unknown.keys() & options.keys():
            raise ValueError(
                f"generation_kwargs has {name!r} ({options[name]!r}), which does not end a completion where {engine} "
                f"generates in this trainer. Use {unknown[name]} instead."
            )
        if use_vllm:
            return cls(
                options.get("max_tokens", max_completion_length),
                max_sequence_length,
                stop_strings=_several(options.get("stop")),
                more_end_tokens=_several(options.get("stop_token_ids")),
                ends_at_eos=not options.get("ignore_eos", False),
            )
        limit = options.get("max_new_tokens", max_completion_length)
        if "max_length" in options and limit is not None:
            raise ValueError(
                f"generation_kwargs has 'max_length' ({options['max_length']!r}), which transformers ignores beside a limit "
                f"of the completion, here {limit} tokens. Use max_new_tokens instead."
            )
        return cls(
            limit,
            options.get("max_length", max_sequence_length),
            more_end_tokens=_several(options.get("eos_token_id")),
            ends_at_eos=options.get("eos_token_id") is None,
        )

    def end_tokens(self, eos_token_ids: Sequence[int]) -> list[int]:
        """
        Returns the tokens with which a completion ends.

        Args:
            eos_token_ids (`Sequence[int]`):
                The end-of-sequence tokens of model and tokenizer.

        >>> GenerationEnd(8, more_end_tokens=(5,)).end_tokens([2])
        [2, 5]
        """
        return [*(eos_token_ids if self.ends_at_eos else ()), *self.more_end_tokens]


def _several(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str | int) else tuple(value)
