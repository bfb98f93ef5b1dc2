"""Which prompts leave too little room for a completion in the context of a model."""

import heapq
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.config.row_checks import PromptCheck, is_read_ahead, refuse_rows, sampled_rows


Tokenize = Callable[[list[Any]], Sequence[Sequence[int]]]
# Prompts that are tokenized at once, and those that are looked at where it only is to be said.
_AT_ONCE = 1000
_NUM_LONGEST = 32
_MAX_SIZED = 200_000


class ContextLimit:
    """
    What the context of a model leaves to the prompts of a run.

    Args:
        model (`nn.Module`):
            The model that trains.
        args (`DAPOConfig`):
            The configuration.
        tokenize (`Callable`, *optional*):
            Turns prompts into tokens. `None`: prompts are not measured, since there are images in them.

    Attributes:
        most_tokens (`int`, *optional*):
            Most tokens of a prompt that leave room for a whole completion. `None`: not known.
        is_hard (`bool`):
            Whether a longer prompt ends the run, with dynamic sampling, and so is refused.
        limits (`str`):
            What the limit is made of.
    """

    def __init__(self, model: Any, args: DAPOConfig, tokenize: Tokenize | None):
        self.tokenize = tokenize
        end = args.generation_end
        self.positions = context_length(model.config)
        if args.use_vllm and args.vllm_max_model_length is not None:
            self.positions = args.vllm_max_model_length
        self.completion_limit = end.max_completion_length
        # vLLM cuts completions at the end of its context, and refuses prompts that fill it.
        self.is_hard = args.dynamic_sampling and (args.use_vllm or has_position_table(model))
        self.most_tokens: int | None = None
        self.limits = ""
        if self.positions is not None and tokenize is not None:
            room = 1 if args.use_vllm or self.completion_limit is None else self.completion_limit
            self.most_tokens = max(0, self.positions - room)
            self.limits = (
                f"max_completion_length is {room}, but the model has {self.positions} positions for both"
                if room > 1
                else f"the model has {self.positions} positions"
            )

    @property
    def most_sampled_tokens(self) -> int | None:
        """Most tokens of a prompt that may be sampled; `None`: as many as there are."""
        return self.most_tokens if self.is_hard else None

    def refuse(self, name: str, dataset: Any) -> None:
        """
        Refuses a dataset with prompts that would end the run.

        Args:
            name (`str`):
                How messages call it.
            dataset (`Dataset` or `IterableDataset`):
                The dataset.

        Raises:
            `ValueError`: with the rows, and the two lengths.
        """
        if self.most_sampled_tokens is None or self.tokenize is None:
            return
        found = list(find_long_prompts(dataset, self.tokenize, self.most_sampled_tokens))
        longest = max((length for _, length in found), default=0)
        fix = "Drop these rows"
        if self.positions is not None and longest < self.positions:
            fix = f"Set max_completion_length={self.positions - longest} or less, or drop these rows"
        check = PromptCheck(self.tokenize, self.most_sampled_tokens, self.limits)
        refuse_rows(name, [(number, check.too_long(length)) for number, length in found], fix)

    def describe(self, name: str, dataset: Any) -> str | None:
        """Returns what to say of completions that would go beyond the context; `None`: there are none."""
        limit = self.completion_limit
        if self.positions is not None and limit is not None and limit >= self.positions:
            return (
                f"max_completion_length is {limit}, but the model has {self.positions} positions for prompt and completion "
                "together. Lower it, by the tokens of the longest prompt."
            )
        if self.most_tokens is None or self.is_hard or self.tokenize is None:
            return None
        longest = longest_prompt(dataset, self.tokenize, self.most_tokens)
        if longest is None:
            return None
        return (
            f"Row {longest[0]} of {name} has a prompt of {longest[1]} tokens, which with max_completion_length {limit} goes "
            f"beyond the {self.positions} positions of the model. Lower max_completion_length, or leave out such rows."
        )


def context_length(config: Any) -> int | None:
    """
    Returns the positions that a model was made for, those of a stretched rotary embedding included; `None`: not known.

    Args:
        config (`PretrainedConfig`):
            The model's configuration.
    """
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None)
    if isinstance(rope, dict) and isinstance(rope.get("factor"), int | float):
        original = rope.get("original_max_position_embeddings") or positions
        positions = max(positions, int(original * rope["factor"]))
    return positions


def has_position_table(model: nn.Module) -> bool:
    """Returns whether positions are looked up in a table, so that generation beyond it ends with an error."""
    return any(
        isinstance(module, nn.Embedding) and ("position" in name or name.endswith("wpe"))
        for name, module in model.named_modules()
    )


def find_long_prompts(dataset: Any, tokenize: Tokenize, most_tokens: int) -> Iterator[tuple[int, int]]:
    """
    Yields number and tokens of the rows whose prompt has more than `most_tokens`.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            The dataset; of a stream the first rows.
        tokenize (`Callable`):
            Turns prompts into tokens.
        most_tokens (`int`):
            The limit.
    """
    overhead = _template_tokens(dataset, tokenize)
    candidates: list[tuple[int, Any]] = []
    for num_bytes, number, prompt in _sized_prompts(dataset):
        if num_bytes + overhead > most_tokens:
            candidates.append((number, prompt))
    for start in range(0, len(candidates), _AT_ONCE):
        part = candidates[start : start + _AT_ONCE]
        lengths = map(len, tokenize([prompt for _, prompt in part]))
        yield from (
            (number, length) for (number, _), length in zip(part, lengths, strict=True) if length > most_tokens
        )


def longest_prompt(dataset: Any, tokenize: Tokenize, most_tokens: int) -> tuple[int, int] | None:
    """
    Returns number and tokens of the longest prompt, of those with the most text; `None`: it has at most `most_tokens`.

    Args:
        dataset, tokenize, most_tokens:
            As in [`find_long_prompts`].
    """
    sized = itertools.islice(_sized_prompts(dataset), _MAX_SIZED)
    longest = heapq.nlargest(_NUM_LONGEST, sized, key=lambda prompt: prompt[0])
    if not longest or longest[0][0] + _template_tokens(dataset, tokenize) <= most_tokens:
        return None
    lengths = map(len, tokenize([prompt for _, _, prompt in longest]))
    length, negated = max((length, -number) for (_, number, _), length in zip(longest, lengths, strict=True))
    return (-negated, length) if length > most_tokens else None


def _template_tokens(dataset: Any, tokenize: Tokenize) -> int:
    """Returns more tokens than a chat template adds to a prompt: all those of the first one."""
    first = next((prompt for _, _, prompt in _sized_prompts(dataset)), None)
    return 0 if first is None else len(tokenize([first])[0])


def _sized_prompts(dataset: Any) -> Iterator[tuple[int, int, Any]]:
    """Yields the bytes of text, at least as many as tokens, and number and prompt of each row."""
    if is_read_ahead(dataset):
        number = 0
        for table in dataset.select_columns(["prompt"]).with_format("arrow").iter(batch_size=_AT_ONCE):
            for prompt in table["prompt"].to_pylist():
                yield _num_bytes(prompt), number, prompt
                number += 1
    else:
        for number, row in enumerate(sampled_rows(dataset)):
            if "prompt" in row:
                yield _num_bytes(row["prompt"]), number, row["prompt"]


def _num_bytes(prompt: Any) -> int:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, default=str)
    return len(text.encode("utf-8", "replace"))
