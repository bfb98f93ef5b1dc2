"""
Batches filled by a real vLLM, in rounds and group by group: `DynamicSampler` without a trainer.

Nothing trains, and the completions say nothing: how long each is, and whether a group is informative, is foretold by its
position in the stream, the same for all policies. All policies take turns with one engine, batch by batch, and rounds run
through the same calls of it, so that only the refill differs.
"""

import gc
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "with_vllm")]

import cpu_engine  # noqa: E402, F401
import numpy as np  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from streaming_engines import Outcomes, Setting, StepCost  # noqa: E402
from tiny import tiny_model, tiny_tokenizer  # noqa: E402

from trl_dapo import DAPOConfig  # noqa: E402
from trl_dapo.ranks.collectives import Ranks  # noqa: E402
from trl_dapo.ranks.rollout import Rollout  # noqa: E402
from trl_dapo.refill.rounds import Sampled  # noqa: E402
from trl_dapo.sampling.judge import GroupJudge, RowFacts  # noqa: E402
from trl_dapo.sampling.prompt_stream import SequenceKey  # noqa: E402
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan  # noqa: E402
from trl_dapo.streaming.dynamic_sampler import make_dynamic_sampler  # noqa: E402
from trl_dapo.streaming.group_grader import GroupGrader  # noqa: E402
from trl_dapo.streaming.local_groups import LocalGroups  # noqa: E402
from trl_dapo.streaming.streamed_group import StreamedGroup  # noqa: E402
from trl_dapo.vllm_engine.engine_load import EngineLoad  # noqa: E402
from trl_dapo.vllm_engine.requests import VLLMRequests  # noqa: E402
from trl_dapo.vllm_engine.sequence_engine import Decoded  # noqa: E402


PROMPT_IDS = [3, 4]
# Grades completions, for its cost alone.
Reward = Callable[[list[SequenceKey]], None]


@contextmanager
def engine(num_slots: int, max_tokens: int) -> Iterator[Any]:
    """A vLLM with a Llama of 60,000 parameters, whose steps cost what vLLM itself costs."""
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        length = 2 * max_tokens
        model = tiny_model(seed=3, hidden_size=64, intermediate_size=64, max_position_embeddings=length)
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        llm = LLM(
            model=folder, enforce_eager=True, dtype="float32", max_num_seqs=num_slots, max_model_len=length,
            enable_prefix_caching=False, seed=0,
        )  # fmt: skip
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()


@dataclass
class Generation:
    """What `VLLMRequests` asks of the trainer's vLLM backend."""

    llm: Any
    max_tokens: int

    def __post_init__(self) -> None:
        self.load = EngineLoad(self.llm)

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


class FixedRounds(RefillPlanner):
    """Rounds of one batch, whatever is missing: verl's."""

    def plan(self, num_needed: int, rounds_left: int | None = None) -> RoundPlan:
        """Returns the one round there is."""
        return RoundPlan(self.num_groups, num_needed, self.acceptance_rate, float("nan"))


class PolicyOnEngine:
    """
    One refill policy on an engine that it shares with others.

    Args:
        llm (`Any`):
            vLLM.
        outcomes (`Outcomes`):
            What the draws give.
        refill, surplus (`str`):
            As in `DAPOConfig`.
        is_fixed (`bool`, *optional*, defaults to `False`):
            Whether rounds are verl's.
        reward (`Callable`, *optional*):
            Grades completions, for its cost alone: the verdict is foretold. `None`: there is no cost.
    """

    def __init__(
        self,
        llm: Any,
        outcomes: Outcomes,
        refill: str,
        surplus: str = "requeue",
        is_fixed: bool = False,
        reward: Reward | None = None,
    ):
        setting = self.setting = outcomes.setting
        self.outcomes, self.is_fixed, self.reward = outcomes, is_fixed, reward
        self.seconds_grading = 0.0
        args = DAPOConfig(
            output_dir=tempfile.gettempdir(), use_cpu=True, bf16=False, report_to="none", use_vllm=True,
            vllm_mode="colocate", refill=refill, surplus=surplus, num_generations=setting.num_generations,
            per_device_train_batch_size=setting.num_groups * setting.num_generations, steps_per_generation=1,
            max_completion_length=setting.max_tokens, seed=setting.seed,
        )  # fmt: skip
        ranks = Ranks(Accelerator(cpu=True))
        self.requests = MeasuredRequests(Generation(llm, setting.max_tokens), outcomes)
        grader = GroupGrader(self._grade, ranks.device)
        groups = LocalGroups(self.requests, grader, lambda rows: [PROMPT_IDS] * len(rows))
        self.sampler = make_dynamic_sampler(
            args, ranks, [{"prompt": "w0 w1"}] * 100_000, groups if refill == "stream" else self._sample_round,
            GroupJudge([0]), num_rewards=1,
            score=lambda rollouts: [torch.zeros(len(rollout.completion_ids)) for rollout in rollouts],
        )  # fmt: skip
        if is_fixed:
            self.sampler.refill.planner.__class__ = FixedRounds
        self.num_batches = 0

    def next_batch(self) -> dict[str, Any]:
        """Fills one batch, and returns what it took."""
        requests, wall, cpu = self.requests, time.perf_counter(), time.process_time()
        requests.steps, requests.num_tokens, self.seconds_grading = [], 0, 0.0
        collected = self.sampler.collect(self.num_batches)
        batch = collected.ledger
        if self.is_fixed:
            self.sampler.source.seek(batch.sampled[-1].draw.position + 1)
        self.num_batches += 1
        return {
            "wall_seconds": round(time.perf_counter() - wall, 4),
            "cpu_seconds": round(time.process_time() - cpu, 4),
            "steps": len(requests.steps),
            "running": sum(running for running, _ in requests.steps),
            "tokens": requests.num_tokens,
            "aborted": batch.num_aborted_tokens,
            "trained": [group.draw.position for group in batch.accepted],
            "grading_hidden": collected.refill.metrics.get("stream/grading_hidden"),
            "seconds_grading": round(self.seconds_grading, 4),
        }

    def _grade(self, groups: list[StreamedGroup]) -> None:
        for group in groups:
            position = group.draw.position
            is_informative = self.outcomes.is_informative(position)
            for sample, tokens in enumerate(group.token_ids):
                assert len(tokens) == self.outcomes.lengths(position)[sample]
                group.facts.append(RowFacts(len(PROMPT_IDS), len(tokens), False))
                group.rewards.append([float(is_informative and sample == 0)])
                group.rollouts.append(group.rollout_so_far(sample))
        size = self.setting.num_generations
        self._pay([SequenceKey(group.draw.position, sample) for group in groups for sample in range(size)])

    def _sample_round(self, rows: list[dict[str, Any]], keys: list[SequenceKey]) -> Sampled:
        self.requests.begin()
        for key in keys:
            self.requests.submit(key, PROMPT_IDS, [])
        done: dict[SequenceKey, Decoded] = {}
        while self.requests.num_unfinished:
            done |= self.requests.step()
        rollouts = [Rollout.from_lists(PROMPT_IDS, done[key].token_ids, done[key].logps) for key in keys]
        rewards = [[float(self.outcomes.is_informative(key.position) and key.sample == 0)] for key in keys]
        self._pay(keys)
        facts = [RowFacts(len(PROMPT_IDS), len(done[key].token_ids), False) for key in keys]
        return Sampled(rollouts, rewards, facts)

    def _pay(self, keys: list[SequenceKey]) -> None:
        start = time.perf_counter()
        if self.reward is not None:
            self.reward(keys)
        self.seconds_grading += time.perf_counter() - start


POLICIES: dict[str, dict[str, Any]] = {
    "fixed rounds": {"refill": "rounds", "is_fixed": True},
    "rounds": {"refill": "rounds"},
    "rounds, carry": {"refill": "rounds", "surplus": "carry"},
    "stream": {"refill": "stream"},
    "stream, carry": {"refill": "stream", "surplus": "carry"},
}


def calibrate(llm: Any, max_tokens: int) -> tuple[StepCost, list[tuple[int, float]]]:
    """
    Measures a step with 1, 2, 4, ... running sequences.

    Returns:
        `tuple`: the line through the measurements, in CPU seconds, with relative errors weighted alike; and for each number
        of running sequences the median step.
    """
    points = []
    num_running, most = 1, llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
    while num_running <= most:
        seconds = []
        for number in range(5):
            setting = Setting(1, num_running, 1, most, 0.5, 40, 0.0, max_tokens, StepCost(1.0, 0.0))
            requests = MeasuredRequests(Generation(llm, max_tokens), Outcomes(setting))
            requests.begin()
            for sample in range(num_running):
                requests.submit(SequenceKey(number, sample), PROMPT_IDS, [])
            while requests.num_unfinished:
                requests.step()
            seconds += [step for _, step in requests.steps[2:-2]]
        points.append((num_running, statistics.median(seconds)))
        num_running *= 2
    running, median = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    begin, each = np.linalg.lstsq(np.stack([1 / median, running / median], axis=1), np.ones(len(points)), rcond=None)[
        0
    ]
    return StepCost(float(begin), float(each)), points


def _in_turns(
    policies: Mapping[str, PolicyOnEngine], num_batches: int, num_warm: int
) -> dict[str, dict[str, list[Any]]]:
    """Fills batches by all policies in turns, and returns what each took after the first `num_warm`: a list by figure."""
    names = list(policies)
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(num_warm + num_batches):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(policies[name].next_batch())
    # Sampled in rounds or not, the same groups train.
    trained = {name: [batch.pop("trained") for batch in batches] for name, batches in taken.items()}
    assert trained["rounds"] == trained["stream"]
    return {
        name: {figure: [batch[figure] for batch in batches[num_warm:]] for figure in batches[0]}
        for name, batches in taken.items()
    }


def measure(llm: Any, setting: Setting, num_batches: int, num_warm: int) -> dict[str, dict[str, list[Any]]]:
    """Returns what batches took by each policy, a list by figure."""
    outcomes = Outcomes(setting)
    policies = {name: PolicyOnEngine(llm, outcomes, **options) for name, options in POLICIES.items()}
    return _in_turns(policies, num_batches, num_warm)


def measure_overlap(llm: Any, setting: Setting, num_batches: int) -> dict[str, dict[str, list[Any]]]:
    """Returns the same for rounds and streaming whose completions the product's `accuracy_reward` grades, in its workers."""
    from grading import expressions

    from trl_dapo.grading import pool
    from trl_dapo.rewards import accuracy_reward

    pool._shared = pool.GradingPool(num_workers=1)
    outcomes = Outcomes(setting)
    policies = {}
    for seed, name in enumerate(("rounds", "stream")):
        # Each policy has answers of its own: what was graded before is remembered.
        samples = itertools.cycle(expressions(2000, random.Random(seed)))

        def grade(keys: list[SequenceKey], samples: Any = samples) -> None:
            golds, texts, _ = zip(*itertools.islice(samples, len(keys)), strict=True)
            accuracy_reward([[{"role": "assistant", "content": text}] for text in texts], solution=list(golds))

        policies[name] = PolicyOnEngine(llm, outcomes, reward=grade, **POLICIES[name])
    return _in_turns(policies, num_batches, num_warm=1)
