"""The groups sampled for one generation batch, and what became of them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .group_filter import GroupVerdict, is_correct
from .prompt_stream import Draw


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """
    The G completions of one draw, as every rank knows them: numbers only, the rollouts stay where they were generated.

    Attributes:
        draw (`Draw`):
            The draw from the prompt stream.
        verdict (`GroupVerdict`):
            What the group filter says.
        rewards (`list[list[float]]`):
            Reward of each completion by each reward function, shape `(G, F)`. NaN: not scored.
        filter_rewards (`list[float]`):
            The column of `rewards` that the filter judged.
        lengths (`list[tuple[int, int]]`):
            Prompt and completion length of each completion, in tokens.
        is_truncated (`list[bool]`):
            Whether each completion ran into the length limit.
        locations (`list[tuple[int, int, int]]`):
            Round, rank and row on that rank of each rollout.
    """

    draw: Draw
    verdict: GroupVerdict
    rewards: list[list[float]]
    filter_rewards: list[float]
    lengths: list[tuple[int, int]]
    is_truncated: list[bool]
    locations: list[tuple[int, int, int]]

    @property
    def num_tokens(self) -> int:
        """Generated tokens of the group."""
        return sum(completion for _, completion in self.lengths)


@dataclass
class BatchCollection:
    """
    Collects the first `num_groups` informative groups in stream order.

    Whatever was sampled behind the last accepted group goes back to the stream: `next_position` is where the next batch
    begins to draw. A batch is thus the same whatever the size of the rounds that found it.

    Attributes:
        num_groups (`int`):
            Groups of a full batch.
        accepted (`list[SampledGroup]`):
            The batch so far, in stream order.
        sampled (`list[SampledGroup]`):
            Every group of every round, in stream order.
        num_rounds (`int`):
            Generation rounds so far.
        next_position (`int`):
            Stream position just past the last draw that the batch has used up.
    """

    num_groups: int
    next_position: int
    accepted: list[SampledGroup] = field(default_factory=list)
    sampled: list[SampledGroup] = field(default_factory=list)
    num_rounds: int = 0

    @property
    def num_missing(self) -> int:
        """Informative groups that the batch still lacks."""
        return self.num_groups - len(self.accepted)

    def add_round(self, groups: Sequence[SampledGroup]) -> list[SampledGroup]:
        """
        Takes the groups of one round, in stream order.

        Returns:
            `list[SampledGroup]`: the groups of the round that the batch accepted.
        """
        self.num_rounds += 1
        newly_accepted = []
        for group in groups:
            self.sampled.append(group)
            if not self.num_missing:
                continue
            self.next_position = group.draw.position + 1
            if group.verdict is GroupVerdict.INFORMATIVE:
                self.accepted.append(group)
                newly_accepted.append(group)
        return newly_accepted

    @property
    def verdict_counts(self) -> dict[str, int]:
        """Number of sampled groups per verdict."""
        counts = Counter(group.verdict.value for group in self.sampled)
        return {verdict.value: counts[verdict.value] for verdict in GroupVerdict}

    def metrics(self) -> dict[str, float]:
        """
        Returns the figures of the batch, each over all sampled completions but `trained_accuracy`.

        `sampled_accuracy` is the learning curve: the accuracy of the trained batch is pulled towards one half by the
        filter itself. A batch without scored completions has accuracy NaN.
        """
        counts = self.verdict_counts
        num_tokens = sum(group.num_tokens for group in self.sampled)
        num_trained_tokens = sum(group.num_tokens for group in self.accepted)
        return {
            "rounds": float(self.num_rounds),
            "prompts_drawn": float(len(self.sampled)),
            "acceptance_rate": counts["informative"] / len(self.sampled),
            "frac_all_correct": counts["all_correct"] / len(self.sampled),
            "frac_all_wrong": counts["all_wrong"] / len(self.sampled),
            "frac_unscorable": counts["unscorable"] / len(self.sampled),
            "sampled_accuracy": _accuracy(self.sampled),
            "trained_accuracy": _accuracy(self.accepted),
            "rollout_efficiency": num_trained_tokens / num_tokens if num_tokens else 0.0,
            "exhausted": float(self.num_missing > 0),
        }

    def length_metrics(self) -> dict[str, float]:
        """Returns TRL's figures of completion length in tokens, over all sampled completions."""
        lengths = [completion for group in self.sampled for _, completion in group.lengths]
        is_truncated = [truncated for group in self.sampled for truncated in group.is_truncated]
        terminated = [length for length, cut in zip(lengths, is_truncated, strict=True) if not cut] or [0]
        return {
            "completions/mean_length": sum(lengths) / len(lengths),
            "completions/min_length": float(min(lengths)),
            "completions/max_length": float(max(lengths)),
            "completions/clipped_ratio": sum(is_truncated) / len(is_truncated),
            "completions/mean_terminated_length": sum(terminated) / len(terminated),
            "completions/min_terminated_length": float(min(terminated)),
            "completions/max_terminated_length": float(max(terminated)),
        }


def _accuracy(groups: Sequence[SampledGroup]) -> float:
    scored = [reward for group in groups for reward in group.filter_rewards if math.isfinite(reward)]
    return sum(map(is_correct, scored)) / len(scored) if scored else math.nan
