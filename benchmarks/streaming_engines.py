"""What a simulated run decodes with, and what it decodes: engines with a cost of a step, and the outcomes of each draw."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


_BLOCK = 1024
# A completion: position of its prompt in the stream, and number in its group.
Key = tuple[int, int]


@dataclass(frozen=True)
class StepCost:
    """
    What a step of an engine takes, in which each running sequence gets a token.

    Attributes:
        to_begin (`float`):
            Seconds of a step however few sequences run.
        per_sequence (`float`):
            Seconds that each running sequence adds.
    """

    to_begin: float
    per_sequence: float

    def seconds(self, num_running: int) -> float:
        """Returns the seconds of a step with so many running sequences."""
        return self.to_begin + self.per_sequence * num_running


@dataclass(frozen=True)
class Setting:
    """
    A run: its batch, its engines, and what its prompts give.

    Attributes:
        num_groups, num_generations (`int`):
            Groups N of a batch, and completions G of a group.
        num_ranks, num_slots (`int`):
            Ranks, and sequences that the engine of each decodes at once.
        rate (`float`):
            Chance of a group to be informative.
        median_tokens, sigma_tokens, max_tokens:
            Lengths are lognormal, clipped at the limit.
        cost (`StepCost`):
            Of a step of an engine.
        exchange_steps (`float`):
            What an exchange of news takes, in steps of a full engine.
        bias (`float`):
            By how much the chance falls with length: its logit by so much when the longest completion doubles.
        seed (`int`):
            Of lengths and verdicts.
    """

    num_groups: int
    num_generations: int
    num_ranks: int
    num_slots: int
    rate: float
    median_tokens: float
    sigma_tokens: float
    max_tokens: int
    cost: StepCost
    exchange_steps: float = 1.0
    bias: float = 0.0
    seed: int = 0

    @property
    def exchange_seconds(self) -> float:
        """Seconds that news take to reach all ranks."""
        return self.exchange_steps * self.cost.seconds(self.num_slots)


class Outcomes:
    """What each draw of the stream gives, foretold: lengths `(G,)` in tokens, and whether the group is informative."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def lengths(self, position: int) -> list[int]:
        """Returns the lengths of the completions of a draw."""
        lengths, _ = self._block(position // _BLOCK)
        return lengths[position % _BLOCK].tolist()

    def is_informative(self, position: int) -> bool:
        """Returns whether the group of a draw is informative."""
        _, is_informative = self._block(position // _BLOCK)
        return bool(is_informative[position % _BLOCK])

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self._blocks:
            setting = self.setting
            rng = np.random.default_rng((setting.seed, number))
            normals = rng.standard_normal((_BLOCK, setting.num_generations))
            lengths = np.clip(setting.median_tokens * np.exp(setting.sigma_tokens * normals), 1, setting.max_tokens)
            lengths = np.rint(lengths).astype(int)
            doublings = np.log2(lengths.max(axis=1) / setting.median_tokens)
            logits = np.log(setting.rate / (1 - setting.rate)) - setting.bias * (doublings - np.median(doublings))
            self._blocks[number] = lengths, rng.random(_BLOCK) < 1 / (1 + np.exp(-logits))
        return self._blocks[number]


class SimulatedEngine:
    """Decodes sequences first come, first served, each running one at the pace of its steps."""

    def __init__(self, num_slots: int, cost: StepCost):
        self.num_slots, self.cost = num_slots, cost
        self.now = 0.0
        self.num_steps = 0.0
        # By sequence: tokens still to decode when it waits; the count of steps at which it began, and at which it ends.
        self.line: dict[Key, int] = {}
        self.running: dict[Key, tuple[float, float]] = {}
        self._ends: list[tuple[float, Key]] = []

    @property
    def num_unfinished(self) -> int:
        """Sequences submitted and neither finished nor withdrawn."""
        return len(self.line) + len(self.running)

    def submit(self, key: Key, num_tokens: int) -> None:
        """Puts a sequence with so many tokens to come at the end of the line."""
        self.line[key] = num_tokens
        self._fill()

    def withdraw(self, key: Key) -> int:
        """Stops a sequence, and returns the tokens that it got."""
        if key in self.line:
            del self.line[key]
            return 0
        begin, _ = self.running.pop(key)
        self._fill()
        return int(self.num_steps - begin)

    @property
    def next_end(self) -> float:
        """Seconds at which the next sequence ends."""
        while self._ends and self.running.get(self._ends[0][1], (0.0, 0.0))[1] != self._ends[0][0]:
            heapq.heappop(self._ends)
        if not self.running:
            return float("inf")
        return self.now + (self._ends[0][0] - self.num_steps) * self.cost.seconds(len(self.running))

    def advance(self, until: float) -> list[Key]:
        """Decodes until a time, and returns the sequences that ended."""
        ended = []
        while (end := self.next_end) <= until:
            at, key = heapq.heappop(self._ends)
            self.num_steps, self.now = at, end
            del self.running[key]
            ended.append(key)
            self._fill()
        self.pass_time(until)
        return ended

    def pass_time(self, until: float) -> None:
        """Decodes until a time before which no sequence ends."""
        if self.running:
            self.num_steps += (until - self.now) / self.cost.seconds(len(self.running))
        self.now = until

    def _fill(self) -> None:
        while self.line and len(self.running) < self.num_slots:
            key = next(iter(self.line))
            end = self.num_steps + self.line.pop(key)
            self.running[key] = (self.num_steps, end)
            heapq.heappush(self._ends, (end, key))


class Engines:
    """The engines of all ranks, on one clock."""

    def __init__(self, setting: Setting):
        self._engines = [SimulatedEngine(setting.num_slots, setting.cost) for _ in range(setting.num_ranks)]
        self.num_slots = setting.num_slots * setting.num_ranks
        self._now = 0.0
        self.num_idle = self.num_slots
        self._idle = [setting.num_slots] * setting.num_ranks
        self._ends: list[tuple[float, int]] = []

    @property
    def now(self) -> float:
        """Seconds on the clock. It is set only while nothing is decoded."""
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        for engine in self._engines:
            engine.now = now

    @property
    def next_end(self) -> float:
        """Seconds at which the next sequence ends on any rank; infinite if none runs."""
        while self._ends and self._engines[self._ends[0][1]].next_end != self._ends[0][0]:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf

    def submit(self, rank: int, sequences: Sequence[tuple[Key, int]]) -> None:
        """Puts sequences, each with its tokens to come, at the end of the line of a rank."""
        engine = self._up_to_date(rank)
        for key, num_tokens in sequences:
            engine.submit(key, num_tokens)
        self._note(rank)

    def withdraw(self, rank: int, keys: Sequence[Key]) -> dict[Key, int]:
        """Stops sequences of a rank, and returns the tokens that each got."""
        engine = self._up_to_date(rank)
        decoded = {key: engine.withdraw(key) for key in keys}
        self._note(rank)
        return decoded

    def advance(self, until: float) -> list[Key]:
        """Decodes until a time, and returns the sequences that ended."""
        ended = []
        while (end := self.next_end) <= until:
            rank = self._ends[0][1]
            ended += self._engines[rank].advance(end)
            self._note(rank)
        self._now = until
        return ended

    def _up_to_date(self, rank: int) -> SimulatedEngine:
        # An engine is only looked at when something happens to it: of 1,024 most have nothing to tell.
        engine = self._engines[rank]
        engine.pass_time(self._now)
        return engine

    def _note(self, rank: int) -> None:
        engine = self._engines[rank]
        idle = max(0, engine.num_slots - engine.num_unfinished)
        self.num_idle += idle - self._idle[rank]
        self._idle[rank] = idle
        heapq.heappush(self._ends, (engine.next_end, rank))
