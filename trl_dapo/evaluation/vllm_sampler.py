"""Samples completions for evaluation with vLLM, each with a seed of its own."""

import hashlib
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from .completion_sampler import SamplingSettings, TransformersSampler


class VLLMSampler(TransformersSampler):
    """
    Samples with a vLLM engine of its own; a [`CompletionSampler`].

    The random numbers of a completion depend on its key and the seed alone, as with [`TransformersSampler`], but they are
    vLLM's: the two engines give different completions of the same distribution.

    Args:
        name (`str`):
            Local folder or Hub id of a causal language model.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision; `"auto"` is the one that the weights were saved in.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. `None`: that of `name`.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        engine_kwargs (`dict[str, Any]`, *optional*):
            More of vLLM's `EngineArgs`, such as `{"enforce_eager": True}`.

    Raises:
        `ValueError`: when the folder holds a LoRA adapter.
    """

    def __init__(
        self,
        name: str,
        dtype: str = "auto",
        tokenizer: Any = None,
        revision: str | None = None,
        engine_kwargs: dict[str, Any] | None = None,
    ):
        from vllm import LLM
        from vllm.platforms import current_platform

        if Path(name, "adapter_config.json").exists():
            raise ValueError(
                f"model is {name!r}, which holds a LoRA adapter, but vLLM evaluates whole models here. Merge it first "
                "(`merge_and_unload`, `save_pretrained`), or leave use_vllm=False."
            )
        # For the digest of the weights, the end tokens and the context; the engine then has the memory to itself.
        origin: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **origin)
        super().__init__(model, tokenizer or AutoTokenizer.from_pretrained(name, **origin))
        self._identity = super().identity() | {"engine": "vllm"}
        del self.model, model
        options: dict[str, Any] = {"dtype": dtype, "revision": revision}
        if current_platform.is_cpu():
            options["enable_chunked_prefill"] = False  # with seeds of requests it fails there
        self.llm = LLM(model=name, **options | (engine_kwargs or {}))
        self.context_length = self.llm.llm_engine.vllm_config.model_config.max_model_len

    def identity(self) -> dict[str, Any]:
        """Returns engine, precision and the digest of the weights, which is that of `TransformersSampler`."""
        return dict(self._identity)

    def sample(self, prompt_ids: list[list[int]], keys: list[str], settings: SamplingSettings) -> list[list[int]]:
        """See [`CompletionSampler.sample`]. The engine decides how many it decodes at once."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_completion_length,
                seed=_seed(settings.seed, key),
                stop_token_ids=self.end_token_ids,
                detokenize=False,
            )
            for key in keys
        ]
        prompts: Any = [{"prompt_token_ids": ids} for ids in prompt_ids]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [self._up_to_end(list(output.outputs[0].token_ids)) for output in outputs]


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=7).digest(), "little")
