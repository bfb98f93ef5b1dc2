"""The groups that were sampled for one generation batch, and what became of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from trl_dapo.errors import describe_exhaustion

from .judge import Fate, GroupVerdict, SampledGroup, differs


# Names under which tokens and seconds are counted. A filtered group counts under its verdict, which says why.
FATES: tuple[str, ...] = (
    Fate.TRAINED.value,
    Fate.SURPLUS.value,
    *(verdict.value for verdict in GroupVerdict if verdict is not GroupVerdict.INFORMATIVE),
    Fate.ABORTED.value,
)


@dataclass
class RefillLedger:
    """
    Collects the first `num_groups` informative groups in stream order.

    Informative groups sampled beyond the last accepted one are the surplus. Either they are given back: then
    `next_position` is just past the last accepted draw, what lies behind it is sampled again when its turn comes, and the
    batch is the same whatever the size of the rounds that found it. Or they are kept for the next batch: then
    `next_position` is past everything that was sampled.

    Attributes:
        num_groups (`int`):
            Groups of a full batch.
        next_position (`int`):
            Stream position at which the next batch begins to draw.
        keeps_surplus (`bool`):
            Whether the surplus is kept.
        carried (`list[SampledGroup]`):
            Surplus of earlier batches. It comes first in the stream, and so in the batch.
        accepted (`list[SampledGroup]`):
            The batch so far, in stream order.
        sampled (`list[SampledGroup]`):
            Every group of every round of this batch, in stream order.
        sampled_seconds (`list[float]`):
            Seconds of sampling that each of them took: its share of its round, in proportion to generated tokens.
        surplus (`list[SampledGroup]`):
            Informative groups that the batch had no room for.
        num_rounds (`int`):
            Generation rounds so far.
        num_stale (`int`):
            Surplus groups of earlier batches that had grown too old to train.
        num_skipped (`int`):
            Draws of the stream that selective rollout passed over.
        policy_step (`int`):
            Optimizer steps that the policy has taken when it samples for this batch.
        num_aborted_tokens (`int`):
            Tokens of completions that were given up before they were done.
        seconds_aborted (`float`):
            Their share of the seconds of sampling.
        reward_names (`Sequence[str]`):
            Names of the reward functions, without penalties.
    """

    num_groups: int
    next_position: int
    keeps_surplus: bool = False
    carried: list[SampledGroup] = field(default_factory=list)
    accepted: list[SampledGroup] = field(default_factory=list)
    sampled: list[SampledGroup] = field(default_factory=list)
    sampled_seconds: list[float] = field(default_factory=list)
    surplus: list[SampledGroup] = field(default_factory=list)
    num_rounds: int = 0
    num_stale: int = 0
    num_skipped: int = 0
    policy_step: int = 0
    num_aborted_tokens: int = 0
    seconds_aborted: float = 0.0
    reward_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.accepted = self.carried[: self.num_groups]
        self.surplus = self.carried[self.num_groups :]

    @property
    def num_missing(self) -> int:
        """Informative groups that the batch still lacks."""
        return self.num_groups - len(self.accepted)

    @property
    def num_carried(self) -> int:
        """Groups of the batch that an earlier batch sampled, or began to."""
        return sum(self.is_off_policy(group) for group in self.accepted)

    def is_off_policy(self, group: SampledGroup) -> bool:
        """Whether an earlier policy sampled a token of the group, or could have."""
        was_carried = any(group.draw.position == other.draw.position for other in self.carried)
        return was_carried or group.policy_step < self.policy_step

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens of all groups that were judged for this batch, and of those given up."""
        return sum(group.num_tokens for group in self.sampled) + self.num_aborted_tokens

    def add_round(self, groups: Sequence[SampledGroup], seconds: float = 0.0) -> None:
        """Takes the groups of one round, in stream order, and the seconds that the round took."""
        self.num_rounds += 1
        self.sampled_seconds += _shares(seconds, [group.num_tokens for group in groups])
        for group in groups:
            self.sampled.append(group)
            is_informative = group.verdict is GroupVerdict.INFORMATIVE
            if self.num_missing or self.keeps_surplus:
                self.next_position = group.draw.position + 1
            if is_informative:
                (self.accepted if self.num_missing else self.surplus).append(group)

    @property
    def num_input_tokens(self) -> int:
        """Tokens of prompts and completions of all groups that were judged for this batch, each prompt once a completion."""
        return sum(sum(lengths) for group in self.sampled for lengths in group.lengths)

    def settle(
        self,
        groups: Sequence[SampledGroup],
        next_position: int,
        seconds: float,
        num_aborted_tokens: int,
    ) -> None:
        """
        Takes all groups at once that were sampled without rounds.

        Args:
            groups (`Sequence[SampledGroup]`):
                Those that were judged, in stream order.
            next_position (`int`):
                Position at which the next batch begins to draw. Informative groups from there on are not kept.
            seconds (`float`):
                Seconds of sampling.
            num_aborted_tokens (`int`):
                Tokens of completions that were given up.
        """
        self.num_rounds = 1
        self.next_position = next_position
        self.num_aborted_tokens = num_aborted_tokens
        self.sampled = list(groups)
        *self.sampled_seconds, self.seconds_aborted = _shares(
            seconds, [*(group.num_tokens for group in groups), num_aborted_tokens]
        )
        informative = [group for group in groups if group.verdict is GroupVerdict.INFORMATIVE]
        in_order = sorted([*self.carried, *informative], key=lambda group: group.draw.position)
        self.accepted, beyond = in_order[: self.num_groups], in_order[self.num_groups :]
        self.surplus = [group for group in beyond if group.draw.position < next_position]

    @property
    def used(self) -> list[SampledGroup]:
        """The sampled groups whose draws are used up: all but those that are given back to the stream."""
        return [group for group in self.sampled if group.draw.position < self.next_position]

    @property
    def verdict_counts(self) -> dict[str, int]:
        """Number of sampled groups per verdict."""
        return verdict_counts(self.sampled)

    def describe_exhaustion(self) -> str:
        """Says how far the rounds came, what the sampled groups were, and what would help."""
        text = describe_exhaustion(len(self.accepted), self.num_groups, self.num_rounds, self.verdict_counts)
        return text + self.describe_filter()

    def describe_filter(self) -> str:
        """Says which rewards judged the groups, and which others differ where those say nothing."""
        names = self.reward_names
        judges = Counter(names[group.filter_column] for group in self.sampled if names)
        if not judges:
            return ""
        silent = (GroupVerdict.ALL_CORRECT, GroupVerdict.ALL_WRONG, GroupVerdict.UNIFORM, GroupVerdict.UNSCORABLE)
        alike = [group for group in self.sampled if group.verdict in silent]
        lines = ["\nJudged by " + " and ".join(f"{name} ({count} groups)" for name, count in judges.items()) + "."]
        for column, name in enumerate(names):
            others = [group for group in alike if group.filter_column != column]
            num_mixed = sum(differs([rewards[column] for rewards in group.rewards]) for group in others)
            if num_mixed:
                lines.append(
                    f"{name} differs in {num_mixed} of the {len(others)} groups that other rewards found all alike or did "
                    f"not score: filter_reward={name!r} would train on those."
                )
        return "\n".join(lines)

    def tokens_by_fate(self) -> dict[str, int]:
        """
        Returns the tokens generated for this batch by what became of them.

        `trained` and `surplus` share the informative ones; the other fates are the verdicts of the filter, and `aborted`
        what was given up before it was done. Groups that were carried into the batch were generated, and so counted as
        surplus, before; of a group that was begun for an earlier batch all tokens count when it is judged.
        """
        tokens = dict.fromkeys(FATES, 0) | {Fate.ABORTED.value: self.num_aborted_tokens}
        for group, fate in zip(self.sampled, self._fates(), strict=True):
            tokens[fate] += group.num_tokens
        return tokens

    def seconds_by_fate(self) -> dict[str, float]:
        """
        Returns the seconds of sampling for this batch by what became of what they generated, with the fates of
        `tokens_by_fate`. Together they are the seconds of sampling.
        """
        seconds = dict.fromkeys(FATES, 0.0) | {Fate.ABORTED.value: self.seconds_aborted}
        for share, fate in zip(self.sampled_seconds, self._fates(), strict=True):
            seconds[fate] += share
        return seconds

    def _fates(self) -> list[str]:
        """Returns what became of each sampled group."""
        trained = {group.draw.position for group in self.accepted}
        fates = []
        for group in self.sampled:
            if group.verdict is GroupVerdict.INFORMATIVE:
                fates.append((Fate.TRAINED if group.draw.position in trained else Fate.SURPLUS).value)
            else:
                fates.append(group.verdict.value)
        return fates


def _shares(amount: float, weights: Sequence[int]) -> list[float]:
    """Splits an amount in proportion to the weights, or equally where all are 0."""
    total = sum(weights)
    return [amount * weight / total if total else amount / len(weights) for weight in weights]


def verdict_counts(groups: Sequence[SampledGroup]) -> dict[str, int]:
    """Returns the number of groups per verdict."""
    counts = Counter(group.verdict.value for group in groups)
    return {verdict.value: counts[verdict.value] for verdict in GroupVerdict}
