"""What a run says of its generation batches: metrics by name, and a warning where something is wrong with one."""

import math
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any

from accelerate.logging import get_logger

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.refill.assembly import GenerationBatch
from trl_dapo.sampling.env_faults import EnvFault
from trl_dapo.sampling.judge import GroupVerdict, SampledGroup
from trl_dapo.sampling.refill_ledger import RefillLedger, verdict_counts


logger = get_logger(__name__)

# Consecutive generation batches without an informative group after which a run stops.
_MAX_EMPTY_BATCHES = 5


class BatchReporter:
    """
    Turns generation batches into metrics, and what is wrong with them into warnings, each once.

    Args:
        args (`DAPOConfig`):
            The trainer's configuration.
        penalty_column (`int` or `None`):
            Column of the rewards that holds the soft overlong punishment.
        num_ranks (`int`, *optional*, defaults to `1`):
            Processes of the run.
        has_turns (`bool`, *optional*, defaults to `False`):
            Whether tools, environments or a rollout function take part in completions.
    """

    def __init__(self, args: DAPOConfig, penalty_column: int | None, num_ranks: int = 1, has_turns: bool = False):
        self.free_length = args.free_length
        self.penalty_column = penalty_column
        self.has_turns = has_turns
        self.always_zero = always_zero_metrics(args, num_ranks)
        self._num_empty_batches = 0
        self._has_warned: set[str] = set()

    def metrics(self, batch: GenerationBatch) -> dict[str, float]:
        """Returns the metrics of a batch that dynamic sampling collected, by their names below `dapo/`."""
        ledger, refill = batch.ledger, batch.refill
        metrics = ledger_metrics(ledger) | self._overlong_metrics(ledger.sampled)
        metrics |= turn_metrics(ledger.sampled) if self.has_turns else {}
        metrics |= batch.source_metrics
        metrics["seconds_sampling"] = refill.seconds
        metrics |= refill.metrics
        metrics["moved_bytes"] = 4.0 * batch.num_moved_words
        if batch.last_plan is not None:
            metrics["acceptance_estimate"] = batch.last_plan.acceptance_rate
        return metrics

    def drawn_metrics(self, groups: Sequence[SampledGroup]) -> dict[str, float]:
        """Returns the metrics of a batch that was drawn without dynamic sampling."""
        turns = {"turns/mean": turn_metrics(groups)["turns/mean"]} if self.has_turns else {}
        return group_metrics(groups) | self._overlong_metrics(groups) | turns

    def drop_always_zero(self, metrics: MutableMapping[str, Any]) -> None:
        """
        Removes metrics that can only be zero in this configuration from those that a log line is made of.

        Args:
            metrics (`MutableMapping[str, list[float]]`):
                The values of each metric since the last log line. Changed in place.
        """
        for name in self.always_zero:
            if not any(metrics.get(name, ())):
                metrics.pop(name, None)

    def warn(self, ledger: RefillLedger) -> str | None:
        """Warns of a batch that is not full or has unreadable golds; returns why the run should stop, if it should."""
        if ledger.num_missing:
            self._warn_once(
                "exhausted",
                ledger.describe_exhaustion()
                + "\nThe batch trains on what was found (`on_exhausted='partial'`); `dapo/exhausted` counts such batches.",
            )
        # Of faults of environments there is a warning of their own.
        unscorable = [
            group for group in ledger.sampled if group.verdict is GroupVerdict.UNSCORABLE and not any(group.env_faults)
        ]
        if unscorable:
            rows = sorted({group.draw.index for group in unscorable})[:5]
            self._warn_once(
                "unscorable",
                f"No completion of dataset rows {rows} got a reward: the gold answer could not be read, or every reward "
                "function returned None. Such prompts are skipped; `dapo/frac_unscorable` counts them.",
            )
        self._num_empty_batches = 0 if ledger.accepted else self._num_empty_batches + 1
        if self._num_empty_batches < _MAX_EMPTY_BATCHES:
            return None
        return (
            f"{self._num_empty_batches} consecutive generation batches had no informative group, the last one: "
            + ledger.describe_exhaustion()
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the warnings that were given, and how many consecutive batches were empty."""
        return {"has_warned": sorted(self._has_warned), "num_empty_batches": self._num_empty_batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self._has_warned = set(state["has_warned"])
        self._num_empty_batches = state["num_empty_batches"]

    def _overlong_metrics(self, groups: Sequence[SampledGroup]) -> dict[str, float]:
        if self.penalty_column is None or self.free_length is None:
            return {}
        return overlong_metrics(groups, self.free_length, self.penalty_column)

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._has_warned:
            self._has_warned.add(topic)
            logger.warning(message)


def always_zero_metrics(args: DAPOConfig, num_ranks: int) -> Collection[str]:
    """
    Returns the names of metrics that can only be zero in a configuration.

    Args:
        args (`DAPOConfig`):
            The configuration.
        num_ranks (`int`):
            Processes of the run.
    """
    impossible = {
        "carried": args.surplus != "carry",
        "stale": args.surplus != "carry",
        "skipped_prompts": not args.selective_rollout,
        "selection/evicted": args.evict_above is None,
        "exhausted": args.on_exhausted == "error",
        "moved_bytes": num_ranks == 1,
    }
    for unit in ("tokens", "seconds"):
        impossible[f"{unit}/aborted"] = args.refill != "stream"
        impossible[f"{unit}/out_of_range"] = args.filter_range is None
        impossible[f"{unit}/truncated_out"] = not args.mask_truncated_completions
    # With one optimizer step on rollouts of the same policy, TRL takes the ratio to be 1.
    is_on_time = args.surplus != "carry" and not args.overlap
    is_on_policy = args.num_updates_per_batch == 1 and is_on_time and not args.trl_computes_old_logps
    impossible |= {"clip_high/frac_of_positive": is_on_policy, "clip_low/frac_of_negative": is_on_policy}
    names = [f"dapo/{name}" for name, is_impossible in impossible.items() if is_impossible]
    return [*names, *(_TRL_CLIP_RATIOS if is_on_policy else ())]


# TRL's shares of clipped tokens.
_TRL_CLIP_RATIOS = tuple(
    f"clip_ratio/{name}" for name in ("low_mean", "low_min", "high_mean", "high_max", "region_mean")
)


# What TRL's loss logs that has a value without tokens too.
_NOT_OVER_TOKENS = frozenset({"entropy_coef", "aux_loss", "policy_loss"})


def ledger_metrics(ledger: RefillLedger) -> dict[str, float]:
    """
    Returns the metrics of a batch, over all completions sampled for it; `trained_accuracy` is over the trained ones.

    A metric over nothing is NaN: accuracy without scored completions, shares when the whole batch was carried.
    """
    num_tokens = ledger.num_sampled_tokens
    num_trained_tokens = sum(group.num_tokens for group in ledger.accepted)
    return {
        "rounds": float(ledger.num_rounds),
        "prompts_drawn": float(len(ledger.sampled)),
        **group_metrics(ledger.sampled),
        "trained_accuracy": accuracy(ledger.accepted),
        "frac_rare_success": _mean([group.is_rare_success for group in ledger.accepted]),
        "rollout_efficiency": num_trained_tokens / num_tokens if num_tokens else math.nan,
        "exhausted": float(ledger.num_missing > 0),
        "carried": float(ledger.num_carried),
        "stale": float(ledger.num_stale),
        "skipped_prompts": float(ledger.num_skipped),
        **{f"tokens/{fate}": float(count) for fate, count in ledger.tokens_by_fate().items()},
        **{f"seconds/{fate}": seconds for fate, seconds in ledger.seconds_by_fate().items()},
    }


def accuracy(groups: Sequence[SampledGroup]) -> float:
    """Returns the share of correct completions among the scored ones."""
    return _mean([mark for group in groups for mark in group.marks if mark is not None])


def group_metrics(groups: Sequence[SampledGroup]) -> dict[str, float]:
    """
    Returns shares of groups by verdict, accuracy, and length in tokens by correctness.

    `sampled_accuracy` is the learning curve: the accuracy of a filtered batch is pulled towards one half by the filter
    itself.
    """
    counts = verdict_counts(groups)
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for group in groups:
        for mark, length in zip(group.marks, group.generated_lengths, strict=True):
            if mark is not None:
                lengths[mark].append(length)

    def share(verdict: GroupVerdict) -> float:
        return counts[verdict.value] / len(groups) if groups else math.nan

    return {
        "acceptance_rate": share(GroupVerdict.INFORMATIVE),
        "frac_all_correct": share(GroupVerdict.ALL_CORRECT),
        "frac_all_wrong": share(GroupVerdict.ALL_WRONG),
        "frac_unscorable": share(GroupVerdict.UNSCORABLE),
        "sampled_accuracy": accuracy(groups),
        "length/correct": _mean(lengths[True]),
        "length/wrong": _mean(lengths[False]),
    }


def overlong_metrics(groups: Sequence[SampledGroup], free_length: int, penalty_column: int) -> dict[str, float]:
    """
    Returns the metrics of the soft overlong punishment.

    Args:
        groups (`Sequence[SampledGroup]`):
            The sampled groups.
        free_length (`int`):
            Longest completion without a punishment, L_max - L_cache, in tokens.
        penalty_column (`int`):
            Column of the rewards that holds the punishment.
    """
    penalties = [reward[penalty_column] for group in groups for reward in group.rewards]
    return {
        "overlong/frac": _mean([length > free_length for group in groups for _, length in group.lengths]),
        "overlong/penalty_mean": _mean([penalty for penalty in penalties if not math.isnan(penalty)]),
    }


def turn_metrics(groups: Sequence[SampledGroup]) -> dict[str, float]:
    """
    Returns the turns that the model took in a completion, and the share of completions that a fault of an environment or a
    tool left without a reward, in all and by cause.
    """
    turns: list[int] = []
    faults: list[int] = []
    for group in groups:
        size = len(group.lengths)
        turns += group.num_turns or [1] * size
        faults += group.env_faults or [EnvFault.NONE] * size
    causes = {"raised": EnvFault.RAISED, "timed_out": EnvFault.TIMED_OUT, "not_reset": EnvFault.NOT_RESET}
    return {
        "turns/mean": _mean(turns),
        "frac_env_failed": _mean([fault != EnvFault.NONE for fault in faults]),
        **{f"frac_env_failed/{name}": _mean([fault == cause for fault in faults]) for name, cause in causes.items()},
    }


def environment_metrics(groups: Sequence[SampledGroup], environments: Sequence[str]) -> dict[str, float]:
    """
    Returns by environment what tells which of them teaches: acceptance, accuracy, length, turns and faults.

    Args:
        groups (`Sequence[SampledGroup]`):
            The sampled groups.
        environments (`Sequence[str]`):
            The environment of each.
    """
    metrics: dict[str, float] = {}
    for name in sorted(set(environments)):
        own = [group for group, environment in zip(groups, environments, strict=True) if environment == name]
        of_groups, of_turns = group_metrics(own), turn_metrics(own)
        found = {name: of_groups[name] for name in ("acceptance_rate", "sampled_accuracy")}
        found["mean_length"] = _mean([length for group in own for length in group.generated_lengths])
        found |= {name: of_turns[name] for name in ("turns/mean", "frac_env_failed")}
        metrics |= {f"environments/{name}/{metric}": value for metric, value in found.items()}
    return metrics


def tool_metrics(calls: Sequence[Sequence[int]], num_completions: int) -> dict[str, float]:
    """
    Returns TRL's metrics of calls of tools.

    Args:
        calls (`Sequence[Sequence[int]]`):
            For each rank, its calls and how many of them TRL answered with an error.
        num_completions (`int`):
            Completions over all ranks.

    >>> tool_metrics([[6, 1], [2, 1]], num_completions=16)
    {'tools/call_frequency': 0.5, 'tools/failure_frequency': 0.25}
    """
    if not num_completions:
        return {}
    num_calls, num_failed = (sum(counts) for counts in zip(*calls, strict=True))
    return {
        "tools/call_frequency": num_calls / num_completions,
        "tools/failure_frequency": num_failed / num_calls if num_calls else 0.0,
    }


def completion_metrics(groups: Sequence[SampledGroup]) -> dict[str, float]:
    """Returns TRL's metrics of completion length in tokens; NaN where no completion ended by itself."""
    lengths = [length for group in groups for length in group.generated_lengths]
    is_truncated = [truncated for group in groups for truncated in group.is_truncated]
    if not lengths:
        return {}
    terminated = [float(length) for length, cut in zip(lengths, is_truncated, strict=True) if not cut] or [math.nan]
    return {
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": _mean(is_truncated),
        "completions/mean_terminated_length": _mean(terminated),
        "completions/min_terminated_length": float(min(terminated)),
        "completions/max_terminated_length": float(max(terminated)),
    }


def without_value(metrics: MutableMapping[str, list[float]], num_before: Mapping[str, int]) -> None:
    """
    Marks values that TRL computed over no tokens: they become NaN.

    Args:
        metrics (`MutableMapping[str, list[float]]`):
            The values of each metric since the last log line. Changed in place.
        num_before (`Mapping[str, int]`):
            How many of them were there before.

    Example:

    >>> metrics = {"entropy": [1.5, 0.0], "entropy_coef": [0.1]}
    >>> without_value(metrics, {"entropy": 1})
    >>> metrics
    {'entropy': [1.5, nan], 'entropy_coef': [0.1]}
    """
    for name, values in metrics.items():
        if name not in _NOT_OVER_TOKENS:
            first = num_before.get(name, 0)
            values[first:] = [math.nan] * len(values[first:])


def drop_without_value(metrics: MutableMapping[str, list[float]]) -> None:
    """
    Removes metrics of which no value is a number. TRL would log them as None.

    >>> metrics = {"reward": [math.nan], "entropy": [1.5, math.nan]}
    >>> drop_without_value(metrics)
    >>> metrics
    {'entropy': [1.5, nan]}
    """
    for name in [name for name, values in metrics.items() if all(map(math.isnan, values))]:
        del metrics[name]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
