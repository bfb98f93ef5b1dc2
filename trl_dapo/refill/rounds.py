"""Filling the generation batch in rounds of sampling, each planned from what the earlier rounds found."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from trl_dapo.config.batch_shape import BatchShape
from trl_dapo.guards.reward_deadline import RewardCalls
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.ranks.rollout import Rollout, rollouts_of
from trl_dapo.sampling.judge import GroupJudge, GroupVerdict, Location, RowFacts, SampledGroup, TruncationRule
from trl_dapo.sampling.placement import deal_prompts
from trl_dapo.sampling.prompt_stream import Draw, SequenceKey
from trl_dapo.sampling.refill_ledger import RefillLedger
from trl_dapo.sampling.refill_planner import RefillPlanner
from trl_dapo.trl_seams import Generated, TrainerSeams
from trl_dapo.turns.environments import Environments
from trl_dapo.turns.episode import add_fields, is_unanswered
from trl_dapo.turns.tool_loop import ToolLoop
from trl_dapo.vllm_engine.canary import WeightCanary

from .assembly import ObserveGroups, RefillResult
from .image_prompts import IMAGE_COLUMNS, check_no_images, prepared_prompts
from .progress import BatchSoFar, SamplingProgress
from .prompt_source import PromptSource


@dataclass(frozen=True, slots=True)
class Sampled:
    """
    What one rank sampled in one round.

    Attributes:
        rollouts (`list[Rollout]`):
            The rollouts of this rank.
        rewards (`list[list[float]]`):
            Reward of each completion of *all* ranks by each reward function, rank-major, shape `(R, F)`.
        facts (`list[RowFacts]`):
            Lengths and truncation of the completions of this rank.
        metrics (`dict[str, float]`):
            What was measured meanwhile, by names below `dapo/`.
    """

    rollouts: list[Rollout]
    rewards: list[list[float]]
    facts: list[RowFacts]
    metrics: dict[str, float] = field(default_factory=dict)


# Samples one completion for each dataset row, and scores it. The keys name the completions.
SampleRound = Callable[[list[dict[str, Any]], list[SequenceKey]], Sampled]


class RolloutSampler:
    """
    Samples a completion for each row of a round, and scores it.

    Args:
        seams (`TrainerSeams`):
            Owns generation.
        rewards (`RewardCalls`):
            Computes the rewards.
        truncation_rule (`TruncationRule`):
            Tells which completions ran into a length limit.
        canary (`WeightCanary`, *optional*):
            Compares the engine with the trained model. `None`: the trained model generates.
        check_images (`Callable[[], None]`):
            Called when prompts have images.
        tool_loop (`ToolLoop`):
            Runs the turns after calls of tools.
        environments (`Environments`):
            Calls tools, environments and rollout functions.
    """

    def __init__(
        self,
        seams: TrainerSeams,
        rewards: RewardCalls,
        truncation_rule: TruncationRule,
        canary: WeightCanary | None,
        check_images: Callable[[], None],
        tool_loop: ToolLoop,
        environments: Environments,
    ):
        self.seams = seams
        self.rewards = rewards
        self.truncation_rule = truncation_rule
        self.canary = canary
        self.check_images = check_images
        self.tool_loop = tool_loop
        self.environments = environments

    def sample(self, inputs: list[dict[str, Any]], keys: list[SequenceKey]) -> Sampled:
        """Samples a completion for each row, named by the keys, and scores it. A collective."""
        # As the dataset has them: environments and rollout functions add to them.
        dataset_rows = [dict(row) for row in inputs]
        prompts = self._prompts(inputs)
        # Above TRL's tokenizer prompts with images can still be cut; below it the pixels of all rows are one tensor.
        part = self.seams.rows_at_once(len(prompts)) if self.seams.is_multimodal else len(prompts)
        prompt_ids: list[list[int]] = []
        completion_ids: list[list[int]] = []
        tool_mask: list[list[int]] = []
        completions: list[Any] = []
        logps: list[Any] = []
        facts: list[RowFacts] = []
        metrics: dict[str, float] = {}
        # Whether a rollout function gives them is known only afterwards, and rollouts are packed alike on all ranks.
        may_lack_logps = self.seams.has_rollout_function
        for start in range(0, len(prompts), part):
            rows = slice(start, start + part)
            generated = self._generate(prompts[rows], keys[rows], range(len(prompts))[rows])
            if generated.extra_fields:
                add_fields(inputs[rows], generated.extra_fields)
            if self.canary is not None:
                metrics |= self.canary.check(generated)
            prompt_ids += generated.prompt_ids
            completion_ids += generated.completion_ids
            tool_mask += generated.tool_mask or []
            completions += generated.completions
            logps += generated.logps or (
                [[None] * len(ids) for ids in generated.completion_ids] if may_lack_logps else []
            )
            facts += self.truncation_rule.facts(
                generated.prompt_ids,
                generated.completion_ids,
                generated.tool_mask,
                [is_unanswered(completion) for completion in generated.completions] if generated.tool_mask else None,
            )
        if self.seams.has_turns:
            faults = self.environments.faults
            rewards = self.rewards.compute(inputs, prompts, completions, completion_ids, faults)
            facts = [row._replace(env_fault=faults.of(number)) for number, row in enumerate(facts)]
        else:
            rewards = self.rewards.compute(inputs, prompts, completions, completion_ids)
        # Placeholders of empty completions are no tokens.
        lengths = [row.completion_length for row in facts]
        rollouts = rollouts_of(
            prompt_ids,
            [ids[:length] for ids, length in zip(completion_ids, lengths, strict=True)],
            [row[:length] for row, length in zip(logps, lengths, strict=True)] if logps else None,
            completions,
            # Only columns with one value a completion can follow their completions into the batch.
            self.seams.take_logged_columns(len(completions)),
            [row[:length] for row, length in zip(tool_mask, lengths, strict=True)] if tool_mask else None,
            prompts if self.seams.has_environments else None,
            dataset_rows,
        )
        return Sampled(rollouts, rewards.tolist(), facts, metrics)

    def _prompts(self, inputs: list[dict[str, Any]]) -> list[Any]:
        """Returns the prompts as they are sampled from."""
        if self.seams.has_turns:
            return self.environments.prepare(inputs, check_no_images)
        # A text model has no images, unless the dataset has a column of them: then this says what is wrong.
        has_images = self.seams.is_multimodal or not IMAGE_COLUMNS.isdisjoint(inputs[0])
        return prepared_prompts(inputs, self.check_images) if has_images else [row["prompt"] for row in inputs]

    def _generate(self, prompts: list[Any], keys: list[SequenceKey], rows: Sequence[int]) -> Generated:
        """Samples completions for these rows of a round."""
        if not self.seams.has_turns:
            return self.seams.generate(prompts, keys)
        self.tool_loop.keys, self.tool_loop.takes_images = keys, False
        self.tool_loop.around = self.environments.watching_loop
        try:
            with (
                self.seams.only_rows(rows),
                self.seams.rollout_function_called_by(self.environments.call_rollout_function),
            ):
                # Which completions the requests of a rollout function are, it knows alone.
                return self.seams.generate(prompts, () if self.seams.has_rollout_function else keys)
        finally:
            self.tool_loop.keys, self.tool_loop.takes_images = (), True
            self.tool_loop.around = nullcontext


@dataclass(frozen=True, slots=True)
class _Round:
    groups: list[SampledGroup]
    kept: dict[Location, Rollout]
    spare: tuple[Draw, Rollout]
    seconds: float
    metrics: dict[str, float]


class RoundSampler:
    """
    Samples and judges the prompts of one round on all ranks.

    In a round only numbers cross ranks (rewards, lengths, seconds), so that all ranks take the same decisions; rollouts
    stay where they were generated until the batch is complete.

    Args:
        num_generations (`int`):
            Completions per group G.
        ranks (`Ranks`):
            The ranks of the run.
        source (`PromptSource`):
            Has the dataset rows.
        sample (`SampleRound`):
            Samples this rank's completions.
        judge (`GroupJudge`):
            Judges the groups.
        observe (`ObserveGroups`, *optional*):
            Is shown the judged groups.
    """

    def __init__(
        self,
        num_generations: int,
        ranks: Ranks,
        source: PromptSource,
        sample: SampleRound,
        judge: GroupJudge,
        observe: ObserveGroups | None = None,
    ):
        self.num_generations = num_generations
        self.ranks = ranks
        self.source = source
        self.sample = sample
        self.judge = judge
        self.observe = observe
        self.num_rounds = 0

    def sample_round(self, draws: list[Draw], policy_step: int) -> _Round:
        """Returns the groups in stream order, and what this rank has of them. A collective."""
        start = time.perf_counter()
        rank = self.ranks.rank
        order = deal_prompts(len(draws), self.ranks.num_ranks)
        num_rows = len(draws) * self.num_generations // self.ranks.num_ranks
        rows = [divmod(row, self.num_generations) for row in range(rank * num_rows, (rank + 1) * num_rows)]
        local_draws = [draws[order[number]] for number, _ in rows]
        keys = [SequenceKey(draw.position, sample) for draw, (_, sample) in zip(local_draws, rows, strict=True)]
        sampled = self.sample(self.source.rows(local_draws), keys)
        microseconds = round((time.perf_counter() - start) * 1e6)
        facts = self.ranks.gather_rows([[*row, microseconds] for row in sampled.facts])
        groups = self.judge.judge(
            [draws[number] for number in order],
            sampled.rewards,
            [RowFacts(*row[:-1]) for row in facts],
            [Location(self.num_rounds, *divmod(row, num_rows)) for row in range(len(facts))],
            policy_step,
        )
        self.num_rounds += 1
        if self.observe is not None:
            self.observe(groups, lambda at: sampled.rollouts[at.row], self.source.row)
        kept = {
            at: sampled.rollouts[at.row]
            for group in groups
            if group.verdict is GroupVerdict.INFORMATIVE
            for at in group.locations
            if at.rank == rank
        }
        groups.sort(key=lambda group: group.draw.position)
        spare = local_draws[0], sampled.rollouts[0]
        return _Round(groups, kept, spare, max(row[-1] for row in facts) / 1e6, sampled.metrics)


class RoundRefill:
    """
    Samples the groups of generation batches in rounds; a [`Refill`].

    Args:
        shape (`BatchShape`):
            The shape of a generation batch.
        source (`PromptSource`):
            Gives the prompts.
        planner (`RefillPlanner`):
            Plans the rounds.
        sampler (`RoundSampler`):
            Samples them.
        progress (`SamplingProgress`, *optional*):
            Is told of each round.
    """

    def __init__(
        self,
        shape: BatchShape,
        source: PromptSource,
        planner: RefillPlanner,
        sampler: RoundSampler,
        progress: SamplingProgress | None = None,
    ):
        self.shape = shape
        self.source = source
        self.planner = planner
        self.sampler = sampler
        self.progress = progress or SamplingProgress()

    def fill(self, ledger: RefillLedger, policy_step: int) -> RefillResult:
        """Samples rounds until the batch is full or `max_generation_rounds` are used up; see [`Refill.fill`]."""
        kept: dict[Location, Rollout] = {}
        metrics: dict[str, float] = {}
        seconds, spare, plan = 0.0, None, None
        while (num_missing := ledger.num_missing) and ledger.num_rounds < self.shape.max_rounds:
            plan = self.planner.plan(num_missing, self.shape.max_rounds - ledger.num_rounds, self.source.chances())
            sampled = self.sampler.sample_round(self.source.draw(plan.num_prompts), policy_step)
            num_informative = sum(group.verdict is GroupVerdict.INFORMATIVE for group in sampled.groups)
            self.planner.observe(num_informative, len(sampled.groups), sampled.seconds)
            ledger.add_round(sampled.groups, sampled.seconds)
            kept |= sampled.kept
            metrics |= sampled.metrics
            seconds += sampled.seconds
            self.progress.update(
                BatchSoFar(len(ledger.accepted), ledger.num_groups, len(ledger.sampled), seconds, ledger.num_rounds)
            )
            spare = sampled.spare
        return RefillResult(kept, spare, seconds, plan, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Returns what tells the locations of later rounds from those so far."""
        return {"num_rounds": self.sampler.num_rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self.sampler.num_rounds = state["num_rounds"]
