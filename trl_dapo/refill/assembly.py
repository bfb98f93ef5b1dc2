"""From the groups that were collected, scattered over the ranks, to the batch that each rank trains."""

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from trl_dapo.ranks.collectives import Ranks
from trl_dapo.ranks.rollout import Rollout, packed_size, with_placeholders
from trl_dapo.sampling.judge import Location, RowFacts, SampledGroup
from trl_dapo.sampling.placement import Move, place_groups
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.sampling.refill_ledger import RefillLedger
from trl_dapo.sampling.refill_planner import RoundPlan
from trl_dapo.trl_seams import Generated

from .completion_decoder import decode_completion
from .image_prompts import images_of
from .prompt_source import PromptSource


# Is shown groups as soon as they are judged: the groups, the rollouts of this rank by location, and the rows of draws.
ObserveGroups = Callable[
    [Sequence[SampledGroup], Callable[[Location], Rollout], Callable[[Draw], Mapping[str, Any]]], None
]


class Unfinished(Protocol):
    """A completion of this rank that goes on in the next batch, and that the present policy sampled tokens of."""

    @property
    def rollout(self) -> Rollout:
        """The completion as far as it is decoded."""

    def keep_logps(self, old_logps: torch.Tensor | None) -> None:
        """Notes the log-probabilities of the policies that sampled its tokens so far, shape `(C,)`."""


@dataclass(frozen=True, slots=True)
class RefillResult:
    """
    What filled a generation batch on this rank.

    Attributes:
        kept (`dict[Location, Rollout]`):
            The rollouts of informative groups that this rank sampled.
        spare (`tuple[Draw, Rollout]`, *optional*):
            Any rollout of this rank. `None`: it sampled nothing.
        seconds (`float`):
            Seconds of sampling on the slowest rank.
        plan (`RoundPlan`, *optional*):
            The last plan that was made. `None`: none was needed.
        metrics (`dict[str, float]`):
            Metrics by their names below `dapo/`, beside those of any refill.
        num_uncounted_tokens (`int`):
            Tokens of prompts and completions over all ranks that TRL has not counted.
        unchecked (`list[Rollout]`, *optional*):
            Rollouts by which the weights of the engine can be checked. `None`: they are checked.
        unfinished (`list[Unfinished]`):
            Completions of this rank that need the log-probabilities of the present policy before it changes.
        num_unfinished (`Sequence[int]`):
            How many each rank has. Empty: none has any.
        first_suspended (`int`, *optional*):
            Stream position of the first group that goes on in the next batch. `None`: there is none.
    """

    kept: dict[Location, Rollout]
    spare: tuple[Draw, Rollout] | None
    seconds: float
    plan: RoundPlan | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    num_uncounted_tokens: int = 0
    unchecked: list[Rollout] | None = None
    unfinished: list[Unfinished] = field(default_factory=list)
    num_unfinished: Sequence[int] = ()
    first_suspended: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationBatch:
    """
    A generation batch as one rank trains it: B rows of N * G.

    Attributes:
        inputs (`list[dict]`):
            The dataset row of each of the B rollouts.
        rollouts (`list[Rollout]`):
            The B rollouts.
        rewards (`torch.Tensor`):
            Reward of each completion of all ranks by each reward function, rank-major, shape `(N * G, F)`, float32. NaN:
            not scored, or a row without weight.
        is_filler (`torch.Tensor`):
            Which of the B rows stand in for groups that were not found, shape `(B,)`, bool. They carry no weight.
        is_truncated (`torch.Tensor`):
            Which of the B rows ran into the length limit, shape `(B,)`, bool.
        ledger (`RefillLedger`):
            What was sampled, and what became of it. The same on all ranks.
        num_moved_words (`int`):
            What crossed ranks to assemble the batch, over all ranks, in int32 words.
        refill (`RefillResult`):
            How the batch was filled.
        last_plan (`RoundPlan`, *optional*):
            The last plan of the run.
        source_metrics (`Mapping[str, float]`):
            Passes over the data so far, and the figures of selective rollout.
    """

    inputs: list[dict[str, Any]]
    rollouts: list[Rollout]
    rewards: torch.Tensor
    is_filler: torch.Tensor
    is_truncated: torch.Tensor
    ledger: RefillLedger
    num_moved_words: int
    refill: RefillResult
    last_plan: RoundPlan | None = None
    source_metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def facts(self) -> list[RowFacts]:
        """Lengths and truncation of the B rows."""
        return [
            RowFacts(
                len(rollout.prompt_ids),
                len(rollout.completion_ids),
                is_truncated,
                0 if rollout.tool_mask is None else rollout.num_tool_tokens,
            )
            for rollout, is_truncated in zip(self.rollouts, self.is_truncated.tolist(), strict=True)
        ]

    def as_generated(
        self,
        tokenizer: Any,
        prompts: Sequence[Any],
        is_multimodal: bool = True,
        has_turns: bool = False,
        has_engine: bool = True,
        has_texts: bool = True,
    ) -> Generated:
        """
        Returns what TRL's `_generate` returns for the B prompts; see `with_placeholders` for empty completions.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                Decodes completions that came from another rank.
            prompts (`Sequence`):
                The prompts as TRL has prepared them.
            is_multimodal (`bool`, *optional*, defaults to `True`):
                Whether there may be images in them.
            has_turns (`bool`, *optional*, defaults to `False`):
                Whether completions may hold tokens that the model did not write.
            has_engine (`bool`, *optional*, defaults to `True`):
                Whether TRL needs log-probabilities, unknown ones too.
            has_texts (`bool`, *optional*, defaults to `True`):
                Whether anybody reads the completions as texts. If not, they are not decoded, and `None`.
        """
        is_conversational = not isinstance(prompts[0], str)
        known = [rollout.sampling_logps for rollout in self.rollouts if rollout.sampling_logps is not None]
        if not has_engine and all(logps.isnan().all() for logps in known):
            known = []
        # TRL makes tensors of them: in no time of arrays of int64, and of an array that gives it floats, of which each would
        # take eight times the memory in a list.
        logps = [array("f", logps.numpy().tobytes()) for logps in known]
        completion_ids, logps_or_none = with_placeholders(
            [rollout.completion_ids.numpy().astype(np.int64) for rollout in self.rollouts],
            logps or None,
            tokenizer.pad_token_id,
        )
        prompt_ids = [rollout.prompt_ids.numpy().astype(np.int64) for rollout in self.rollouts]
        completions = [rollout.completion for rollout in self.rollouts]
        for row, completion in enumerate(completions):
            if completion is None and has_texts:
                completions[row] = decode_completion(
                    tokenizer,
                    prompt_ids[row],
                    completion_ids[row],
                    is_conversational,
                    has_turns=self.rollouts[row].tool_mask is not None,
                )
        images = images_of(prompts) if is_multimodal else None
        tool_mask = None
        if has_turns:
            tool_mask = [
                [1] * len(ids) if rollout.tool_mask is None else rollout.tool_mask.int().tolist()
                for ids, rollout in zip(completion_ids, self.rollouts, strict=True)
            ]
        return Generated(prompt_ids, completion_ids, tool_mask, completions, logps_or_none, {}, images, [])

    def logged_columns(self) -> dict[str, list[Any]]:
        """Returns the columns that reward functions logged, one value for each of the B rows."""
        columns = sorted({column for rollout in self.rollouts for column in rollout.extra_logs})
        return {column: [rollout.extra_logs.get(column) for rollout in self.rollouts] for column in columns}


class BatchAssembler:
    """
    Lays out the collected groups and moves the rollouts of which a rank has too many, in one exchange.

    Args:
        num_generations (`int`):
            Completions per group G.
        ranks (`Ranks`):
            The ranks of the run.
        source (`PromptSource`):
            Has the dataset rows. Every rank has the whole dataset, so rows never travel.
        num_rewards (`int`):
            Reward functions F.
        has_sampling_logps (`bool`):
            Whether rollouts carry the log-probabilities of the engine that sampled them.
        moves_extra_logs (`bool`):
            Whether logged columns travel with their rollouts.
    """

    def __init__(
        self,
        num_generations: int,
        ranks: Ranks,
        source: PromptSource,
        num_rewards: int,
        has_sampling_logps: bool = False,
        moves_extra_logs: bool = False,
    ):
        self.num_generations = num_generations
        self.ranks = ranks
        self.source = source
        self.num_rewards = num_rewards
        self.has_sampling_logps = has_sampling_logps
        self.moves_extra_logs = moves_extra_logs

    def assemble(
        self, ledger: RefillLedger, kept: Mapping[Location, Rollout], refill: RefillResult
    ) -> GenerationBatch:
        """
        Returns the batch of this rank. A collective.

        Args:
            ledger (`RefillLedger`):
                The collected groups.
            kept (`Mapping[Location, Rollout]`):
                The rollouts of accepted groups that this rank generated.
            refill (`RefillResult`):
                How the batch was filled. Its spare rollout fills rows of a batch that is not full.
        """
        accepted = ledger.accepted
        moves = place_groups(
            [[location.rank for location in group.locations] for group in accepted],
            num_groups=ledger.num_groups,
            num_generations=self.num_generations,
            num_ranks=self.ranks.num_ranks,
        )
        arrived, num_moved_words = self._exchange(moves, ledger, kept)
        local = [move for move in moves if move.target == self.ranks.rank]
        draws, rollouts = [], []
        for move in local:
            if move.group is None:
                # A batch that is not full was sampled for. Cut to one token: it has no weight and should cost nothing.
                assert refill.spare is not None
                draw, rollout = refill.spare[0], refill.spare[1].truncated(1)
            else:
                group = accepted[move.group]
                draw = group.draw
                rollout = arrived.get(move) or kept[group.locations[move.sample]]
            draws.append(draw)
            rollouts.append(rollout)
        inputs = self.source.rows(draws)
        for row, rollout in zip(inputs, rollouts, strict=True):
            if rollout.prompt is not None:
                row["prompt"] = rollout.prompt
        not_scored = [math.nan] * self.num_rewards
        rewards = [group.rewards_in_statistics() for group in accepted]
        return GenerationBatch(
            inputs=inputs,
            rollouts=rollouts,
            rewards=torch.tensor(
                [not_scored if move.group is None else rewards[move.group][move.sample] for move in moves]
            ),
            is_filler=torch.tensor([move.group is None for move in local]),
            is_truncated=torch.tensor(
                [move.group is not None and accepted[move.group].is_truncated[move.sample] for move in local]
            ),
            ledger=ledger,
            num_moved_words=num_moved_words,
            # What was sampled beyond the batch, and is not carried, should not live as long as the batch.
            refill=replace(refill, kept={}),
        )

    def _exchange(
        self, moves: Sequence[Move], ledger: RefillLedger, kept: Mapping[Location, Rollout]
    ) -> tuple[dict[Move, Rollout], int]:
        """Returns the rollouts that other ranks generated and this one trains, and the int32 words moved in all."""
        travelling = [move for move in moves if move.source != move.target]
        if not travelling:
            return {}, 0
        accepted = ledger.accepted
        is_off_policy = [ledger.is_off_policy(group) for group in accepted]
        rank = self.ranks.rank

        def number(move: Move) -> int:
            assert move.group is not None  # a row without a group has no rollout to move
            return move.group

        def group_of(move: Move) -> SampledGroup:
            return accepted[number(move)]

        def size(move: Move) -> int:
            # Carried rollouts have the log-probabilities of the policies that sampled them.
            num_logps = self.has_sampling_logps + is_off_policy[number(move)]
            return packed_size(*group_of(move).lengths[move.sample], num_logps)

        # One walk over the moves, and not one for each rank: with 1,024 of them that took seconds.
        leaving: list[list[Move]] = [[] for _ in range(self.ranks.num_ranks)]
        coming: list[list[Move]] = [[] for _ in range(self.ranks.num_ranks)]
        for move in travelling:
            if move.source == rank:
                leaving[move.target].append(move)
            elif move.target == rank:
                coming[move.source].append(move)
        received = self.ranks.exchange(
            [
                [kept[group_of(move).locations[move.sample]].pack(is_off_policy[number(move)]) for move in row]
                for row in leaving
            ],
            [[size(move) for move in row] for row in coming],
        )
        # Only the table of completions shows these, so they travel only for it.
        shown: dict[Move, Mapping[str, Any]] = {}
        if self.moves_extra_logs:
            # To each rank what it trains, and to no other: as often as there are ranks that get something.
            for target in sorted({move.target for move in travelling}):
                sent = [(move, kept[group_of(move).locations[move.sample]].shown()) for move in leaving[target]]
                shown |= self.ranks.gather_on(target, sent)
        arrived = {
            move: replace(
                Rollout.unpack(
                    packed,
                    *group_of(move).lengths[move.sample],
                    has_sampling_logps=self.has_sampling_logps,
                    has_old_logps=is_off_policy[number(move)],
                ),
                **shown.get(move, {}),
            )
            for row, tensors in zip(coming, received, strict=True)
            for move, packed in zip(row, tensors, strict=True)
        }
        return arrived, sum(map(size, travelling))
