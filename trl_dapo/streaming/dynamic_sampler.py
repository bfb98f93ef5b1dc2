"""The dynamic sampler of a run: by rounds, or group by group."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.config.selective_checks import read_prior_kinds
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.refill.assembly import BatchAssembler, ObserveGroups
from trl_dapo.refill.dynamic_sampling import DynamicSampler, Refill
from trl_dapo.refill.progress import SamplingProgress
from trl_dapo.refill.prompt_source import PromptSource
from trl_dapo.refill.rounds import RoundRefill, RoundSampler, SampleRound
from trl_dapo.sampling.judge import GroupJudge
from trl_dapo.sampling.pass_rates import PassRates
from trl_dapo.sampling.placement import prompts_multiple
from trl_dapo.sampling.prompt_selection import SelectiveRollout
from trl_dapo.sampling.refill_planner import RefillPlanner

from .group_exchange import GroupExchange
from .local_groups import LocalGroups
from .overlap import OverlappedSampler
from .stream_refill import StreamRefill


def make_dynamic_sampler(
    args: DAPOConfig,
    ranks: Ranks,
    dataset: Dataset | IterableDataset,
    sampling: SampleRound | LocalGroups,
    judge: GroupJudge,
    num_rewards: int,
    score: Callable[[list[Rollout]], list[torch.Tensor]],
    observe: ObserveGroups | None = None,
    keep_awake: Callable[[], AbstractContextManager[Any]] = nullcontext,
    reward_names: Sequence[str] = (),
    progress: SamplingProgress | None = None,
    row_fault: Callable[[Mapping[str, Any]], str | None] | None = None,
    has_sampling_logps: bool | None = None,
) -> DynamicSampler:
    """
    Puts the dynamic sampler of a run together.

    Args:
        args (`DAPOConfig`):
            The trainer's configuration.
        ranks (`Ranks`):
            The ranks of the run.
        dataset (`Dataset` or `IterableDataset`):
            Dataset with a `prompt` column.
        sampling (`SampleRound` or `LocalGroups`):
            What samples: a round at a time, or group by group.
        judge (`GroupJudge`):
            Judges the sampled groups.
        num_rewards (`int`):
            Reward functions F.
        score (`Callable[[list[Rollout]], list[torch.Tensor]]`):
            As in [`DynamicSampler`].
        observe (`ObserveGroups`, *optional*):
            Is shown the judged groups.
        keep_awake (`Callable[[], AbstractContextManager]`, *optional*), reward_names (`Sequence[str]`, *optional*),
        progress (`SamplingProgress`, *optional*):
            As in [`DynamicSampler`].
        row_fault (`Callable[[Mapping], str | None]`, *optional*):
            As in [`PromptSource`].
        has_sampling_logps (`bool`, *optional*):
            As in [`BatchAssembler`]. `None`: if vLLM samples.
    """
    shape = args.shape
    selective = _selective_rollout(args, dataset)
    source = PromptSource(dataset, args.seed, bool(args.shuffle_dataset), selective, row_fault)
    planner = RefillPlanner(
        shape.num_groups,
        args.refill_confidence,
        shape.max_prompts_per_round,
        prompts_multiple(shape.num_generations, ranks.num_ranks),
        shape.keeps_surplus,
    )
    refill: Refill
    kind = OverlappedSampler if args.overlap else DynamicSampler
    if isinstance(sampling, LocalGroups):
        exchange = GroupExchange(ranks, judge, shape.num_generations, num_rewards)
        refill = StreamRefill(shape, source, planner, sampling, exchange, observe, progress)
    else:
        rounds = RoundSampler(shape.num_generations, ranks, source, sampling, judge, observe)
        refill = RoundRefill(shape, source, planner, rounds, progress)
    assembler = BatchAssembler(
        shape.num_generations,
        ranks,
        source,
        num_rewards,
        bool(args.use_vllm) if has_sampling_logps is None else has_sampling_logps,
        bool(args.log_completions),
    )
    return kind(shape, source, refill, assembler, score, keep_awake, reward_names, progress)


def _selective_rollout(args: DAPOConfig, dataset: Dataset | IterableDataset) -> SelectiveRollout | None:
    if not args.selective_rollout or isinstance(dataset, IterableDataset):
        return None
    kinds, prior_rates = read_prior_kinds(dataset, args.pass_rate_column, args.label_column)
    rates = PassRates(len(dataset), args.shape.num_generations, args.filter_bounds, kinds, prior_rates)
    return SelectiveRollout(rates, args.exploration_share, args.evict_above)
