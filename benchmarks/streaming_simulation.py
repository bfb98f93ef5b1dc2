"""
Batches filled on simulated engines, in rounds and group by group, by the trainer's own decisions.

`RefillFlow`, `RefillPlanner`, `RefillLedger` and `deal_prompts` are the product's. What is simulated is what happens
between two decisions: engines decode, and news cross the ranks. Every rank of a run decides the same from the same news, so
one copy of the decisions stands for all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from streaming_engines import Engines, Outcomes, Setting

from trl_dapo.sampling.judge import GroupVerdict, SampledGroup
from trl_dapo.sampling.placement import deal_prompts, prompts_multiple
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.sampling.refill_flow import RefillFlow
from trl_dapo.sampling.refill_ledger import RefillLedger
from trl_dapo.sampling.refill_planner import RefillPlanner, RoundPlan


# The defaults of `DAPOConfig`.
CONFIDENCE = 0.9
MAX_ROUNDS, MAX_BATCHES_PER_ROUND = 10, 4


@dataclass
class Cost:
    """What a batch took: seconds, tokens that were decoded for it, and positions of the groups that train."""

    seconds: float = 0.0
    generated_tokens: int = 0
    # Of groups that were judged for the batch, whichever batch decoded them; and of those that were given up.
    judged_tokens: int = 0
    aborted_tokens: int = 0
    trained: list[int] = field(default_factory=list)


class FixedRounds(RefillPlanner):
    """Rounds of one batch, whatever is missing: verl's."""

    def plan(self, num_needed: int, rounds_left: int | None = None) -> RoundPlan:
        """Returns the one round there is."""
        return RoundPlan(self.num_groups, num_needed, self.acceptance_rate, float("nan"))


class Run:
    """
    Batches of one setting, filled one after another. The subclasses say how.

    Args:
        setting (`Setting`):
            What is simulated.
        outcomes (`Outcomes`):
            What the draws give.
        surplus (`str`, *optional*, defaults to `"requeue"`):
            As in `DAPOConfig`.
    """

    planner_class = RefillPlanner
    confidence = CONFIDENCE

    def __init__(self, setting: Setting, outcomes: Outcomes, surplus: str = "requeue"):
        self.setting, self.outcomes = setting, outcomes
        self.keeps_surplus = surplus == "carry"
        self.position = 0
        self.now = 0.0
        self.carried: list[SampledGroup] = []
        self.planner = self.planner_class(
            num_groups=setting.num_groups,
            confidence=self.confidence,
            max_prompts=MAX_BATCHES_PER_ROUND * setting.num_groups,
            multiple_of=prompts_multiple(setting.num_generations, setting.num_ranks),
            keeps_surplus=self.keeps_surplus,
        )
        self.engines = Engines(setting)

    def next_batch(self) -> Cost:
        """Fills one batch, and returns what it took."""
        cost, start = Cost(), self.now
        collection = RefillLedger(
            self.setting.num_groups,
            next_position=self.position,
            keeps_surplus=self.keeps_surplus,
            carried=self.carried,
        )
        self._fill(collection, cost)
        self.position = collection.next_position
        self.carried = collection.surplus if self.keeps_surplus else []
        cost.trained = [group.draw.position for group in collection.accepted]
        cost.judged_tokens = sum(group.num_tokens for group in collection.sampled)
        cost.seconds = self.now - start
        return cost

    def _fill(self, collection: RefillLedger, cost: Cost) -> None:
        raise NotImplementedError

    def _group(self, position: int) -> SampledGroup:
        is_informative = self.outcomes.is_informative(position)
        verdict = GroupVerdict.INFORMATIVE if is_informative else GroupVerdict.ALL_WRONG
        lengths = [(0, length) for length in self.outcomes.lengths(position)]
        return SampledGroup(Draw(position, position), verdict, [], [], lengths, [], [])


class InRounds(Run):
    """Rounds, each as long as its longest completion on any rank."""

    def _fill(self, collection: RefillLedger, cost: Cost) -> None:
        position = self.position
        while collection.num_missing and collection.num_rounds < MAX_ROUNDS:
            plan = self.planner.plan(collection.num_missing, MAX_ROUNDS - collection.num_rounds)
            start, positions = self.now, range(position, position + plan.num_prompts)
            position += plan.num_prompts
            self._sample(positions)
            groups = [self._group(at) for at in positions]
            num_informative = sum(group.verdict is GroupVerdict.INFORMATIVE for group in groups)
            self.planner.observe(num_informative, len(groups), self.now - start)
            cost.generated_tokens += sum(group.num_tokens for group in groups)
            collection.add_round(groups)

    def _sample(self, positions: range) -> None:
        """Decodes a round: as many completions on each rank, which all wait for the last one."""
        num_ranks, size = self.setting.num_ranks, self.setting.num_generations
        order = deal_prompts(len(positions), num_ranks)
        rows = [(positions[number], sample) for number in order for sample in range(size)]
        per_rank = len(rows) // num_ranks
        lengths = {position: self.outcomes.lengths(position) for position in positions}
        self.engines.now = self.now
        for rank in range(num_ranks):
            mine = rows[rank * per_rank : (rank + 1) * per_rank]
            self.engines.submit(rank, [((position, sample), lengths[position][sample]) for position, sample in mine])
        while (end := self.engines.next_end) < math.inf:
            self.engines.advance(end)
        self.now = self.engines.now + self.setting.exchange_seconds


class InFixedRounds(InRounds):
    """verl's: rounds of one batch, and what a batch has too much is lost."""

    planner_class = FixedRounds

    def _fill(self, collection: RefillLedger, cost: Cost) -> None:
        super()._fill(collection, cost)
        collection.next_position = collection.sampled[-1].draw.position + 1


class InStream(Run):
    """Group by group, as `StreamRefill` does it: news are told in exchanges, one after another, that nobody waits for."""

    def __init__(self, setting: Setting, outcomes: Outcomes, surplus: str = "requeue"):
        super().__init__(setting, outcomes, surplus)
        # Of each group that is decoded or goes on in the next batch: its rank, and the tokens to come by completion.
        self.left: dict[int, tuple[int, dict[int, int]]] = {}

    def _fill(self, collection: RefillLedger, cost: Cost) -> None:
        setting, engines = self.setting, self.engines
        flow = RefillFlow(
            num_groups=setting.num_groups,
            max_started=MAX_ROUNDS * MAX_BATCHES_PER_ROUND * setting.num_groups,
            num_kept=setting.num_groups if self.keeps_surplus else 0,
            num_ranks=setting.num_ranks,
        )
        for group in self.carried:
            flow.hold(group.draw.position)
        # News that nobody was told yet.
        finished: list[int] = []
        engines.now = self.now
        for position, (rank, left) in self.left.items():
            flow.resume(position, rank)
            self._submit(position)
            finished += [] if left else [position]
        news, judged = [], []
        num_idle = engines.num_idle
        while True:
            for position in news:
                flow.resolve(position, self.outcomes.is_informative(position))
                if self.left.pop(position, None) is not None:
                    judged.append(position)
            if news:
                self.planner.observe(sum(map(self.outcomes.is_informative, news)), len(news))
            if flow.is_decided:
                break
            self._give_up(flow.unneeded(), cost)
            self._start(flow, num_idle)
            news, finished = [position for position in finished if position in self.left], []
            num_idle = engines.num_idle
            # With nothing to tell, all that the exchanges say is what they said before, until a completion ends.
            each = setting.exchange_seconds
            num_exchanges = 1 if news else max(1, math.ceil((engines.next_end - engines.now) / each))
            for position, sample in engines.advance(engines.now + num_exchanges * each):
                _, left = self.left[position]
                cost.generated_tokens += left.pop(sample)
                finished += [] if left else [position]
        self.now = engines.now
        self._settle(flow, collection, judged, cost)

    def _start(self, flow: RefillFlow, num_idle: int) -> None:
        target = 0
        if flow.num_missing:
            target = self.planner.groups_in_flight(flow.num_missing).num_prompts
        for _ in range(flow.num_to_start(target, num_idle, self.setting.num_generations)):
            rank = flow.start(self.position)
            self.left[self.position] = rank, dict(enumerate(self.outcomes.lengths(self.position)))
            self._submit(self.position)
            self.position += 1

    def _submit(self, position: int) -> None:
        rank, left = self.left[position]
        self.engines.submit(rank, [((position, sample), num_tokens) for sample, num_tokens in left.items()])

    def _withdraw(self, position: int) -> int:
        """Stops the completions of a group, and returns the tokens that they got since they were submitted."""
        rank, left = self.left[position]
        decoded = self.engines.withdraw(rank, [(position, sample) for sample in left])
        for (_, sample), num_tokens in decoded.items():
            left[sample] -= num_tokens
        return sum(decoded.values())

    def _give_up(self, positions: list[int], cost: Cost) -> None:
        for position in positions:
            cost.generated_tokens += self._withdraw(position)
            _, left = self.left.pop(position)
            cost.aborted_tokens += sum(self.outcomes.lengths(position)) - sum(left.values())

    def _settle(self, flow: RefillFlow, collection: RefillLedger, judged: list[int], cost: Cost) -> None:
        kept = {position for position in flow.kept() if position in flow.in_flight}
        self._give_up([position for position in self.left if position not in kept], cost)
        for position in self.left:
            cost.generated_tokens += self._withdraw(position)
        groups = [self._group(position) for position in sorted(judged)]
        collection.settle(groups, flow.next_position(self.position), 0.0, cost.aborted_tokens)


class InCautiousStream(InStream):
    """Group by group, with a lower `refill_confidence`."""

    confidence = 0.75


POLICIES: dict[str, Callable[[Setting, Outcomes], Run]] = {
    "fixed rounds": InFixedRounds,
    "rounds": InRounds,
    "rounds, carry": lambda setting, outcomes: InRounds(setting, outcomes, "carry"),
    "stream": InStream,
    "stream, 0.75": InCautiousStream,
    "stream, carry": lambda setting, outcomes: InStream(setting, outcomes, "carry"),
}
