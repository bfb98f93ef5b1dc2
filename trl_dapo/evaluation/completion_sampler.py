"""
Samples completions for evaluation, each from random numbers of its own.

`generate` draws for a whole batch from one random state, so that a completion depends on its neighbours in the batch and
on all that was sampled before. Here every completion has a key, and the i-th token of it is picked with the i-th random
number of that key: by the inverse of the distribution function, over the tokens in the order of their ids.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)


# Values of each parameter that its digest looks at: any training step changes nearly all of them.
_NUM_DIGESTED_VALUES = 64


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """
    How completions are sampled; the defaults are those of the paper's evaluation.

    Args:
        k (`int`, *optional*, defaults to 32):
            Completions per problem.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits. 0 always takes the likeliest token.
        top_p (`float`, *optional*, defaults to 0.7):
            Only the likeliest tokens that together have this probability are drawn from. 1 draws from all.
        max_completion_length (`int`, *optional*):
            Most tokens of a completion. `None`: 20,480 as in the paper, or what the longest prompt leaves of the model's
            context.
        seed (`int`, *optional*, defaults to 0):
            Seed of the sampling and of the confidence intervals.

    Raises:
        `ValueError`: when a value is out of its range.
    """

    k: int = 32
    temperature: float = 1.0
    top_p: float = 0.7
    max_completion_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, but must be at least 1: it is the number of completions per problem.")
        if self.temperature < 0:
            raise ValueError(
                f"temperature is {self.temperature}, but must be at least 0. The paper has 1.0; 0 takes the likeliest "
                "token."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, but must be above 0 and at most 1. The paper has 0.7.")
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise ValueError(
                f"max_completion_length is {self.max_completion_length}, but must be at least 1. Leave it None for all "
                "that the context has room for."
            )


class CompletionSampler(Protocol):
    """
    What evaluation needs of an engine. `TransformersSampler` is one; another engine (vLLM) fits in with these methods.

    Attributes:
        end_token_ids (`list[int]`):
            Tokens with which a completion ends.
        context_length (`int` or `None`):
            Most tokens of prompt and completion together; `None` if nobody knows.
    """

    end_token_ids: list[int]
    context_length: int | None

    def identity(self) -> dict[str, Any]:
        """Returns what has to be the same for a run to go on, as JSON: engine, weights, precision."""

    def encode(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Returns the token ids of prompts, each a text or a conversation."""

    def sample(self, prompt_ids: list[list[int]], keys: list[str], settings: SamplingSettings) -> list[list[int]]:
        """
        Returns the token ids of one completion per prompt, up to and with its end token.

        `keys` are the sources of randomness; `settings.max_completion_length` is a number.
        """

    def decode(self, completion_ids: list[int]) -> str:
        """Returns the text of a completion, without special tokens."""


class TransformersSampler:
    """
    Samples with `transformers`, in batches padded on the left.

    A completion is a function of its prompt, its key, the settings and the logits. The logits of a row depend on its
    batch by rounding alone: on the CPU in float32 completions are the same in all batches but for rare coincidences; in
    bfloat16, or with other kernels, a close call may go the other way, and the completion goes on differently from there.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model. It is sampled in evaluation mode, and its own generation settings are not used but
            for the end tokens.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer, with a chat template if there are conversations.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model = model
        self.tokenizer = tokenizer
        ends = model.generation_config.eos_token_id if model.generation_config is not None else None
        known = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
        self.end_token_ids = sorted({token for token in known if token is not None})
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = pad if pad is not None else (self.end_token_ids or [0])[0]
        text_config = model.config.get_text_config()
        self.context_length: int | None = getattr(text_config, "max_position_embeddings", None)

    def identity(self) -> dict[str, Any]:
        """Returns engine, precision and a digest of the weights, which is the same for the same model elsewhere."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            flat = parameter.detach().flatten()
            values = flat[:: max(1, len(flat) // _NUM_DIGESTED_VALUES)].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} ".encode() + values.numpy().tobytes())
        return {"engine": "transformers", "dtype": str(self.model.dtype), "weights": digest.hexdigest()[:16]}

    def encode(self, prompts: Sequence[Any]) -> list[list[int]]:
        """
        Returns the token ids of prompts.

        Raises:
            `ValueError`: when a prompt is a conversation and the tokenizer has no chat template.
        """
        encoded = []
        for prompt in prompts:
            if isinstance(prompt, str):
                encoded.append(list(self.tokenizer(prompt)["input_ids"]))
                continue
            if not self.tokenizer.chat_template:
                raise ValueError(
                    "The prompts are conversations, but the tokenizer has no chat template. Give it one "
                    "(`tokenizer.chat_template = ...`), or evaluate on prompts that are texts."
                )
            ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            encoded.append(list(ids))
        return encoded

    def decode(self, completion_ids: list[int]) -> str:
        """Returns the text of a completion, without special tokens."""
        return str(self.tokenizer.decode(completion_ids, skip_special_tokens=True))

    @torch.no_grad()
    def sample(self, prompt_ids: list[list[int]], keys: list[str], settings: SamplingSettings) -> list[list[int]]:
        """See [`CompletionSampler.sample`]. All prompts are one batch."""
        assert settings.max_completion_length is not None
        width = max(map(len, prompt_ids))
        rows = [[self.pad_token_id] * (width - len(ids)) + ids for ids in prompt_ids]
        masks = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]
        device = self.model.device
        config = GenerationConfig(
            do_sample=False,  # the pick is made by the last of the processors
            max_new_tokens=settings.max_completion_length,
            eos_token_id=self.end_token_ids or None,
            pad_token_id=self.pad_token_id,
        )
        # `generate` fills what a config leaves open from the model's own, such as a repetition penalty.
        model: Any = self.model
        # A PEFT model hands its config on to the model inside.
        holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
        was_training, own_configs = model.training, [holder.generation_config for holder in holders]
        model.eval()
        model.generation_config = config
        try:
            sequences = model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(masks, device=device),
                generation_config=config,
                logits_processor=_processors(keys, settings),
            )
        finally:
            for holder, own_config in zip(holders, own_configs, strict=True):
                holder.generation_config = own_config
            model.train(was_training)
        return [self._up_to_end(completion) for completion in sequences[:, width:].tolist()]

    def _up_to_end(self, completion_ids: list[int]) -> list[int]:
        ends = (place for place, token in enumerate(completion_ids) if token in self.end_token_ids)
        return completion_ids[: next(ends, len(completion_ids)) + 1]


def _processors(keys: list[str], settings: SamplingSettings) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if settings.temperature == 0:
        return processors
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(KeyedPick(keys, settings.seed))
    return processors


class KeyedPick(LogitsProcessor):
    """
    Picks one token for each row with the row's own random numbers, and leaves only that one possible.

    Args:
        keys (`list[str]`):
            One per row.
        seed (`int`):
            Seed beside the keys.
    """

    def __init__(self, keys: list[str], seed: int):
        # Seeded by a text, Python's generator gives the same numbers on all machines and in all versions.
        self.streams = [random.Random(f"{seed}/{key}") for key in keys]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Takes ids `(B, T)` and logits `(B, V)`; returns logits that are 0 for the picked token, else -inf."""
        uniforms = torch.tensor([stream.random() for stream in self.streams], dtype=torch.float64)
        # In the order of ids, not of probability: there, two tokens of nearly the same probability would change places
        # by rounding. In float64, so that the sum over a vocabulary does not round.
        reached = scores.double().softmax(dim=-1).cumsum(dim=-1)
        targets = uniforms.to(scores.device).unsqueeze(1) * reached[:, -1:]
        picked = torch.searchsorted(reached, targets, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, picked, 0.0)


def load_sampler(
    name: str, dtype: Any = "auto", tokenizer: Any = None, **model_init_kwargs: Any
) -> TransformersSampler:
    """
    Loads a model for sampling with `transformers`, onto the GPU if there is one.

    Args:
        name (`str`):
            Local folder or Hub id of a causal language model or of a LoRA adapter.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Precision; `"auto"` is the one that the weights were saved in.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. `None`: that of `name`.
        **model_init_kwargs:
            More arguments of `from_pretrained`, such as `revision` or `attn_implementation`.
    """
    # Left open, transformers asks at a terminal whether to run the code that a model brings.
    model_init_kwargs.setdefault("trust_remote_code", False)
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **model_init_kwargs)
    if tokenizer is None:
        same = {key: value for key, value in model_init_kwargs.items() if key in ("revision", "trust_remote_code")}
        tokenizer = AutoTokenizer.from_pretrained(name, **same)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return TransformersSampler(model, tokenizer)
