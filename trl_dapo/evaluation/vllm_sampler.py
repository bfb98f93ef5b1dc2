"""Samples completions for evaluation with vLLM. Each completion has its own seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from trl_dapo.config.vllm_options import check_speculation, draft_method
from trl_dapo.sampling.prompt_stream import keyed_hash
from trl_dapo.trl_seams import correct_drafts

from .completion_sampler import SamplingSettings, TransformersSampler


class VLLMSampler(TransformersSampler):
    """
    A [`CompletionSampler`] that samples with vLLM, in its own engine.

    As with [`TransformersSampler`], the random numbers of a completion depend only on its key and the seed. But vLLM has
    another random number generator, so the two samplers give different completions of the same distribution.

    Args:
        name (`str`):
            Local folder or Hub id of a causal language model.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision. `"auto"`: the precision of the saved weights.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. `None`: the one saved under `name`.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        engine_kwargs (`dict[str, Any]`, *optional*):
            Other fields of vLLM's `EngineArgs`, such as `{"enforce_eager": True}`.

    Raises:
        `ValueError`: when the folder holds a LoRA adapter, or `engine_kwargs` has a `speculative_config` that would not sample
        exactly from the model.
    """

    def __init__(
        self,
        name: str,
        dtype: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        engine_kwargs: dict[str, Any] | None = None,
    ):
        from vllm import LLM
        from vllm.platforms import current_platform

        check_speculation(engine_kwargs, None, None, None)
        if draft_method(engine_kwargs) == "suffix":
            raise ValueError(
                "The engine's options set the method of 'speculative_config' to 'suffix': with it a completion depends on those that were "
                "sampled before, and not on its seed alone. Set it to 'ngram', or leave speculative_config out."
            )
        if Path(name, "adapter_config.json").exists():
            raise ValueError(
                f"model is {name!r}, which holds a LoRA adapter, but with vLLM only complete models can be evaluated. Merge "
                "the adapter (`merge_and_unload`, `save_pretrained`), or set use_vllm=False."
            )
        # Loaded for the digest of its weights, its end tokens and its context, and freed before the engine needs memory.
        origin: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **origin)
        super().__init__(model, tokenizer or AutoTokenizer.from_pretrained(name, **origin))
        self._identity = super().identity() | {"engine": "vllm"}
        del self.model, model
        options: dict[str, Any] = {"dtype": dtype, "revision": revision}
        if current_platform.is_cpu():
            options["enable_chunked_prefill"] = False  # on the CPU it fails for requests with a seed
        self.llm = LLM(model=name, **options | (engine_kwargs or {}))
        if draft_method(engine_kwargs) is not None:
            correct_drafts()
        self.context_length = self.llm.llm_engine.vllm_config.model_config.max_model_len

    def identity(self) -> dict[str, Any]:
        """Returns engine, precision and the digest of the weights, the same digest as `TransformersSampler`."""
        return dict(self._identity)

    def sample(
        self, prompt_ids: Sequence[list[int]], keys: Sequence[str], settings: SamplingSettings
    ) -> list[list[int]]:
        """See [`CompletionSampler.sample`]. The engine decides how many completions it decodes at once."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_completion_length,
                seed=keyed_hash(f"{settings.seed}/{key}", num_bytes=7),
                stop_token_ids=self.end_token_ids,
                detokenize=False,
            )
            for key in keys
        ]
        prompts: Any = [{"prompt_token_ids": ids} for ids in prompt_ids]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [self._up_to_end(list(output.outputs[0].token_ids)) for output in outputs]
