"""Worlds of hidden pass rates for `selection.py`, and what draws prompts from them: blindly, by streaks, knowing everything."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trl_dapo.sampling.judge import max_rare_count
from trl_dapo.sampling.pass_rates import Outcomes, Prediction, informative_counts
from trl_dapo.sampling.prompt_selection import GroupOutcomes, PromptSelection
from trl_dapo.sampling.prompt_stream import Draw, PromptStream


# Nodes and weights over which an oracle averages the noise of a visit.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class TableStream(PromptStream):
    """The prompt stream with its passes as tables of a pseudo-random generator: the same law, and quick to simulate."""

    def _index_at(self, position: int) -> int:
        number, offset = divmod(position, self.num_rows)
        return self.pass_order(number)[offset]

    def pass_order(self, number: int) -> list[int]:
        """Returns the rows of a pass in order."""
        tables: dict[int, list[int]] = self.__dict__.setdefault("_tables", {})
        if number not in tables:
            tables[number] = np.random.default_rng((self.seed, number)).permutation(self.num_rows).tolist()
            tables.pop(number - 3, None)
        return tables[number]


class World:
    """
    Prompts whose hidden pass rates move while the policy learns.

    What a draw finds is fixed by its position and the pass rate, so that ways to draw are compared on the same luck, and a
    draw that is given back to the stream finds the same when it is sampled again under the same policy.

    Args:
        num_rows (`int`):
            Prompts.
        num_generations (`int`):
            Completions per group G.
        informative_share (`float`):
            Share of the groups of blind sampling that are informative, at first. Pass rates have the Beta law with mean 0.4
            that gives it.
        drift (`float`, *optional*, defaults to `0.0`):
            What 12 passes of blind sampling add to the log-odds of every prompt.
        noise (`float`, *optional*, defaults to `0.0`):
            Standard deviation of the log-odds of each visit.
        walk (`float`, *optional*, defaults to `0.0`):
            Standard deviation of what 12 passes of blind sampling add to the log-odds of each prompt for itself.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything.
    """

    def __init__(
        self,
        num_rows: int,
        num_generations: int,
        informative_share: float,
        drift: float = 0.0,
        noise: float = 0.0,
        walk: float = 0.0,
        seed: int = 0,
    ):
        self.num_rows, self.num_generations, self.seed = num_rows, num_generations, seed
        self.drift, self.noise, self.walk = drift, noise, walk
        self.rng = np.random.default_rng((seed, 1))
        strength = beta_strength(informative_share, num_generations)
        rates = np.clip(self.rng.beta(MEAN * strength, (1 - MEAN) * strength, num_rows), 1e-12, 1 - 1e-12)
        self.log_odds = np.log(rates) - np.log1p(-rates)
        self.shift = 0.0
        self._groups_of_12_passes = 12 * informative_share * num_rows
        self._luck: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def rates(self, indices: np.ndarray) -> np.ndarray:
        """Returns the pass rates of some rows under the present policy."""
        return _sigmoid(self.log_odds[indices] + self.shift)

    def sample(self, positions: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns the correct completions of a group of each of these draws."""
        passes, offsets = np.divmod(positions, self.num_rows)
        counts = np.empty(len(positions), dtype=np.int64)
        for number in np.unique(passes):
            normals, uniforms = self._luck_of(int(number))
            here = passes == number
            at = offsets[here]
            rates = _sigmoid(self.log_odds[indices[here]] + self.shift + self.noise * normals[at])
            counts[here] = (uniforms[at] < rates[:, None]).sum(axis=1)
        return counts

    def chances(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns P(informative) and P(informative with few correct) of the next groups of some rows."""
        noisy = self.log_odds[indices][:, None] + self.shift + self.noise * _NODES
        chances, rare = chances_at(_sigmoid(noisy), self.num_generations)
        return chances @ _WEIGHTS, rare @ _WEIGHTS

    def learn(self, indices: np.ndarray, counts: np.ndarray, num_groups: int) -> None:
        """Moves the policy by a batch of these groups."""
        part = len(indices) / self._groups_of_12_passes
        self.shift += self.drift * part
        if self.walk:
            self.log_odds += self.walk * math.sqrt(part) * self.rng.standard_normal(self.num_rows)

    def _luck_of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self._luck:
            rng = np.random.default_rng((self.seed, 2, number))
            shape = (self.num_rows, self.num_generations)
            self._luck[number] = (rng.standard_normal(self.num_rows), rng.random(shape, dtype=np.float32))
            self._luck.pop(number - 3, None)
        return self._luck[number]


MEAN = 0.4


def beta_strength(informative_share: float, num_generations: int) -> float:
    """Returns a + b of the Beta law of pass rates with mean 0.4 whose groups are informative to this share."""
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        a, b = MEAN * middle, (1 - MEAN) * middle
        wrong = math.prod((b + j) / (a + b + j) for j in range(num_generations))
        right = math.prod((a + j) / (a + b + j) for j in range(num_generations))
        low, high = (middle, high) if 1 - wrong - right < informative_share else (low, middle)
    return low


def chances_at(rates: np.ndarray, num_generations: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns P(informative) and P(informative with few correct) of groups with these pass rates."""
    low, high = informative_counts(num_generations)
    masses = [
        math.comb(num_generations, k) * rates**k * (1 - rates) ** (num_generations - k) for k in range(low, high + 1)
    ]
    return np.sum(masses, axis=0), np.sum(masses[: max_rare_count(num_generations)], axis=0)


class OracleRates:
    """Knows each pass rate, and the law of the noise of a visit, and nothing of the visit to come."""

    def __init__(self, world: Any):
        self.world = world
        self.best_chance = float(chances_at(np.array([0.5]), world.num_generations)[0][0])

    def predict(self, indices: np.ndarray) -> Prediction:
        """Returns what the next groups will find."""
        chances, rare = self.world.chances(indices)
        return Prediction(np.clip(chances, 1e-9, 1 - 1e-9), rare, np.ones(len(indices), dtype=bool))

    def predict_unseen(self) -> tuple[Prediction, np.ndarray]:
        """Every prompt counts as seen."""
        return Prediction(np.empty(0), np.empty(0), np.empty(0, dtype=bool)), np.empty(0)

    def observed_rates(self, indices: np.ndarray) -> np.ndarray:
        """Returns the pass rates."""
        return self.world.rates(indices)

    def frac_by_rate(self) -> tuple[float, float]:
        """Returns the shares of rows with a pass rate below 0.1, and above 0.9."""
        rates = self.world.rates(np.arange(self.world.num_rows))
        return float((rates < 0.1).mean()), float((rates > 0.9).mean())

    def see_rewards(self, lowest: float, highest: float) -> None:
        """Does nothing."""

    def observe(self, outcomes: Outcomes) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing."""


class BlindSelection:
    """Samples every draw."""

    chances = None

    def __init__(self, stream: PromptStream):
        self.stream = stream

    def draw(self, num_prompts: int) -> list[Draw]:
        """Takes the next draws that are to be sampled."""
        draws: list[Draw] = []
        while len(draws) < num_prompts:
            found = self.stream.peek(num_prompts - len(draws))
            self.stream.seek(found[-1].position + 1)
            draws += self.selected(found)
        return draws

    def selected(self, draws: Sequence[Draw]) -> list[Draw]:
        """Returns those of the draws that are sampled."""
        return list(draws)

    def learn(self, outcomes: GroupOutcomes) -> None:
        """Learns what groups found: nothing."""


class StreakSelection(BlindSelection):
    """
    GRESO (https://huggingface.co/papers/2506.02177): a prompt with `z` uninformative groups in a row is sampled with
    probability 0.5 ** z, but never less than 0.05.
    """

    def __init__(self, stream: PromptStream, explore: float = 0.5, min_explore: float = 0.05):
        super().__init__(stream)
        self.explore, self.min_explore = explore, min_explore
        self.streaks = np.zeros(stream.num_rows, dtype=np.int64)

    def selected(self, draws: Sequence[Draw]) -> list[Draw]:
        """Returns those of the draws that are sampled."""
        shares = np.maximum(self.min_explore, self.explore ** self.streaks[[draw.index for draw in draws]])
        # A generator for each draw: what is decided on it must not depend on the size of rounds.
        uniforms = [_uniform(self.stream.seed, draw.position) for draw in draws]
        return list(itertools.compress(draws, uniforms < shares))

    def learn(self, outcomes: GroupOutcomes) -> None:
        """Learns what groups found."""
        for index, is_informative in zip(outcomes.indices, outcomes.is_informative, strict=True):
            self.streaks[index] = 0 if is_informative else self.streaks[index] + 1


class PlainPlan(PromptSelection):
    """Our selection without its predictions for the planner."""

    def chances(self) -> Iterator[float] | None:  # type: ignore[override]
        """Returns nothing, so that rounds are planned by one acceptance rate for all."""
        return None


def _uniform(seed: int, position: int) -> float:
    bits = (position * 0x9E3779B97F4A7C15 + seed + 1) % 2**64
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
    return (bits ^ (bits >> 31)) / 2**64


def _sigmoid(log_odds: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-log_odds))


def noisy_column(world: World, kind: str, correlation: float) -> np.ndarray:
    """
    Returns a column of pass rates that has this correlation with the true ones.

    Args:
        world (`World`):
            The world.
        kind (`str`):
            `"another model"`: measured with 8 completions of a model whose log-odds differ by normal noise. `"added noise"`:
            the pass rate plus normal noise, cut to [0, 1].
        correlation (`float`):
            Pearson's, before measuring.
    """
    rates = world.rates(np.arange(world.num_rows))
    normals = world.rng.standard_normal(world.num_rows)

    def column(scale: float) -> np.ndarray:
        if kind == "another model":
            return _sigmoid(world.log_odds + world.shift + scale * normals)
        return np.clip(rates + scale * normals, 0.0, 1.0)

    low, high = 0.0, 50.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if np.corrcoef(rates, column(middle))[0, 1] > correlation else (low, middle)
    return world.rng.binomial(8, column(low)) / 8 if kind == "another model" else column(low)
