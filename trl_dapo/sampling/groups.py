"""The G completions of one draw as every rank knows them, and the judgement on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from .group_filter import GroupFilter, GroupVerdict
from .prompt_stream import Draw


class Location(NamedTuple):
    """
    Where a rollout was generated.

    Attributes:
        round_number (`int`):
            Number of the round since the run began.
        rank (`int`):
            Rank that generated it, and keeps it.
        row (`int`):
            Its row in that round on that rank.
    """

    round_number: int
    rank: int
    row: int


class RowFacts(NamedTuple):
    """
    What ranks tell each other of a completion, beside its rewards.

    Attributes:
        prompt_length (`int`):
            In tokens.
        completion_length (`int`):
            In tokens; 0 for an empty completion.
        is_truncated (`int`):
            1 if it ran into the length limit, else 0.
    """

    prompt_length: int
    completion_length: int
    is_truncated: int


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
        locations (`list[Location]`):
            Where each rollout was generated.
        policy_step (`int`):
            Optimizer steps that the policy had taken when it sampled the group.
        truncated_in_statistics (`bool`):
            Whether truncated completions count in the statistics of the group.
    """

    draw: Draw
    verdict: GroupVerdict
    rewards: list[list[float]]
    filter_rewards: list[float]
    lengths: list[tuple[int, int]]
    is_truncated: list[bool]
    locations: list[Location]
    policy_step: int = 0
    truncated_in_statistics: bool = True

    @property
    def num_tokens(self) -> int:
        """Generated tokens of the group."""
        return sum(completion for _, completion in self.lengths)

    def rewards_in_statistics(self, sample: int) -> list[float]:
        """Returns the rewards with which a completion enters mean and std of its group; NaN where it does not."""
        rewards = self.rewards[sample]
        is_left_out = self.is_truncated[sample] and not self.truncated_in_statistics
        return [math.nan] * len(rewards) if is_left_out else rewards

    def state_dict(self) -> dict[str, Any]:
        """Returns the group as JSON-able values."""
        return asdict(self) | {"verdict": self.verdict.value}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "SampledGroup":
        """Inverse of `state_dict`, also after a round trip through JSON."""
        values = dict(state)
        values["draw"] = Draw(**state["draw"])
        values["verdict"] = GroupVerdict(state["verdict"])
        values["lengths"] = [(prompt, completion) for prompt, completion in state["lengths"]]
        values["locations"] = [Location(*location) for location in state["locations"]]
        return cls(**values)


class GroupJudge:
    """
    Judges sampled groups.

    Args:
        filter_column (`int`):
            Column of the rewards that decides whether a group is informative.
        mean_range (`tuple[float, float]`, *optional*):
            Keep only groups whose mean reward lies strictly between the two bounds.
        masks_truncated (`bool`, *optional*, defaults to `False`):
            Whether truncated completions carry no loss.
        truncated_in_statistics (`bool`, *optional*, defaults to `True`):
            Whether truncated completions count in the statistics of their group.
    """

    def __init__(
        self,
        filter_column: int,
        mean_range: tuple[float, float] | None = None,
        masks_truncated: bool = False,
        truncated_in_statistics: bool = True,
    ):
        self.filter_column = filter_column
        self.masks_truncated = masks_truncated
        self.truncated_in_statistics = truncated_in_statistics
        self.group_filter = GroupFilter(mean_range, counts_masked=truncated_in_statistics)

    def judge(
        self,
        draws: Sequence[Draw],
        rewards: Sequence[Sequence[float]],
        facts: Sequence[RowFacts],
        locations: Sequence[Location] | None = None,
        policy_step: int = 0,
    ) -> list[SampledGroup]:
        """
        Judges the groups of one round, of which each has G consecutive rows of R.

        Args:
            draws (`Sequence[Draw]`):
                The draw of each group.
            rewards (`Sequence[Sequence[float]]`):
                Reward of each completion by each reward function, shape `(R, F)`. NaN or infinite: not scored.
            facts (`Sequence[RowFacts]`):
                Lengths and truncation of the R completions.
            locations (`Sequence[Location]`, *optional*):
                Where the R rollouts are. `None`: nobody will ask.
            policy_step (`int`, *optional*, defaults to `0`):
                Optimizer steps that the policy has taken.

        Returns:
            `list[SampledGroup]`: the groups with their verdicts, in the order of `draws`.
        """
        size = len(facts) // len(draws)
        groups = []
        for number, draw in enumerate(draws):
            rows = slice(number * size, (number + 1) * size)
            filter_rewards = [reward[self.filter_column] for reward in rewards[rows]]
            is_truncated = [bool(row.is_truncated) for row in facts[rows]]
            is_live = [not cut for cut in is_truncated] if self.masks_truncated else None
            groups.append(
                SampledGroup(
                    draw=draw,
                    verdict=self.group_filter.judge(filter_rewards, is_live),
                    # An infinite reward says nothing of the others: it would make every advantage of its group NaN.
                    rewards=[[value if math.isfinite(value) else math.nan for value in row] for row in rewards[rows]],
                    filter_rewards=filter_rewards,
                    lengths=[(row.prompt_length, row.completion_length) for row in facts[rows]],
                    is_truncated=is_truncated,
                    locations=[] if locations is None else list(locations[rows]),
                    policy_step=policy_step,
                    truncated_in_statistics=self.truncated_in_statistics,
                )
            )
        return groups
