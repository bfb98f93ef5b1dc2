"""
Batches filled by a real vLLM, in rounds and group by group: `DynamicSampler` without a trainer.

Nothing trains, and the completions say nothing: how long each is, and whether a group is informative, is foretold by its
position in the stream, the same for all policies. All policies take turns with one engine, batch by batch, and rounds run
through the same calls of it, so that only the refill differs.
"""

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# Before vLLM is imported: one process, one core, no compiler.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "with_vllm")]

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from streaming_engines import Outcomes  # noqa: E402
from tiny import tiny_model, tiny_tokenizer  # noqa: E402

from trl_dapo import DAPOConfig  # noqa: E402
from trl_dapo.collectives import Ranks  # noqa: E402
from trl_dapo.dynamic_sampling import DynamicSampler  # noqa: E402
from trl_dapo.group_grader import GroupGrader  # noqa: E402
from trl_dapo.rollouts import Rollout  # noqa: E402
from trl_dapo.round_refill import RoundOutput  # noqa: E402
from trl_dapo.sampling.groups import GroupJudge, RowFacts  # noqa: E402
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan  # noqa: E402
from trl_dapo.stream_refill import StreamSources  # noqa: E402
from trl_dapo.streamed_group import Decoded, SequenceKey, StreamedGroup  # noqa: E402
from trl_dapo.vllm_requests import VLLMRequests  # noqa: E402


PROMPT_IDS = [3, 4]
# Rewards of a group: `(position) -> (G, 1)`.
Grade = Callable[[list[StreamedGroup]], None]


def start_engine(folder: str, num_slots: int, max_tokens: int) -> Any:
    """Starts vLLM with a Llama of 60,000 parameters, whose steps cost what vLLM itself costs."""
    from vllm import LLM

    tiny_model(seed=3, hidden_size=64, intermediate_size=64, max_position_embeddings=2 * max_tokens).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return LLM(
        model=folder, enforce_eager=True, dtype="float32", max_num_seqs=num_slots, max_model_len=max_tokens + 8,
        enable_prefix_caching=False, seed=0,
    )  # fmt: skip


def stop_engine(llm: Any) -> None:
    """Frees what an engine holds."""
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


@dataclass
class Generation:
    """What `VLLMRequests` asks of the trainer's vLLM backend."""

    llm: Any
    max_tokens: int

    def request_params(self) -> Any:
        """Returns parameters with which a completion goes on to its length."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=self.max_tokens, ignore_eos=True, logprobs=0, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip

    def request_seed(self, key: SequenceKey, num_tokens: int = 0) -> int:
        """Returns the seed of a completion."""
        return hash((key.position, key.sample, num_tokens)) % 2**32


class MeasuredRequests(VLLMRequests):
    """The product's driver of vLLM, with foretold lengths and a count of what is done."""

    def __init__(self, generation: Generation, outcomes: Outcomes):
        super().__init__(generation, lambda: None)
        self.outcomes = outcomes
        self.num_steps = self.num_tokens = 0
        # Sequences that ran, and CPU seconds, of each step.
        self.steps: list[tuple[int, float]] = []

    def submit(self, key: SequenceKey, prompt_ids: list[int], prefix: list[int]) -> None:
        """As it is, up to the foretold length."""
        self._params.max_tokens = self.outcomes.lengths(key.position)[key.sample]
        super().submit(key, prompt_ids, prefix)

    def step(self) -> Mapping[SequenceKey, Decoded]:
        """As it is, measured."""
        num_running, start = min(self.num_slots, self.num_unfinished), time.thread_time()
        finished = super().step()
        self.steps.append((num_running, time.thread_time() - start))
        self.num_tokens += sum(len(decoded.token_ids) for decoded in finished.values())
        return finished

    def withdraw(self, keys: Collection[SequenceKey]) -> Mapping[SequenceKey, Decoded]:
        """As it is, counted."""
        withdrawn = super().withdraw(keys)
        self.num_tokens += sum(len(decoded.token_ids) for decoded in withdrawn.values())
        return withdrawn
