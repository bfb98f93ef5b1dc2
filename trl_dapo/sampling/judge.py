"""
Which completions were cut off, and which groups have a learning signal: the constraint 0 < #{correct} < G of DAPO Eq. 11
(https://huggingface.co/papers/2503.14476). A group is judged by one reward of its completions, before any shaping: by the
first that scored it.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from .generation_end import GenerationEnd
from .prompt_stream import Draw


# Token ids of one prompt or completion.
Tokens = Sequence[int] | np.ndarray

# Largest spread of equal rewards: float32 sums of the same terms in another order differ by about 1e-8.
REWARD_TOLERANCE = 1e-6


class GroupVerdict(str, Enum):
    """What the group filter says of a group. Only `INFORMATIVE` groups train."""

    INFORMATIVE = "informative"
    ALL_CORRECT = "all_correct"
    ALL_WRONG = "all_wrong"
    UNIFORM = "uniform"  # all rewards equal, at a value that is neither correct nor wrong
    UNSCORABLE = "unscorable"  # no completion has a reward
    OUT_OF_RANGE = "out_of_range"  # rewards differ, but their mean is outside `filter_range`
    TRUNCATED_OUT = "truncated_out"  # what differs from the mean is truncated, and truncated completions are masked


class Fate(str, Enum):
    """What became of a sampled group."""

    TRAINED = "trained"
    FILTERED = "filtered"  # its verdict says why
    SURPLUS = "surplus"  # informative, but the batch had no room for it
    STALE = "stale"  # carried for a later batch, and too old when that batch began
    ABORTED = "aborted"  # given up before its completions were finished, so that it has no verdict


def is_correct(reward: float) -> bool:
    """
    Whether a filter reward means a correct answer: 1 or more. This fits rewards in {0, 1}, {-1, 1} and {0, 10}.

    >>> is_correct(1.0), is_correct(0.5), is_correct(-1.0)
    (True, False, False)
    """
    return reward >= 1.0 - REWARD_TOLERANCE


def differs(rewards: Sequence[float]) -> bool:
    """
    Whether rewards differ. Those that are NaN or infinite are left out.

    >>> differs([1.0, 0.0, float("nan")]), differs([0.1 + 0.2, 0.3])
    (True, False)
    """
    scored = [reward for reward in rewards if math.isfinite(reward)]
    return bool(scored) and max(scored) - min(scored) > REWARD_TOLERANCE


class GroupFilter:
    """
    Judges a group by one reward of its completions, before any shaping.

    Spread is measured as max - min, never as a standard deviation: the float32 standard deviation of equal rewards need
    not be zero, and that of a group without rewards is NaN.

    Args:
        mean_range (`tuple[float, float]`, *optional*):
            Keep only groups whose mean reward lies strictly between the two bounds.
        counts_masked (`bool`, *optional*, defaults to `True`):
            Whether completions that carry no loss count in the mean and the spread of their group. `False`: a group
            whose live completions are all alike is not informative, whatever the others are.

    Example:

    >>> group_filter = GroupFilter()
    >>> group_filter.judge([1.0, 0.0, 0.0, 0.0]).value
    'informative'
    >>> group_filter.judge([0.0, 0.0, float("nan"), 0.0]).value
    'all_wrong'
    """

    def __init__(self, mean_range: tuple[float, float] | None = None, counts_masked: bool = True):
        self.mean_range = mean_range
        self.counts_masked = counts_masked

    def judge(self, rewards: Sequence[float], is_live: Sequence[bool] | None = None) -> GroupVerdict:
        """
        Args:
            rewards (`Sequence[float]`):
                The filter reward of each of the G completions. NaN or infinite: not scored, ignored.
            is_live (`Sequence[bool]`, *optional*):
                Whether each completion carries loss. `None`: all do.
        """
        scored = [reward for reward in rewards if math.isfinite(reward)]
        if not scored:
            return GroupVerdict.UNSCORABLE
        lowest, highest = min(scored), max(scored)
        if highest - lowest <= REWARD_TOLERANCE:
            if is_correct(lowest):
                return GroupVerdict.ALL_CORRECT
            return GroupVerdict.ALL_WRONG if highest <= REWARD_TOLERANCE else GroupVerdict.UNIFORM
        live = [
            reward
            for reward, carries_loss in zip(rewards, is_live or [True] * len(rewards), strict=True)
            if carries_loss and math.isfinite(reward)
        ]
        if not live:
            return GroupVerdict.TRUNCATED_OUT
        counted = scored if self.counts_masked else live
        mean = math.fsum(counted) / len(counted)
        if self.mean_range is not None and not self.mean_range[0] < mean < self.mean_range[1]:
            return GroupVerdict.OUT_OF_RANGE
        if all(abs(reward - mean) <= REWARD_TOLERANCE for reward in live):
            return GroupVerdict.TRUNCATED_OUT
        return GroupVerdict.INFORMATIVE


def judging_column(rewards: Sequence[Sequence[float]], columns: Sequence[int]) -> int:
    """
    Returns the reward that judges a group: the first that scored one of its completions.

    Args:
        rewards (`Sequence[Sequence[float]]`):
            Reward of each of the G completions by each reward function, shape `(G, F)`. NaN or infinite: not scored.
        columns (`Sequence[int]`):
            The columns that may judge, in this order. Where none scored a completion, the first of them is returned.

    Example:

    >>> judging_column([[float("nan"), 1.0], [float("nan"), 0.0]], [0, 1])
    1
    """
    scoring = (column for column in columns if any(math.isfinite(row[column]) for row in rewards))
    return next(scoring, columns[0])


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
    What ranks exchange about a completion, beside its rewards.

    Attributes:
        prompt_length (`int`):
            In tokens.
        completion_length (`int`):
            In tokens; 0 for an empty completion.
        is_truncated (`int`):
            1 if it ran into the length limit, else 0.
        num_tool_tokens (`int`):
            Tokens of the completion that a tool or an environment wrote, and what the chat template put around them.
        num_turns (`int`):
            Turns in which the model wrote a token.
        env_fault (`int`):
            The [`EnvFault`] that leaves it without a reward.
    """

    prompt_length: int
    completion_length: int
    is_truncated: int
    num_tool_tokens: int = 0
    num_turns: int = 1
    env_fault: int = 0


def count_turns(tool_mask: Sequence[int]) -> int:
    """
    Returns in how many turns the model wrote a token.

    Args:
        tool_mask (`Sequence[int]`):
            1 where the model wrote the token of a completion, else 0.

    >>> count_turns([1, 1, 0, 0, 1]), count_turns([])
    (2, 0)
    """
    return sum(mask and not before for before, mask in zip([0, *tool_mask], tool_mask, strict=False))


class EmptyCompletion(list[int]):
    """The one padding token that stands in for a completion without tokens."""


class TruncationRule:
    """
    Tells a completion that ended by itself from one that was cut off.

    An end-of-sequence token or a stop string ends a completion; the length limit, or the end of the context window, cuts
    it off. A completion that is shorter than every limit was stopped by something, whatever its last token is. So a stop
    string is not mistaken for a cut, nor a padding token for an end.

    Args:
        end_token_ids (`Collection[int]`):
            Tokens with which a completion ends.
        max_completion_length (`int` or `None`):
            Most tokens of a completion. `None`: no such limit.
        max_sequence_length (`int`, *optional*):
            Most tokens of prompt and completion together. `None`: no such limit.
        stop_strings (`Sequence[str]`, *optional*):
            Texts with which a completion ends.
        decode (`Callable[[list[int]], str]`, *optional*):
            Turns token ids into text. Needed with `stop_strings`.

    Example:

    >>> rule = TruncationRule(end_token_ids=[2], max_completion_length=3)
    >>> [rule.is_truncated(5, ids) for ids in ([7, 8, 9], [7, 8, 2], [7, 8], [])]
    [True, False, False, False]
    """

    def __init__(
        self,
        end_token_ids: Collection[int],
        max_completion_length: int | None,
        max_sequence_length: int | None = None,
        stop_strings: Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
    ):
        self.end_token_ids = frozenset(end_token_ids)
        self.max_completion_length = max_completion_length
        self.max_sequence_length = max_sequence_length
        self.stop_strings = tuple(stop_strings)
        self.decode = decode

    @classmethod
    def of_generation(
        cls, end: GenerationEnd, eos_token_ids: Sequence[int], decode: Callable[[list[int]], str]
    ) -> "TruncationRule":
        """
        Returns the rule for a trainer's settings.

        Args:
            end (`GenerationEnd`):
                What ends a completion.
            eos_token_ids (`Sequence[int]`):
                The end-of-sequence tokens of model and tokenizer.
            decode (`Callable[[list[int]], str]`):
                Turns token ids into text.

        >>> end = GenerationEnd(3, stop_strings=("!",), more_end_tokens=(5,))
        >>> rule = TruncationRule.of_generation(end, [2], lambda ids: "ab!")
        >>> sorted(rule.end_token_ids), rule.stop_strings
        ([2, 5], ('!',))
        """
        return cls(
            end.end_tokens(eos_token_ids), end.max_completion_length, end.max_sequence_length, end.stop_strings, decode
        )

    def facts(
        self,
        prompt_ids: Sequence[Tokens],
        completion_ids: Sequence[Tokens],
        tool_mask: Sequence[Sequence[int]] | None = None,
        is_unfinished: Sequence[bool] | None = None,
    ) -> list[RowFacts]:
        """
        Returns length and truncation of each completion.

        Args:
            prompt_ids (`Sequence[Tokens]`), completion_ids (`Sequence[Tokens]`):
                The tokens, without padding. An [`EmptyCompletion`] has none.
            tool_mask (`Sequence[Sequence[int]]`, *optional*):
                1 where the model wrote the token, else 0. `None`: it wrote all of them.
            is_unfinished (`Sequence[bool]`, *optional*):
                Which completions were cut off whatever their tokens say. `None`: none was.

        >>> rule = TruncationRule(end_token_ids=[2], max_completion_length=3)
        >>> [tuple(row)[:3] for row in rule.facts([[5], [5, 6]], [[7, 8, 9], EmptyCompletion([0])])]
        [(1, 3, True), (2, 0, False)]
        >>> rule.facts([[5]], [[7, 8, 2]], tool_mask=[[1, 0, 1]], is_unfinished=[True])[0]._asdict()
        {'prompt_length': 1, 'completion_length': 3, 'is_truncated': True, 'num_tool_tokens': 1, 'num_turns': 2, 'env_fault': 0}
        """
        facts = []
        for row, (prompt, ids) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
            if isinstance(ids, EmptyCompletion):
                facts.append(RowFacts(len(prompt), 0, False, num_turns=0 if tool_mask else 1))
                continue
            is_cut = self.is_truncated(len(prompt), ids) or bool(is_unfinished and is_unfinished[row])
            mask = tool_mask[row] if tool_mask else ()
            turns = count_turns(mask) if tool_mask else 1
            facts.append(RowFacts(len(prompt), len(ids), is_cut, len(mask) - sum(mask), turns))
        return facts

    def is_truncated(self, prompt_length: int, completion_ids: Tokens) -> bool:
        """
        Args:
            prompt_length (`int`):
                Length of the prompt in tokens.
            completion_ids (`Tokens`):
                The generated tokens, without padding. An empty completion is not truncated.
        """
        if not len(completion_ids) or completion_ids[-1] in self.end_token_ids:
            return False
        limits = [(self.max_completion_length, len(completion_ids))]
        limits += [(self.max_sequence_length, prompt_length + len(completion_ids))]
        given = [(limit, length) for limit, length in limits if limit is not None]
        has_room = bool(given) and all(length < limit for limit, length in given)
        return not has_room and not self._ends_in_stop_string(completion_ids)

    def _ends_in_stop_string(self, completion_ids: Tokens) -> bool:
        if not self.stop_strings or self.decode is None:
            return False
        # A token has at least one character, and an engine stops as soon as the string is there: it can only be here.
        num_tokens = max(map(len, self.stop_strings)) + 1
        tail = self.decode([int(token) for token in completion_ids[-num_tokens:]])
        return any(stop in tail for stop in self.stop_strings)


def max_rare_count(num_generations: int) -> int:
    """
    Most correct completions of a rare success, an informative group with few of them: an eighth of the group, at least 1.

    >>> max_rare_count(8), max_rare_count(16)
    (1, 2)
    """
    return max(1, num_generations // 8)


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
            The column of `rewards` that judged the group.
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
        filter_column (`int`):
            Number of the column that judged the group.
        num_tool_tokens (`list[int]`):
            Tokens of each completion that the model did not write. Empty: it wrote all of them.
        num_turns (`list[int]`):
            Turns of each completion in which the model wrote a token. Empty: one each.
        env_faults (`list[int]`):
            The [`EnvFault`] of each completion. Empty: none has any.
        generated_lengths (`list[int]`):
            Tokens of each completion that the model wrote.
        num_tokens (`int`):
            Their sum.
        marks (`list[bool | None]`):
            Whether each completion is correct by its filter reward. `None`: not scored.
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
    filter_column: int = 0
    num_tool_tokens: list[int] = field(default_factory=list)
    num_turns: list[int] = field(default_factory=list)
    env_faults: list[int] = field(default_factory=list)

    generated_lengths: list[int] = field(init=False, repr=False, compare=False)
    num_tokens: int = field(init=False, repr=False, compare=False)
    marks: list[bool | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        marks = [is_correct(reward) if math.isfinite(reward) else None for reward in self.filter_rewards]
        lengths = [completion for _, completion in self.lengths]
        if self.num_tool_tokens:
            lengths = [length - others for length, others in zip(lengths, self.num_tool_tokens, strict=True)]
        object.__setattr__(self, "generated_lengths", lengths)
        object.__setattr__(self, "num_tokens", sum(lengths))
        object.__setattr__(self, "marks", marks)

    def rewards_in_statistics(self) -> list[list[float]]:
        """Returns the rewards with which the completions enter mean and std of their group; NaN where one does not."""
        if self.truncated_in_statistics:
            return self.rewards
        return [
            [math.nan] * len(rewards) if is_truncated else rewards
            for rewards, is_truncated in zip(self.rewards, self.is_truncated, strict=True)
        ]

    @property
    def is_rare_success(self) -> bool:
        """Whether it is informative with few correct completions: an eighth of them, at least 1."""
        is_informative = self.verdict is GroupVerdict.INFORMATIVE
        return is_informative and 1 <= self.marks.count(True) <= max_rare_count(len(self.marks))

    def state_dict(self) -> dict[str, Any]:
        """Returns the group as JSON-able values."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        return values | {"draw": asdict(self.draw), "verdict": self.verdict.value}

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
        filter_columns (`Sequence[int]`):
            Columns of the rewards that may judge. A group is judged by the first of them that scored it.
        mean_range (`tuple[float, float]`, *optional*):
            Keep only groups whose mean reward lies strictly between the two bounds.
        masks_truncated (`bool`, *optional*, defaults to `False`):
            Whether truncated completions carry no loss.
        truncated_in_statistics (`bool`, *optional*, defaults to `True`):
            Whether truncated completions count in the statistics of their group.
    """

    def __init__(
        self,
        filter_columns: Sequence[int],
        mean_range: tuple[float, float] | None = None,
        masks_truncated: bool = False,
        truncated_in_statistics: bool = True,
    ):
        self.filter_columns = list(filter_columns)
        self.masks_truncated = masks_truncated
        self.truncated_in_statistics = truncated_in_statistics
        self.group_filter = GroupFilter(mean_range, counts_masked=truncated_in_statistics)

    def filter_rewards(self, rewards: Sequence[Sequence[float]], num_generations: int) -> list[float]:
        """
        Returns the reward of each completion that judges its group.

        Args:
            rewards (`Sequence[Sequence[float]]`):
                Reward of each completion by each reward function, shape `(R, F)`, those of a group in a row.
            num_generations (`int`):
                Completions of a group.
        """
        judged = []
        for start in range(0, len(rewards), num_generations):
            group = rewards[start : start + num_generations]
            column = judging_column(group, self.filter_columns)
            judged += [row[column] for row in group]
        return judged

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
                Where the R rollouts are. `None`: they are not kept.
            policy_step (`int`, *optional*, defaults to `0`):
                Optimizer steps that the policy has taken.

        Returns:
            `list[SampledGroup]`: the groups with their verdicts, in the order of `draws`.
        """
        size = len(facts) // len(draws)
        groups = []
        for number, draw in enumerate(draws):
            rows = slice(number * size, (number + 1) * size)
            column = judging_column(rewards[rows], self.filter_columns)
            filter_rewards = [reward[column] for reward in rewards[rows]]
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
                    filter_column=column,
                    num_tool_tokens=_unless_all(0, [row.num_tool_tokens for row in facts[rows]]),
                    num_turns=_unless_all(1, [row.num_turns for row in facts[rows]]),
                    env_faults=_unless_all(0, [int(row.env_fault) for row in facts[rows]]),
                )
            )
        return groups


def _unless_all(usual: Any, values: list[Any]) -> list[Any]:
    """Returns the values, or an empty list if all are the usual one."""
    return [] if all(value == usual for value in values) else values
