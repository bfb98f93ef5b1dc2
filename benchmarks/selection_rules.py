"""Ways to turn predictions into probabilities to be sampled, beside ours: for `selection.py`."""

from typing import Any

import numpy as np
from selection_worlds import chances_at

from trl_dapo.sampling.prompt_selection import PromptSelection


class _PlainPlan(PromptSelection):
    """Our selection, whose rounds are planned by one acceptance rate for all."""

    chances = None  # type: ignore[assignment]


class _AllPrompts(PromptSelection):
    """Samples every draw, and predicts it for the planner."""

    def _shares(self, indices: np.ndarray, prediction: Any) -> np.ndarray:
        return np.ones(len(indices))


class _Rule(PromptSelection):
    """Samples what was never seen, and of the rest what `share_of` says, but at least `exploration_share`."""

    rare_value = 1.0

    def _shares(self, indices: np.ndarray, prediction: Any) -> np.ndarray:
        shares = self.share_of(indices, prediction.chances + self.rare_value * prediction.rare)
        return np.where(prediction.is_seen, np.clip(shares, self.exploration_share, 1.0), 1.0)

    def share_of(self, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Returns the probabilities to be sampled of rows that were seen."""
        raise NotImplementedError


class _Threshold(_Rule):
    threshold = 0.5

    def share_of(self, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.where(values >= self.threshold, 1.0, 0.0)


class _Power(_Rule):
    full, power = 0.8, 2.0

    def share_of(self, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.minimum(values / self.full, 1.0) ** self.power


class _Thompson(_Rule):
    """Samples a draw if a pass rate drawn from its posterior is worth it."""

    threshold = 0.5

    def share_of(self, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        rates: Any = self.rates
        # 16 quantile-like points of the Beta law, by its own generator: the share of them above the threshold.
        alpha, beta = rates._posteriors(indices, rates.predict(indices).is_seen)
        rng = np.random.default_rng(0)
        points = np.clip(rng.beta(alpha[:, None], beta[:, None], (len(indices), 16)), 1e-9, 1 - 1e-9)
        chances, rare = chances_at(points, rates.num_generations)
        return (chances + self.rare_value * rare >= self.threshold).mean(axis=1)


class _TargetShare(_Rule):
    """The lowest threshold with which the wanted share of the sampled groups is informative, by the last 2,000 predictions."""

    target = 0.7

    def share_of(self, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        chances = self.rates.predict(indices).chances
        self.recent = np.concatenate([getattr(self, "recent", np.empty(0)), chances])[-2000:]
        ordered = np.sort(self.recent)
        above = np.cumsum(ordered[::-1])[::-1]
        below = np.cumsum(ordered) - ordered
        numbers = np.arange(len(ordered))
        sampled = len(ordered) - numbers + self.exploration_share * numbers
        reaches = np.flatnonzero((above + self.exploration_share * below) / sampled >= self.target)
        return np.where(chances >= (ordered[reaches[0]] if len(reaches) else 0.9), 1.0, 0.0)


def _variant(base: type[PromptSelection], **values: float) -> type[PromptSelection]:
    return type(base.__name__, (base,), values)


RULES: dict[str, type[PromptSelection]] = {
    "one rate for all": _PlainPlan,
    "all prompts": _AllPrompts,
    "threshold 0.2": _variant(_Threshold, threshold=0.2),
    "threshold 0.5": _variant(_Threshold, threshold=0.5),
    "threshold 0.8": _variant(_Threshold, threshold=0.8),
    "threshold 0.5, no rare value": _variant(_Threshold, threshold=0.5, rare_value=0.0),
    "square, no rare value": _variant(_Power, rare_value=0.0),
    "linear": _variant(_Power, power=1.0),
    "square up to 1": _variant(_Power, full=1.0),
    "Thompson 0.5": _Thompson,
    "target share 0.7": _variant(_TargetShare, target=0.7, rare_value=0.0),
    "target share 0.8": _variant(_TargetShare, target=0.8, rare_value=0.0),
}
