"""
Samples completions for evaluation. Each completion has its own random numbers.

`generate` of transformers has one random state for the whole batch, so a completion depends on the other completions of the
batch and on everything sampled before. Here every completion has a key, and its i-th token is chosen with the i-th random
number of that key, by the inverse of the cumulative distribution over the tokens in the order of their ids.
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


# A text, or a conversation: its turns with `role` and `content`.
Prompt = str | list[dict[str, Any]]
# Values of each parameter that enter its digest. A training step changes nearly all values, so a few are enough.
_NUM_DIGESTED_VALUES = 64


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """
    How completions are sampled. The defaults are those of the paper's evaluation.

    Args:
        k (`int`, *optional*, defaults to 32):
            Completions per problem.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits. 0: always the most probable token.
        top_p (`float`, *optional*, defaults to 0.7):
            Nucleus sampling: only the most probable tokens that together have this probability. 1: all tokens.
        max_completion_length (`int`, *optional*):
            Maximum length of a completion in tokens. `None`: 20,480 as in the paper, or less if the model's context has less
            room behind the longest prompt.
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
                f"temperature is {self.temperature}, but must be at least 0. The paper uses 1.0; 0 always takes the most "
                "probable token."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, but must be above 0 and at most 1. The paper uses 0.7.")
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise ValueError(
                f"max_completion_length is {self.max_completion_length}, but must be at least 1. Set it to None for "
                "20,480 or the room in the model's context."
            )


class CompletionSampler(Protocol):
    """
    What evaluation needs from an engine. `TransformersSampler` and `VLLMSampler` are such engines.

    Attributes:
        end_token_ids (`list[int]`):
            Tokens with which a completion ends.
        context_length (`int` or `None`):
            Maximum number of tokens of prompt and completion together. `None`: not known.
    """

    end_token_ids: list[int]
    context_length: int | None

    def identity(self) -> dict[str, Any]:
        """Returns engine, weights and precision, as JSON. Only an evaluation with the same values can be continued."""

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns the token ids of prompts, each a text or a conversation."""

    def sample(
        self, prompt_ids: Sequence[list[int]], keys: Sequence[str], settings: SamplingSettings
    ) -> list[list[int]]:
        """
        Returns the token ids of one completion per prompt, its end token included.

        The random numbers of a completion depend only on its key and the seed. `settings.max_completion_length` is set.
        """

    def decode(self, completion_ids: list[int]) -> str:
        """Returns the text of a completion, without special tokens."""


class TransformersSampler:
    """
    Samples with `transformers`, in batches padded on the left.

    A completion is a function of its prompt, its key, the settings and the logits. The logits of a row depend on its batch
    only by rounding errors. On the CPU in float32 these almost never change a token, so a completion is the same in every
    batch. In bfloat16, or with other kernels, they sometimes change a token, and then all tokens after it.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model. It samples in evaluation mode. Of its own generation settings only the end tokens are
            used.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer, with a chat template if prompts are conversations.
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
        """Returns engine, precision and a digest of the weights. Equal weights have equal digests on every machine."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            flat = parameter.detach().flatten()
            values = flat[:: max(1, len(flat) // _NUM_DIGESTED_VALUES)].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} ".encode() + values.numpy().tobytes())
        return {"engine": "transformers", "dtype": str(self.model.dtype), "weights": digest.hexdigest()[:16]}

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """
        Returns the token ids of prompts.

        Args:
            prompts (`Sequence[str or list[dict[str, Any]]]`):
                Texts or conversations.

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
                    "The prompts are conversations, but the tokenizer has no chat template. Set one "
                    "(`tokenizer.chat_template = ...`), or evaluate on prompts that are texts."
                )
            ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            encoded.append(list(ids))
        return encoded

    def decode(self, completion_ids: list[int]) -> str:
        """Returns the text of a completion, without special tokens."""
        return str(self.tokenizer.decode(completion_ids, skip_special_tokens=True))

    @torch.no_grad()
    def sample(
        self, prompt_ids: Sequence[list[int]], keys: Sequence[str], settings: SamplingSettings
    ) -> list[list[int]]:
        """See [`CompletionSampler.sample`]. All prompts are sampled in one batch."""
        assert settings.max_completion_length is not None
        width = max(map(len, prompt_ids))
        rows = [[self.pad_token_id] * (width - len(ids)) + ids for ids in prompt_ids]
        masks = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]
        device = self.model.device
        config = GenerationConfig(
            do_sample=False,  # the last logits processor chooses the token
            max_new_tokens=settings.max_completion_length,
            eos_token_id=self.end_token_ids or None,
            pad_token_id=self.pad_token_id,
        )
        # `generate` takes settings that a config leaves open from the model's own config, such as a repetition penalty.
        model: Any = self.model
        # A PEFT model has its own config and that of its base model.
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


def _processors(keys: Sequence[str], settings: SamplingSettings) -> LogitsProcessorList:
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
    Chooses one token for each row with the random numbers of the row's key, and masks all other tokens.

    Args:
        keys (`Sequence[str]`):
            One per row.
        seed (`int`):
            Seed of the random numbers, together with the key.
    """

    def __init__(self, keys: Sequence[str], seed: int):
        # With a text as seed, Python's generator gives the same numbers on all machines and in all versions.
        self.streams = [random.Random(f"{seed}/{key}") for key in keys]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Takes ids `(B, T)` and logits `(B, V)`; returns logits that are 0 for the chosen token, else -inf."""
        uniforms = torch.tensor([stream.random() for stream in self.streams], dtype=torch.float64)
        # In the order of ids: in the order of probabilities, rounding would swap tokens of nearly the same probability. In
        # float64, so that the rounding error of the sum over a vocabulary stays small.
        reached = scores.double().softmax(dim=-1).cumsum(dim=-1)
        targets = uniforms.to(scores.device).unsqueeze(1) * reached[:, -1:]
        chosen = torch.searchsorted(reached, targets, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def load_sampler(
    name: str,
    dtype: str | torch.dtype | None = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
    **model_init_kwargs: Any,
) -> TransformersSampler:
    """
    Loads a model for sampling with `transformers`, on the GPU if there is one.

    Args:
        name (`str`):
            Local folder or Hub id of a causal language model or of a LoRA adapter.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Precision. `"auto"`: the precision of the saved weights.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. `None`: the one saved under `name`.
        **model_init_kwargs:
            Other arguments of `from_pretrained`, such as `revision` or `attn_implementation`.
    """
    # Without a value, transformers asks in the terminal whether to run code from the model's repository.
    model_init_kwargs.setdefault("trust_remote_code", False)
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **model_init_kwargs)
    if tokenizer is None:
        same = {key: value for key, value in model_init_kwargs.items() if key in ("revision", "trust_remote_code")}
        tokenizer = AutoTokenizer.from_pretrained(name, **same)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return TransformersSampler(model, tokenizer)
