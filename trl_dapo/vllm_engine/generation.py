"""
TRL's vLLM backend with what it lacks: engine options, a weight sync that works everywhere, and one sleep per batch.

TRL loads weights into the tensors that the engine computes with. Some engines compute with others: on a CPU, and wherever
layers are quantized, vLLM packs weights once they are loaded. There the weights go through vLLM's own reload, which packs
them again. With `vllm_adapter_sync="adapter"` they go once, and each sync brings the adapter: see `adapter.py`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.config.vllm_options import draft_method, engine_options
from trl_dapo.sampling.prompt_stream import SequenceKey, keyed_hash
from trl_dapo.trl_seams import (
    correct_drafts,
    hold_in_arrays,
    is_second_model_runner,
    loops_over_seeds,
    model_runner_of,
    reload_weights,
    repacks_weights,
    replaced,
    worker_of,
)

from .adapter import EngineAdapter
from .engine_load import EngineLoad
from .sampled_logps import ask_for_little, sampled_logps


class DAPOVLLMGeneration(VLLMGeneration):
    """
    A [`~trl.generation.vllm_generation.VLLMGeneration`] for dynamic sampling.

    Args:
        dapo_args (`DAPOConfig`):
            The trainer's configuration.
        **kwargs:
            What TRL passes.

    Attributes:
        num_syncs (`int`):
            Weight syncs so far. The same on all ranks.
        adapter (`EngineAdapter` or `None`):
            The adapter that each sync brings; `None`: each sync brings all weights.
        last_sync_bytes (`int`):
            Bytes of the weights that the last sync brought to a colocated engine of this rank.
        load (`EngineLoad` or `None`):
            How full a colocated engine is.
        slow_seeds (`bool`):
            Whether seeds cost the engine so much time that requests have none unless they are asked for.
    """

    adapter: EngineAdapter | None = None
    # What `as_arrays` yields, inside it.
    _arrays: dict[int, np.ndarray] | None = None

    def __init__(self, *, dapo_args: DAPOConfig, **kwargs: Any):
        self.dapo_args = dapo_args
        self.num_syncs = 0
        self.last_sync_bytes = 0
        self.slow_seeds = False
        self.load: EngineLoad | None = None
        self._num_calls = 0
        self._reloads_weights = False
        self._stays_awake = False
        self._is_cache_awake = False
        self._keys: list[SequenceKey] = []
        self._lengths: list[int] = []
        super().__init__(**kwargs)

    def _init_vllm(self) -> None:
        if self.dapo_args.vllm_adapter_sync == "adapter":
            self._check_that_adapter_is_whole()
            self.adapter = EngineAdapter(self.model)
        with replaced(vllm_generation, "LLM", self._build_engine):
            super()._init_vllm()
        if self.mode == "colocate":
            # vLLM's reload also clears what layers with adapters hold of the weights before.
            self._reloads_weights = self.adapter is not None or repacks_weights(model_runner_of(self.llm))
            self.slow_seeds = loops_over_seeds(model_runner_of(self.llm))
            self.load = EngineLoad(self.llm)

    def _check_that_adapter_is_whole(self) -> None:
        if self._dist.is_fsdp or self._dist.is_zero3:
            raise ValueError(
                "vllm_adapter_sync is 'adapter', but the model is sharded (FSDP or DeepSpeed ZeRO-3), and gathering its adapter "
                'is not tested. Use DDP or ZeRO up to stage 2, or set vllm_adapter_sync="merged".'
            )

    def _build_engine(self, **trl_options: Any) -> Any:
        from vllm import LLM
        from vllm.platforms import current_platform

        args = self.dapo_args
        # Prompts are dealt evenly to the ranks; those of a tensor-parallel group share an engine.
        rows_per_prompt = args.shape.num_generations * self.tensor_parallel_size / self.accelerator.num_processes
        largest_round = args.shape.max_prompts_per_round if args.dynamic_sampling else 0
        options: Any = args.vllm_engine_kwargs or {}
        added = engine_options(options, self.max_num_seqs or 0, round(largest_round * rows_per_prompt))
        if (self._seeds_requests or self.tensor_parallel_size > 1) and current_platform.is_cpu():
            # After each part of a prompt but the last vLLM winds a request's generator back, which on a CPU none can.
            added = {"enable_chunked_prefill": False} | added
        if self.adapter is not None:
            added = self.adapter.engine_options | added
        llm = LLM(**(trl_options | added))
        if draft_method(options) is not None:
            if is_second_model_runner(model_runner_of(llm)):
                raise ValueError(
                    "vllm_engine_kwargs has a speculative_config, but vLLM has its Model Runner V2, which drafts with models alone. "
                    "Unset VLLM_USE_V2_MODEL_RUNNER, or leave speculative_config out."
                )
            correct_drafts()
        return llm

    # Weights

    def sync_weights(self) -> None:
        """
        Brings the weights under training to the engine: merged with their adapter, or the adapter alone. A collective.

        Raises:
            `RuntimeError`: the engine could not drop what it has cached of prompts under the weights before.
        """
        self.last_sync_bytes = 0
        if self.adapter is not None and self._llm_weights_sleeping:
            self.adapter.has_base = False
        if self.mode == "colocate":
            with replaced(
                self.llm, "reset_prefix_cache", functools.partial(_reset_or_raise, self.llm.reset_prefix_cache)
            ):
                super().sync_weights()
        else:
            super().sync_weights()
        if self.adapter is not None:
            self.adapter.has_base = True
            self.last_sync_bytes += self.adapter.load(self.llm)
        self.num_syncs += 1

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self.adapter is not None and self.adapter.has_base:
            return
        with nullcontext() if self.adapter is None else self.adapter.apart():
            weights = self._counted(super()._iter_named_params())
            if self._reloads_weights:
                # A copy of each: a layer is packed when its last weight has come, or at the very end when it is padded. By
                # then TRL may have unmerged the adapter, or given back what it had gathered.
                reload_weights(worker_of(self.llm), ((name, weight.detach().clone()) for name, weight in weights))
            else:
                yield from weights

    def _counted(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in weights:
            self.last_sync_bytes += weight.numel() * weight.element_size()
            yield name, weight

    # Sleep

    @contextmanager
    def kept_awake(self) -> Iterator[None]:
        """
        Inside it, an engine that sleeps while the model trains wakes once, at the first `generate`, and sleeps at the end.

        TRL lets it sleep after each `generate`. Its weights are gone then, so that every round of a batch, and every batch of an
        evaluation, would push all of them again.
        """
        self._stays_awake = self.mode == "colocate" and self.enable_sleep_mode
        try:
            yield
        finally:
            self._stays_awake = False
            if self._is_cache_awake:
                self._is_cache_awake = False
                self.llm.sleep(level=2)
                self._llm_weights_sleeping = True

    @contextmanager
    def as_arrays(self) -> Iterator[dict[int, np.ndarray]]:
        """
        Inside it, `generate` makes arrays of each completion as soon as it is finished, and drops what vLLM has of it.

        As objects, as TRL reads them, they take fifty times the memory, for all completions of a round at once.

        Yields:
            `dict[int, np.ndarray]`: filled by `generate`: the log-probabilities of the sampled tokens of each completion, shape
            `(C,)`, float32, by the `id` of its array of tokens, shape `(C,)`, int32. In their place `generate` returns nothing
            for each completion.
        """
        self._arrays = {}
        try:
            yield self._arrays
        finally:
            self._arrays = None

    def generate(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """
        As TRL's, with a seed for each of the requests that were named, and for all where ranks share an engine.

        See also `as_arrays`.
        """
        keys, lengths, self._keys, self._lengths = self._keys, self._lengths, [], []
        seeds = self._seeds_of(keys, lengths, len(kwargs["prompts"] if "prompts" in kwargs else args[0]))
        if self.mode != "colocate":
            return self._generate_awake(*args, **kwargs)
        generate = self.llm.generate

        def generate_named(prompts: Any, sampling_params: Any, **options: Any) -> Any:
            if self._arrays is not None:
                ask_for_little(sampling_params)
            if seeds:
                sampling_params = [sampling_params.clone() for _ in seeds]
                for params, seed in zip(sampling_params, seeds, strict=True):
                    params.seed = seed
            return generate(prompts, sampling_params, **options)

        with replaced(self.llm, "generate", generate_named):
            if self._arrays is None:
                return self._generate_awake(*args, **kwargs)
            engine = self.llm.llm_engine
            with (
                replaced(engine, "add_request", functools.partial(self._add_request, engine.add_request)),
                replaced(engine, "step", functools.partial(self._step_into_arrays, engine.step)),
            ):
                prompt_ids, completion_ids, *_ = self._generate_awake(*args, **kwargs)
        return prompt_ids, completion_ids, [()] * len(completion_ids), None

    def _add_request(self, add_request: Callable[..., str], *args: Any, **kwargs: Any) -> str:
        request_id = add_request(*args, **kwargs)
        hold_in_arrays(self.llm.llm_engine, request_id)
        return request_id

    def _step_into_arrays(self, step: Callable[[], list[Any]]) -> list[Any]:
        outputs = step()
        assert self._arrays is not None
        for output in outputs:
            for completion in output.outputs if output.finished else ():
                logps = sampled_logps(completion.token_ids, completion.logprobs)
                completion.token_ids, completion.logprobs = np.array(completion.token_ids, np.int32), None
                self._arrays[id(completion.token_ids)] = logps
        return outputs

    def _generate_awake(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if not self._stays_awake:
            return self._generate_with_adapter(*args, **kwargs)
        if self._llm_weights_sleeping:
            self.sync_weights()
        if not self._is_cache_awake:
            self.llm.wake_up(tags=["kv_cache"])
            self._is_cache_awake = True
        self.enable_sleep_mode = False
        try:
            return self._generate_with_adapter(*args, **kwargs)
        finally:
            self.enable_sleep_mode = True

    def _generate_with_adapter(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if self.adapter is None:
            return super().generate(*args, **kwargs)
        generate, adapter = self.llm.generate, self.adapter

        # Which request it is, is known only then: TRL brings the weights first to an engine that sleeps.
        def generate_with_it(*inputs: Any, **options: Any) -> Any:
            return generate(*inputs, lora_request=adapter.request, **options)

        with replaced(self.llm, "generate", generate_with_it):
            return super().generate(*args, **kwargs)

    # Requests

    def name_requests(self, keys: Sequence[SequenceKey], lengths: Sequence[int] | None = None) -> None:
        """
        Says which completions the next `generate` samples, in the order of its prompts.

        Args:
            keys (`Sequence[SequenceKey]`):
                The completions.
            lengths (`Sequence[int]`, *optional*):
                Tokens that each of them has so far. `None`: none has any.
        """
        self._keys = list(keys)
        self._lengths = [0] * len(keys) if lengths is None else list(lengths)

    def request_seed(self, key: SequenceKey, num_tokens: int = 0) -> int | None:
        """
        Returns the seed of a completion from its token number `num_tokens` on; `None` where requests are not seeded.

        It does not depend on which engine samples the completion, beside which others, or when.
        """
        if not self._seeds_requests:
            return None
        name = f"{self.dapo_args.seed}/{key.position}/{key.sample}/{num_tokens}"
        return keyed_hash(name, num_bytes=7)

    def request_params(self) -> Any:
        """Returns TRL's sampling parameters, and leaves the engine awake inside `kept_awake`. A collective."""
        captured = []

        def capture(prompts: Any, sampling_params: Any, **options: Any) -> list[Any]:
            captured.append(sampling_params)
            return []

        with replaced(self.llm, "generate", capture):
            self._generate_awake([], images=None, num_generations=1)
        return captured[0]

    @property
    def _seeds_requests(self) -> bool:
        is_wanted = self.dapo_args.vllm_request_seeds
        if is_wanted is None:
            is_cheap = not self.slow_seeds and not self._drafts_from_others
            is_wanted = is_cheap or self.tensor_parallel_size > 1
        return is_wanted and self.mode == "colocate"

    @property
    def _drafts_from_others(self) -> bool:
        # Then what a seed draws depends on all that the engine has sampled.
        return draft_method(self.dapo_args.vllm_engine_kwargs) == "suffix"

    def describe_seeds(self) -> str | None:
        """Returns what follows where requests have no seeds by default; `None`: they have some, or were to have none."""
        if self.dapo_args.vllm_request_seeds is not None or self._seeds_requests:
            return None
        if self._drafts_from_others:
            return (
                "vllm_request_seeds is None, and the engine drafts tokens from the completions that it has sampled: requests have no "
                "seeds. A resumed run samples other completions, of the same distribution. For the same ones, set the method of "
                "speculative_config to 'ngram'."
            )
        return (
            "vllm_request_seeds is None, and vLLM has its older model runner, which loops over requests with seeds: they have "
            "none. What is sampled depends on the size of rounds, and a resumed run samples other completions. For the same ones, "
            "set vllm_request_seeds=True, which costs 8 to 10 ms a step with 1,024 requests, or VLLM_USE_V2_MODEL_RUNNER=1 "
            "where vLLM can."
        )

    def _seeds_of(
        self, keys: Sequence[SequenceKey], lengths: Sequence[int], num_prompts: int
    ) -> list[int | None] | None:
        """
        Returns the seeds of a call of `generate`; `None`: it has none. With tensor parallelism a collective.

        There each rank of the group samples the prompts of all of them, from logits that they compute together. Without
        seeds each would sample by a random state of its process, which a reward function may have moved on.
        """
        own = [self.request_seed(key, length) for key, length in zip(keys, lengths, strict=True)]
        if self.mode != "colocate" or self.tensor_parallel_size == 1:
            return own if self._seeds_requests else None
        self._num_calls += 1
        call = f"{self.dapo_args.seed}/{self.accelerator.process_index}/call-{self._num_calls}"
        if not self._seeds_requests:
            own = []
        # Also those of evaluation, and of the rows that a rank adds where another one has more.
        own += [keyed_hash(f"{call}/{row}", num_bytes=7) for row in range(len(own), num_prompts)]
        by_rank: list[list[int | None]] = [[] for _ in range(self.tensor_parallel_size)]
        torch.distributed.all_gather_object(by_rank, own, group=self.tp_group)
        return [seed for seeds in by_rank for seed in seeds]


def _reset_or_raise(reset_prefix_cache: Callable[[], bool]) -> None:
    # TRL does not ask whether it succeeded.
    if reset_prefix_cache() is False:
        raise RuntimeError(
            "vLLM did not drop its prefix cache after a weight sync, because it holds requests that use the cache: completions "
            "would be computed from keys and values of earlier weights. Wait for the requests that you added to "
            "trainer.vllm_generation.llm, or abort them, before the next training step."
        )
