"""What ranks exchange about the groups that each sampled by itself, once a batch is decided."""

import struct
from collections.abc import Mapping, Sequence

from trl_dapo.ranks.collectives import Ranks
from trl_dapo.sampling.judge import GroupJudge, Location, RowFacts, SampledGroup
from trl_dapo.sampling.prompt_stream import Draw

from .streamed_group import StreamedGroup


_NUM_FACTS = len(RowFacts._fields)


class GroupExchange:
    """
    Gathers the judged groups of all ranks, numbers only: rollouts stay where they were sampled.

    Args:
        ranks (`Ranks`):
            The ranks of the run.
        judge (`GroupJudge`):
            Judges them, on each rank alike.
        num_generations (`int`):
            Completions per group G.
        num_rewards (`int`):
            Reward functions F.
    """

    def __init__(self, ranks: Ranks, judge: GroupJudge, num_generations: int, num_rewards: int):
        self.ranks = ranks
        self.judge = judge
        self.num_generations = num_generations
        self.num_rewards = num_rewards

    def gather(
        self,
        groups: Sequence[StreamedGroup],
        most: int,
        draws: Mapping[int, Draw],
        batch_number: int,
        of_this_rank: Sequence[int],
    ) -> tuple[list[SampledGroup], list[list[int]]]:
        """
        Returns the groups of all ranks in stream order, and `of_this_rank` of each rank. A collective.

        Args:
            groups (`Sequence[StreamedGroup]`):
                Those of this rank, graded. Row `i * G + j` of its rollouts is completion j of group i.
            most (`int`):
                Groups of the rank that has most.
            draws (`Mapping[int, Draw]`):
                All draws of the batch by position.
            batch_number (`int`):
                What tells locations of this batch from those of others.
            of_this_rank (`Sequence[int]`):
                Up to 2 + G * (K + F) numbers of this rank, where K are the fields of [`RowFacts`].
        """
        width = 2 + self.num_generations * (_NUM_FACTS + self.num_rewards)
        rows = [*map(self._encode, groups), *[[-1] * width] * (most - len(groups))]
        gathered = self.ranks.gather_rows([[*of_this_rank, *[0] * (width - len(of_this_rank))], *rows])
        decoded = []
        for number, row in enumerate(gathered):
            rank, place = divmod(number, 1 + most)
            if place and row[0] >= 0:
                first_row = (place - 1) * self.num_generations
                locations = [Location(batch_number, rank, first_row + j) for j in range(self.num_generations)]
                decoded.append(self._decode(row, draws[row[0]], locations))
        of_ranks = [row[: len(of_this_rank)] for row in gathered[:: 1 + most]]
        return sorted(decoded, key=lambda group: group.draw.position), of_ranks

    def _encode(self, group: StreamedGroup) -> list[int]:
        facts = [number for row in group.facts for number in row]
        # The bits of a float64, to cross ranks among integers.
        bits = [struct.unpack("<q", struct.pack("<d", reward))[0] for rewards in group.rewards for reward in rewards]
        return [group.draw.position, group.policy_step, *facts, *bits]

    def _decode(self, row: list[int], draw: Draw, locations: list[Location]) -> SampledGroup:
        end_of_facts = 2 + _NUM_FACTS * self.num_generations
        rewards = [struct.unpack("<d", struct.pack("<q", bits))[0] for bits in row[end_of_facts:]]
        (group,) = self.judge.judge(
            [draw],
            [rewards[start : start + self.num_rewards] for start in range(0, len(rewards), self.num_rewards)],
            [RowFacts(*row[start : start + _NUM_FACTS]) for start in range(2, end_of_facts, _NUM_FACTS)],
            locations,
            row[1],
        )
        return group
