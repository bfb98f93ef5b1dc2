"""A policy that really learns, and is quick: for `selection.py`, which asks what accuracy a completion buys."""

import numpy as np
from selection_worlds import chances_at


NUM_ANSWERS, NUM_FEATURES = 8, 48
NUM_TEST = 3000


class Learner:
    """
    A linear softmax policy that answers multiple-choice questions, trained by policy gradient on groups.

    A prompt is a vector of features, its gold answer that of a hidden linear teacher. The policy begins as a noisy copy of the
    teacher. The gradient is GRPO's: rewards less their mean over the group, over their standard deviation. What is learned on
    one prompt changes all others, for better or worse; held-out prompts measure what is general.

    Args:
        num_rows (`int`):
            Training prompts.
        num_generations (`int`):
            Completions per group G.
        known (`float`):
            What the policy has of the teacher at first, in [0, 1].
        sharpness (`float`):
            Scale of the logits: the larger, the more prompts are always or never solved.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything.
    """

    def __init__(self, num_rows: int, num_generations: int, known: float, sharpness: float, seed: int = 0):
        self.num_rows, self.num_generations, self.seed = num_rows, num_generations, seed
        rng = self.rng = np.random.default_rng((seed, 3))
        self.prompts = rng.standard_normal((num_rows, NUM_FEATURES))
        self.test = rng.standard_normal((NUM_TEST, NUM_FEATURES))
        teacher = rng.standard_normal((NUM_ANSWERS, NUM_FEATURES))
        self.gold = (self.prompts @ teacher.T).argmax(axis=1)
        self.test_gold = (self.test @ teacher.T).argmax(axis=1)
        start = known * teacher + (1 - known) * rng.standard_normal(teacher.shape)
        self.weights = 0.35 * sharpness * start
        self.learning_rate = 0.43

    def rates(self, indices: np.ndarray) -> np.ndarray:
        """Returns the pass rates of some rows under the present policy."""
        return self._policy(self.prompts[indices])[np.arange(len(indices)), self.gold[indices]]

    def chances(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns P(informative) and P(informative with few correct) of the next groups of some rows."""
        return chances_at(self.rates(indices), self.num_generations)

    def accuracy(self) -> float:
        """Returns the mean pass rate on held-out prompts."""
        return float(self._policy(self.test)[np.arange(NUM_TEST), self.test_gold].mean())

    def sample(self, positions: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns the correct completions of a group of each of these draws."""
        return self.rng.binomial(self.num_generations, self.rates(indices))

    def learn(self, indices: np.ndarray, counts: np.ndarray, num_groups: int) -> None:
        """Takes one optimizer step on informative groups with so many correct completions; `num_groups` make a full batch."""
        if not len(indices):
            return
        rows, gold = np.arange(len(indices)), self.gold[indices]
        wrong = self._policy(self.prompts[indices])
        wrong[rows, gold] = 0.0
        wrong /= wrong.sum(axis=1, keepdims=True)
        answers = self.rng.multinomial(self.num_generations - counts, wrong).astype(float)
        mean = counts / self.num_generations
        deviation = np.sqrt(mean * (1 - mean))
        # Gradient of the logits: the summed advantage of each answer. It sums to 0 over the answers.
        signal = -answers * (mean / deviation)[:, None] / self.num_generations
        signal[rows, gold] = deviation
        self.weights += self.learning_rate * signal.T @ self.prompts[indices] / num_groups

    def _policy(self, prompts: np.ndarray) -> np.ndarray:
        logits = prompts @ self.weights.T
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)
