"""How full a colocated vLLM engine is: requests that wait, the KV cache, and what of it was taken away again."""

from typing import Any

from trl_dapo.ranks.collectives import Ranks
from trl_dapo.trl_seams import count_drafts, watch_scheduler


# Shares cross ranks as integers.
_PER_ONE = 1_000_000


class EngineLoad:
    """
    Looks at a colocated engine after each of its scheduling decisions.

    Args:
        llm (`vllm.LLM`):
            The engine.
    """

    def __init__(self, llm: Any):
        config = llm.llm_engine.vllm_config
        cache = config.cache_config
        self._max_num_seqs: int = config.scheduler_config.max_num_seqs
        # Releases before 0.31 have no such attribute.
        tokens = getattr(cache, "kv_cache_size_tokens", None) or (cache.num_gpu_blocks or 0) * cache.block_size
        self._num_cache_tokens: int = tokens
        self._num_finished = self._num_finished_tokens = 0
        self._num_running = self._num_waiting = 0
        self._num_preempted, self._peak_cache_use = 0, 0.0
        self._num_passes = self._num_drafted = self._num_accepted = 0
        self._is_watched = watch_scheduler(llm, self._observe)
        is_drafting = getattr(config, "speculative_config", None) is not None
        self._is_counting_drafts = is_drafting and self._is_watched and count_drafts(llm, self._observe_drafts)

    def _observe(self, num_preempted: int, cache_use: float, num_running: int, num_waiting: int) -> None:
        self._num_preempted += num_preempted
        self._peak_cache_use = max(self._peak_cache_use, cache_use)
        self._num_running, self._num_waiting = num_running, num_waiting
        self._num_passes += num_running

    def _observe_drafts(self, num_drafted: int, num_accepted: int) -> None:
        self._num_drafted += num_drafted
        self._num_accepted += num_accepted

    def observe_finished(self, num_tokens: int) -> None:
        """Notes a finished sequence, of so many tokens with its prompt."""
        self._num_finished += 1
        self._num_finished_tokens += num_tokens

    @property
    def num_slots(self) -> int:
        """
        Sequences that the engine decodes at once.

        At most `max_num_seqs`, and those for which the KV cache has room once they are as long as finished ones were. If
        requests had to wait in the last step, those that did not.
        """
        if self._num_waiting:
            return min(self._num_running, self._max_num_seqs)
        if not self._num_finished_tokens or not self._num_cache_tokens:
            return self._max_num_seqs
        return max(
            1, min(self._max_num_seqs, self._num_cache_tokens * self._num_finished // self._num_finished_tokens)
        )

    def metrics(self, ranks: Ranks, engine_size: int = 1) -> dict[str, float]:
        """
        Returns the metrics since the last call, over all engines. A collective.

        Args:
            ranks (`Ranks`):
                The ranks of the run.
            engine_size (`int`, *optional*, defaults to `1`):
                Ranks that share an engine, each with the same decisions.

        Returns:
            `dict[str, float]`: by their names below `dapo/`. Empty where the engine cannot be looked at.
        """
        if not self._is_watched:
            return {}
        own = [self._num_preempted, round(_PER_ONE * self._peak_cache_use)]
        own += [self._num_passes, self._num_drafted, self._num_accepted]
        rows = ranks.gather_rows([own])
        self._num_preempted, self._peak_cache_use = 0, 0.0
        self._num_passes = self._num_drafted = self._num_accepted = 0
        num_preempted, cache_use, passes, drafted, accepted = zip(*rows[::engine_size], strict=True)
        metrics = {"vllm/preemptions": float(sum(num_preempted)), "vllm/kv_cache_use_max": max(cache_use) / _PER_ONE}
        if self._is_counting_drafts and sum(passes):
            # Each running sequence has one token of a forward pass, and the drafts that were accepted.
            metrics["vllm/tokens_per_pass"] = 1 + sum(accepted) / sum(passes)
            metrics["vllm/frac_drafts_accepted"] = sum(accepted) / max(1, sum(drafted))
        return metrics
