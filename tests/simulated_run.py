"""
A run of dynamic sampling on simulated ranks: everything is the product's own but generation, policy and clock.

What is generated is a function of the stream position and the number of the completion in its group, so that it can be
foretold without a run. Every rank notes what it was asked for.
"""

import math
import random
import threading
import time
import types
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from thread_ranks import ThreadRanks, run_ranks

import trl_dapo.refill.rounds
from trl_dapo import DAPOConfig
from trl_dapo.errors import RefillExhaustedError
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.refill.assembly import GenerationBatch
from trl_dapo.refill.rounds import Sampled
from trl_dapo.sampling.judge import GroupJudge, RowFacts
from trl_dapo.streaming.dynamic_sampler import make_dynamic_sampler
from trl_dapo.streaming.group_grader import GroupGrader
from trl_dapo.streaming.local_groups import LocalGroups
from trl_dapo.vllm_engine.sequence_engine import Decoded


END_TOKEN = 2
FIRST_TOKEN = 10  # of those that carry numbers


@dataclass(frozen=True)
class Scenario:
    """One run: its shape, its options and what its prompts give."""

    num_ranks: int
    num_generations: int
    num_groups: int
    num_rows: int
    num_batches: int
    # What a prompt gives is chosen among these with equal probability, anew for each draw or for each row once.
    outcomes: tuple[str, ...]
    is_persistent: bool = False
    seed: int = 0
    filter_column: int = 0
    is_iterable: bool = False
    # Optimizer steps on one batch.
    num_updates: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    # Completions that the engine of a rank decodes at once, where groups are refilled one by one.
    num_slots: int = 4

    def arguments(self) -> DAPOConfig:
        return DAPOConfig(
            output_dir="unused",
            per_device_train_batch_size=self.num_groups * self.num_generations,
            num_generations=self.num_generations,
            seed=self.seed,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **self.options,
        )

    def rewards(self, position: int, row: int) -> list[float]:
        """The filter reward of each completion of a draw."""
        chance = random.Random(f"{self.seed}/{row if self.is_persistent else f'at {position}'}")
        kind, size = chance.choice(self.outcomes), self.num_generations
        mixed = [1.0, 0.0, *(float(chance.random() < 0.5) for _ in range(size - 2))]
        chance.shuffle(mixed)
        return {
            "mixed": mixed,
            "all right": [1.0] * size,
            "all wrong": [0.0] * size,
            "uniform": [0.5] * size,
            "float noise": [1.0 + 3e-7 * reward for reward in mixed],
            "unscorable": [math.nan] * size,
            # May be informative or not: it depends on what is left.
            "half scored": [chance.choice([reward, math.nan]) for reward in mixed],
            "infinite": [math.inf, *[0.0] * (size - 1)],
        }[kind]

    def all_rewards(self, position: int, row: int, sample: int) -> list[float]:
        """The rewards of one completion, shape `(F,)`; the other column names the completion."""
        rewards = [self.rewards(position, row)[sample], float(position * self.num_generations + sample)]
        return rewards if self.filter_column == 0 else rewards[::-1]

    def rollout(self, position: int, row: int, sample: int) -> Rollout:
        prompt_ids = [FIRST_TOKEN + row] * (1 + row % 3)
        rest = [FIRST_TOKEN] * ((3 * position + 5 * sample) % 4)
        completion_ids = [FIRST_TOKEN + position, FIRST_TOKEN + sample, *rest, END_TOKEN]
        logps = None
        if self.options.get("use_vllm"):
            logps = [None if token == FIRST_TOKEN else -0.5 * token for token in completion_ids]
        return Rollout.from_lists(prompt_ids, completion_ids, logps, {"name": f"{position}/{sample}"})

    def logps(self, rollout: Rollout, policy_step: int) -> torch.Tensor:
        """The log-probabilities of a rollout under the policy after so many optimizer steps."""
        places = torch.arange(len(rollout.completion_ids))
        return -(1.0 + policy_step) - rollout.completion_ids / 2**10 - places / 2**14


@dataclass
class RankRecord:
    """What one rank was asked for in one batch, and what came out."""

    policy_step: int
    # For each round, the (position, row, sample) of each completion that this rank generated, and its seconds.
    asked: list[list[tuple[int, int, int]]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    batch: GenerationBatch | None = None
    error: RefillExhaustedError | None = None
    plan: Any = None
    state: dict[str, Any] = field(default_factory=dict)
    source_metrics: dict = field(default_factory=dict)
    position: int = 0
    seconds_sampling: float = 0.0
    # For each completion that this rank's engine worked on, the policy step that sampled each token.
    sampled_by: dict[Any, list[int]] = field(default_factory=dict)
    num_left: int = 0


class ScriptedEngine:
    """
    Decodes what a scenario says, a token a step of the first sequences in the line.

    Its log-probabilities tell which policy sampled the token.
    """

    def __init__(self, scenario: Scenario, table: list[dict[str, int]], records: list[RankRecord]):
        self.scenario = scenario
        self.num_slots = scenario.num_slots
        self.records = records
        self.line: dict[Any, tuple[list[int], list[int]]] = {}
        self.sampled_by: dict[Any, list[int]] = {}
        self.pace = random.Random(scenario.seed)
        # Completions do not depend on the row, and prompts are not asked for.
        self.num_rows = len(table)

    @property
    def num_unfinished(self) -> int:
        return len(self.line)

    def begin(self) -> None:
        self.policy_step = self.records[-1].policy_step

    def submit(self, key, prompt_ids, prefix) -> None:
        completion = self.scenario.rollout(key.position, 0, key.sample).completion_ids.tolist()
        assert completion[: len(prefix)] == prefix
        if not prefix:
            self.sampled_by[key] = []  # a prompt that was given back is sampled anew
        assert len(self.sampled_by[key]) == len(prefix)
        assert key not in self.line
        self.line[key] = (completion[len(prefix) :], [])

    def step(self):
        time.sleep(self.pace.choice((0.0, 0.0, 1e-4)))
        finished = {}
        for key in list(self.line)[: self.num_slots]:
            coming, decoded = self.line[key]
            decoded.append(coming.pop(0))
            self.sampled_by[key].append(self.policy_step)
            if not coming:
                finished[key] = self._decoded(key, decoded)
                del self.line[key]
        return finished

    def withdraw(self, keys):
        return {key: self._decoded(key, self.line.pop(key)[1]) for key in list(keys) if key in self.line}

    def _decoded(self, key, tokens):
        steps = self.sampled_by[key][len(self.sampled_by[key]) - len(tokens) :]
        return Decoded.of(tokens, [-0.5 * token - step for token, step in zip(tokens, steps, strict=True)])


def simulate(scenario: Scenario) -> list[list[RankRecord]]:
    """Runs the scenario; returns, for each batch, the record of each rank. A batch that raises is the last one."""
    args, clock = scenario.arguments(), threading.local()
    table = [{"row": row} for row in range(scenario.num_rows)]

    def work(ranks: ThreadRanks) -> list[RankRecord]:
        clock.now = 100.0 * ranks.rank
        records: list[RankRecord] = []

        def sample(inputs, keys):
            record = records[-1]
            assert [row["position"] for row in inputs] == [key.position for key in keys]
            asked = [(row["position"], row["row"], key.sample) for row, key in zip(inputs, keys, strict=True)]
            # Some ranks take longer than others, and not always the same ones.
            seconds = 1.0 + (7 * ranks.rank + 3 * len(records) + len(record.asked)) % 5 + len(asked) / 8
            clock.now += seconds
            record.asked.append(asked)
            record.seconds.append(seconds)
            rewards = [scenario.all_rewards(*completion) for completion in asked]
            assert_alike(ranks, len(asked))
            rollouts = [scenario.rollout(*completion) for completion in asked]
            facts = [RowFacts(len(r.prompt_ids), len(r.completion_ids), is_truncated=0) for r in rollouts]
            return Sampled(rollouts, ranks.gather_objects(rewards), facts)

        def compute_logps(rollouts):
            assert_alike(ranks, len(rollouts))
            return [scenario.logps(rollout, records[-1].policy_step) for rollout in rollouts]

        def grade(groups):
            for group in groups:
                for number, tokens in enumerate(group.token_ids):
                    rollout = group.rollout_so_far(number)
                    group.rollouts.append(rollout)
                    group.facts.append(RowFacts(len(group.prompt_ids), len(tokens), is_truncated=0))
                    group.rewards.append(scenario.all_rewards(group.draw.position, group.row["row"], number))

        engine = ScriptedEngine(scenario, table, records)
        groups = LocalGroups(
            engine,
            GroupGrader(grade, ranks.device),
            lambda rows: [scenario.rollout(row["position"], row["row"], 0).prompt_ids.tolist() for row in rows],
        )
        sampler = make_dynamic_sampler(
            args,
            ranks,
            Dataset.from_list(table).to_iterable_dataset() if scenario.is_iterable else table,
            groups if args.refill == "stream" else sample,
            GroupJudge([scenario.filter_column], args.filter_range),
            num_rewards=2,
            score=compute_logps,
        )
        source = sampler.source
        rows_of = source.rows
        source.rows = lambda draws: [
            {**row, "position": draw.position} for draw, row in zip(draws, rows_of(draws), strict=True)
        ]
        for number in range(scenario.num_batches):
            record = RankRecord(policy_step=number * scenario.num_updates)
            records.append(record)
            try:
                record.batch = sampler.collect(record.policy_step, args.on_exhausted == "error")
            except RefillExhaustedError as error:
                record.error = error
            record.plan, record.state = sampler.last_plan, sampler.state_dict()
            record.position, record.source_metrics = source.position, source.metrics
            record.seconds_sampling = record.batch.refill.seconds if record.batch else 0.0
            record.sampled_by = {key: list(steps) for key, steps in engine.sampled_by.items()}
            record.num_left = engine.num_unfinished
            if record.error:
                break
        return records

    own_clock = types.SimpleNamespace(perf_counter=lambda: clock.now)
    with mock.patch.object(trl_dapo.refill.rounds, "time", own_clock):
        per_rank = run_ranks(scenario.num_ranks, work)
    return [list(records) for records in zip(*per_rank, strict=True)]


def assert_alike(ranks: ThreadRanks, value: Any) -> None:
    """Fails when a collective is entered with unlike values; real ones would hang."""
    assert len(set(ranks.gather_objects([value]))) == 1
