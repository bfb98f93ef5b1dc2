"""Which draws of the prompt stream to sample, by what their groups will find."""

import base64
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from .judge import GroupVerdict, SampledGroup
from .pass_rates import Bools, Floats, Ints, Outcomes, Prediction
from .prompt_stream import Draw, PromptStream, keyed_hash
from .reliability import Reliability


# A draw whose value is this part of the best chance, or more, is always sampled.
_FULL_VALUE = 0.8
# What a rare success adds to the value of a group, in groups.
_RARE_VALUE = 1.0
_MIN_VALUE = 1e-3
# Draws that are looked at together.
_BLOCK = 256
# Groups after which older ones weigh half in the figures.
_MEMORY = 5000.0


class Predictor(Protocol):
    """Predicts groups and learns from them: `PassRates`, or what a simulation knows."""

    @property
    def best_chance(self) -> float:
        """Probability to be informative of a group whose prompt has the best pass rate."""

    def predict(self, indices: Ints) -> Prediction:
        """Returns what the next group of each of these rows will find."""

    def predict_unseen(self) -> tuple[Prediction, Floats]:
        """Returns what the first groups of each kind of prompts will find, and how many rows of it were never seen."""

    def observed_rates(self, indices: Ints) -> Floats:
        """Returns the share of correct completions in the past groups of each of these rows."""

    def frac_by_rate(self) -> tuple[float, float]:
        """Returns the shares of seen rows with a pass rate below 0.1, and above 0.9."""

    def see_rewards(self, lowest: float, highest: float) -> None:
        """Learns between which rewards completions lie."""

    def observe(self, outcomes: Outcomes) -> None:
        """Learns what groups found."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what was learned."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with what was learned."""


class GroupOutcomes(NamedTuple):
    """
    What the groups of some draws found, in stream order.

    Attributes:
        indices (`np.ndarray`):
            Dataset row of each group.
        num_correct (`np.ndarray`):
            Correct completions of each; partial credit counts in part.
        num_scored (`np.ndarray`):
            Completions of each that have a reward.
        is_informative (`np.ndarray`):
            Verdict of the group filter.
        is_rare (`np.ndarray`):
            Whether it is informative with few correct completions.
    """

    indices: Ints
    num_correct: Floats
    num_scored: Floats
    is_informative: Bools
    is_rare: Bools

    @classmethod
    def of(cls, groups: Sequence[SampledGroup]) -> "GroupOutcomes":
        """Returns the outcomes of sampled groups."""
        in_order = sorted(groups, key=lambda group: group.draw.position)
        scored = [[reward for reward in group.filter_rewards if math.isfinite(reward)] for group in in_order]
        return cls(
            indices=np.array([group.draw.index for group in in_order], dtype=np.int64),
            num_correct=np.array([math.fsum(min(max(reward, 0.0), 1.0) for reward in rewards) for rewards in scored]),
            num_scored=np.array([float(len(rewards)) for rewards in scored]),
            is_informative=np.array([group.verdict is GroupVerdict.INFORMATIVE for group in in_order], dtype=np.bool_),
            is_rare=np.array([group.is_rare_success for group in in_order], dtype=np.bool_),
        )

    def take(self, numbers: Ints) -> "GroupOutcomes":
        """Returns the outcomes of these groups."""
        return GroupOutcomes(
            self.indices[numbers],
            self.num_correct[numbers],
            self.num_scored[numbers],
            self.is_informative[numbers],
            self.is_rare[numbers],
        )


class SelectedDraw(NamedTuple):
    """
    A draw that is to be sampled.

    Attributes:
        draw (`Draw`):
            The draw.
        chance (`float`):
            Probability that its group is informative.
    """

    draw: Draw
    chance: float


class SelectiveRollout(NamedTuple):
    """
    How draws are passed over.

    Attributes:
        rates (`Predictor`):
            Predicts the groups.
        exploration_share (`float`):
            Lowest probability that a draw is sampled, in (0, 1].
        evict_above (`float`, *optional*):
            Rows whose past groups were correct to this share or more are not drawn any more. `None`: none are evicted.
    """

    rates: Predictor
    exploration_share: float = 0.1
    evict_above: float | None = None


class PromptSelection:
    """
    Passes over draws of the prompt stream whose groups would hardly teach.

    A group is worth its probability to be informative, and as much again if it is so with few correct completions. A draw is
    sampled for certain if that is 0.8 of the best chance that a prompt can have, and else with the square of the ratio, but
    never with less than `exploration_share`: every prompt has its turn in every pass with at least that probability. A prompt that
    was never seen is compared with the better kinds of such prompts, more sharply, since it can wait without being lost: with
    the eighth power of the ratio. So nothing is passed over while nothing is known.

    What is decided on a draw depends on (seed, stream position, what was learned before the batch), and so neither on ranks
    nor on the size of rounds.

    Args:
        stream (`PromptStream`):
            The prompt stream. Its position moves with the draws.
        rates (`Predictor`):
            Predicts the groups.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the decisions.
        exploration_share (`float`, *optional*, defaults to `0.1`):
            Lowest probability to be sampled, in (0, 1]. With 1 nothing is passed over.
        evict_above (`float`, *optional*):
            Rows whose past groups were correct to this share or more are not drawn any more. `None`: none are evicted.

    Raises:
        `ValueError`: when `exploration_share` or `evict_above` is outside of (0, 1].

    Attributes:
        num_evicted (`int`):
            Rows that are not drawn any more.
        reliability (`Reliability`):
            What was predicted against what was found.

    Example:

    >>> from trl_dapo.sampling.pass_rates import PassRates
    >>> selection = PromptSelection(PromptStream(num_rows=100), PassRates(num_rows=100, num_generations=8))
    >>> [draw.position for draw in selection.draw(3)]
    [0, 1, 2]
    """

    def __init__(
        self,
        stream: PromptStream,
        rates: Predictor,
        seed: int = 0,
        exploration_share: float = 0.1,
        evict_above: float | None = None,
    ):
        for name, value in (("exploration_share", exploration_share), ("evict_above", evict_above)):
            if value is not None and not 0.0 < value <= 1.0:
                raise ValueError(f"{name} is {value}, but must be above 0 and at most 1.")
        self.stream = stream
        self.rates = rates
        self.exploration_share = exploration_share
        self.evict_above = evict_above
        self.reliability = Reliability()
        self._key = np.uint64(keyed_hash(f"{seed}/selection"))
        self._evicted = None if evict_above is None else np.zeros(stream.num_rows, dtype=np.bool_)
        self._sums = _ShareSums()
        self.num_evicted = 0
        # Selected draws that follow `_start`, and how far the stream was looked at.
        self._ahead: list[SelectedDraw] = []
        self._start = self._end = -1
        # Draws that were looked at, from the beginning of the batch on.
        self._known: list[Draw] = []
        self._best_unseen = self._find_best_unseen()

    def chances(self) -> Iterator[float]:
        """Yields the probability to be informative of each draw that `draw` would take next. Nothing is taken."""
        number = 0
        while True:
            self._look_ahead(number + 1)
            yield self._ahead[number].chance
            number += 1

    def draw(self, num_prompts: int) -> list[Draw]:
        """Takes the next draws that are to be sampled; the stream then stands behind the last of them."""
        if not num_prompts:
            return []
        self._look_ahead(num_prompts)
        taken, self._ahead = self._ahead[:num_prompts], self._ahead[num_prompts:]
        self._start = taken[-1].draw.position + 1
        self.stream.seek(self._start)
        return [selected.draw for selected in taken]

    def chances_of(self, draws: Sequence[Draw]) -> list[float]:
        """Returns the probability to be informative of the groups of these draws."""
        if not draws:
            return []
        chances = self.rates.predict(np.array([draw.index for draw in draws])).chances
        return [float(chance) for chance in chances]

    def samples(self, draw: Draw) -> bool:
        """Decides whether a draw is sampled, by what was learned so far."""
        share = self.sampling_probabilities(np.array([draw.index]))
        return bool(self._uniforms(np.array([draw.position]))[0] < share[0])

    def sampling_probabilities(self, indices: Ints) -> Floats:
        """Returns the probability with which a draw of each of these rows is sampled."""
        return self._shares(indices, self.rates.predict(indices))

    def settle(self, groups: Sequence[SampledGroup]) -> None:
        """
        Learns what groups found. To be called between batches, with all groups whose draws are used up.

        What is decided on later draws changes with it: draws that were given back to the stream are decided on anew.
        """
        rewards = [reward for group in groups for reward in group.filter_rewards if math.isfinite(reward)]
        if rewards:
            self.rates.see_rewards(min(rewards), max(rewards))
        self.learn(GroupOutcomes.of(groups))

    def learn(self, outcomes: GroupOutcomes) -> None:
        """Learns from outcomes in stream order, as `settle` does from groups."""
        waves = _waves(outcomes.indices)
        for numbers in waves:
            self._account(outcomes.take(numbers))
        # A row that comes up twice in a batch is learned from twice, one group after the other.
        for numbers in waves:
            indices, num_correct, num_scored, is_informative, _ = outcomes.take(numbers)
            self.rates.observe(Outcomes(indices, num_correct, num_scored, is_informative))
            self._evict(indices)
        self._forget_ahead()

    def metrics(self) -> dict[str, float]:
        """
        Returns the figures of the predictor over the last batches.

        `completions_of_blind` is what share of the completions of blind sampling was sampled for a trained group, and
        `rare_of_blind` the share of rare successes among informative groups over that of blind sampling. What blind sampling
        would have found is estimated from the groups that were sampled, each weighted by 1 over its probability to be.
        `frac_unsolved` and `frac_solved` are the shares of the prompts seen so far whose pass rate is put below 0.1, and above
        0.9.
        """
        frac_unsolved, frac_solved = self.rates.frac_by_rate()
        return {
            "calibration_error": self.reliability.calibration_error,
            "completions_of_blind": self._sums.completions_of_blind,
            "rare_of_blind": self._sums.rare_of_blind,
            "frac_unsolved": frac_unsolved,
            "frac_solved": frac_solved,
            "evicted": float(self.num_evicted),
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns what was learned. The stream has a state of its own."""
        packed = None if self._evicted is None else np.packbits(self._evicted).tobytes()
        return {
            "rates": self.rates.state_dict(),
            "reliability": self.reliability.state_dict(),
            "sums": self._sums.state_dict(),
            "evicted": None if packed is None else base64.b64encode(zlib.compress(packed, 1)).decode(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with what was learned."""
        self.rates.load_state_dict(state["rates"])
        self.reliability.load_state_dict(state["reliability"])
        self._sums.load_state_dict(state["sums"])
        if self._evicted is not None and state["evicted"] is not None:
            packed = np.frombuffer(zlib.decompress(base64.b64decode(state["evicted"])), dtype=np.uint8)
            self._evicted = np.unpackbits(packed, count=self.stream.num_rows).astype(np.bool_)
            self.num_evicted = int(self._evicted.sum())
        self._forget_ahead()

    def _look_ahead(self, num_prompts: int) -> None:
        """Decides on draws of the stream until so many are selected."""
        if self._start != self.stream.position:
            self._ahead, self._start, self._end = [], self.stream.position, self.stream.position
        while len(self._ahead) < num_prompts:
            if self.num_evicted == self.stream.num_rows:
                raise ValueError(
                    f"All {self.num_evicted} prompts of train_dataset are evicted: the policy solves each of them to "
                    f"{self.evict_above} or more. Train on harder prompts, or without eviction."
                )
            draws = self._peek_from(self._end, max(_BLOCK, num_prompts - len(self._ahead)))
            self._end = draws[-1].position + 1
            indices = np.array([draw.index for draw in draws])
            prediction = self.rates.predict(indices)
            uniforms = self._uniforms(np.array([draw.position for draw in draws]))
            is_sampled = uniforms < self._shares(indices, prediction)
            self._ahead += [
                SelectedDraw(draws[number], float(prediction.chances[number])) for number in np.flatnonzero(is_sampled)
            ]

    def _peek_from(self, start: int, num_draws: int) -> list[Draw]:
        """Returns draws of the stream from a position on. Those that were looked at before are not made anew."""
        if self._known and not self._known[0].position <= start <= self._known[-1].position + 1:
            self._known = []
        number = start - self._known[0].position if self._known else 0
        num_missing = number + num_draws - len(self._known)
        if num_missing > 0:
            position = self.stream.position
            self.stream.seek(start + num_draws - num_missing)
            self._known += self.stream.peek(num_missing)
            self.stream.seek(position)
        return self._known[number : number + num_draws]

    def _shares(self, indices: Ints, prediction: Prediction) -> Floats:
        """Returns the probability with which a draw of each of these rows is sampled."""
        values, full = _values(prediction), self._full_value
        seen, unseen = values / full, _fourth_power(values / self._best_unseen)
        shares = np.where(prediction.is_seen, seen * seen, unseen * unseen)
        shares = np.minimum(np.maximum(shares, self.exploration_share), 1.0)
        return shares if self._evicted is None else np.where(self._evicted[indices], 0.0, shares)

    @property
    def _full_value(self) -> float:
        return max(_FULL_VALUE * self.rates.best_chance, _MIN_VALUE)

    def _find_best_unseen(self) -> float:
        """Returns the value of the better ones among the prompts that were never seen."""
        prediction, counts = self.rates.predict_unseen()
        values = _values(prediction)
        # A mean that leans to the high values: a kind of few prompts, or with an uncertain value, does not decide alone.
        weights = counts * _fourth_power(values) * _fourth_power(values)
        total = math.fsum(weights)
        best = math.fsum(weights * values) / total if total else self._full_value
        return min(max(best, _MIN_VALUE), self._full_value)

    def _uniforms(self, positions: Ints) -> Floats:
        """Returns a number in [0, 1) for each position of the stream."""
        # SplitMix64: integers that wrap, the same everywhere.
        bits = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + self._key
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def _account(self, outcomes: GroupOutcomes) -> None:
        """Notes what came of the predictions for groups of different rows."""
        prediction = self.rates.predict(outcomes.indices)
        self.reliability.observe(prediction.chances, outcomes.is_informative)
        shares = np.maximum(self._shares(outcomes.indices, prediction), self.exploration_share)
        self._sums.observe(shares, outcomes.is_informative, outcomes.is_rare)

    def _evict(self, indices: Ints) -> None:
        if self._evicted is not None and self.evict_above is not None:
            solved = indices[self.rates.observed_rates(indices) >= self.evict_above]
            self.num_evicted += int((~self._evicted[solved]).sum())
            self._evicted[solved] = True

    def _forget_ahead(self) -> None:
        """Forgets what was decided on later draws."""
        self._ahead, self._start = [], -1
        position = self.stream.position
        self._known = [draw for draw in self._known if draw.position >= position]
        self._best_unseen = self._find_best_unseen()


def _values(prediction: Prediction) -> Floats:
    return prediction.chances + _RARE_VALUE * prediction.rare


def _fourth_power(values: Floats) -> Floats:
    squares = values * values
    return squares * squares


def _waves(indices: Ints) -> list[Ints]:
    """Splits numbers of groups into parts in which no row comes up twice, first the first of each row."""
    waves, numbers = [], np.arange(len(indices))
    while len(numbers):
        _, first = np.unique(indices[numbers], return_index=True)
        first.sort()
        waves.append(numbers[first])
        numbers = np.delete(numbers, first)
    return waves


class _ShareSums:
    """Counts of sampled groups, plain and as blind sampling would have found them."""

    def __init__(self) -> None:
        # All, informative ones and rare successes: plain, and weighted by 1 over the probability to be sampled.
        self._sums = np.zeros((2, 3))

    def observe(self, shares: Floats, is_informative: Bools, is_rare: Bools) -> None:
        flags = np.stack([np.ones_like(is_rare), is_informative, is_rare]).astype(np.float64)
        new = np.array([[math.fsum(row) for row in flags], [math.fsum(row) for row in flags / shares]])
        self._sums = self._sums * (_MEMORY / (_MEMORY + len(shares))) + new

    @property
    def completions_of_blind(self) -> float:
        (all_groups, informative, _), (all_blind, informative_blind, _) = self._sums.tolist()
        return (all_groups / informative) / (all_blind / informative_blind) if informative else math.nan

    @property
    def rare_of_blind(self) -> float:
        (_, informative, rare), (_, informative_blind, rare_blind) = self._sums.tolist()
        return (rare / informative) / (rare_blind / informative_blind) if rare_blind else math.nan

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = np.array(state["sums"])
