"""avg@k, maj@k and pass@k on the evaluation dataset in training, with k = `num_generations_eval`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from trl_dapo.evaluation.answer_classes import CORRECT, answer_classes
from trl_dapo.evaluation.k_metrics import avg_at_k, maj_at_k
from trl_dapo.rewards import SoftOverlongPunishment
from trl_dapo.sampling.judge import is_correct


# Of its instances; the class itself has a name of its own.
_PUNISHMENT: str = vars(SoftOverlongPunishment)["__name__"]


class EvaluationMetrics:
    """
    Collects which completions of an evaluation are correct, problem by problem.

    Correct is what the filter reward calls so; no penalty is in it. Completions without a reward are left out, and
    problems in which none has one. A vote needs the answers: `accuracy_reward` logs them, and without them there is no
    `maj@k`. TRL repeats some problems at the end to fill the last batch of all ranks; they count twice, as in its metrics.

    Args:
        k (`int`):
            Completions per problem.
    """

    def __init__(self, k: int):
        self.k = k
        self._values: dict[str, list[float]] = {}

    def observe(self, rewards: torch.Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
        """
        Takes in a batch. To be called on all ranks.

        Args:
            rewards (`torch.Tensor` of shape `(N,)`):
                Filter rewards of the completions of all ranks, those of a problem in a row; NaN: no reward.
            columns (`Mapping[str, Sequence[Any]]`):
                What the reward functions logged for each completion of this rank; of it the column `answer` is read.
        """
        all_answers = gather_object(list(columns.get("answer", [])))
        groups = rewards.double().view(-1, self.k).tolist()
        scored = [
            [(place, is_correct(reward)) for place, reward in enumerate(group) if not math.isnan(reward)]
            for group in groups
        ]
        marks = [[mark for _, mark in group] for group in scored if group]
        values = {"avg": [avg_at_k(group) for group in marks], "pass": [float(any(group)) for group in marks]}
        # Not as many, if no reward function logs them, or several do.
        if len(all_answers) == len(rewards):
            rows = [
                [all_answers[number * self.k + place] for place, _ in group]
                for number, group in enumerate(scored)
                if group
            ]
            values["maj"] = [maj_at_k(votes, CORRECT, len(votes)) for votes in answer_classes(rows, marks)]
        for name, column in values.items():
            self._values.setdefault(name, []).extend(column)

    def clear(self) -> None:
        """Forgets what was taken in since the last flush."""
        self._values.clear()

    def flush(self, logs: dict[str, float], metrics: dict[str, list[float]]) -> dict[str, float]:
        """
        Returns the means since the last flush, and takes what has no meaning in evaluation out of TRL's metrics.

        Args:
            logs (`dict[str, float]`):
                What `Trainer.evaluate` logs: the names of the metrics begin as those do (`eval`, `eval_<dataset>`).
            metrics (`dict[str, list[float]]`):
                TRL's metrics in evaluation. The soft overlong punishment is not applied there, and is NaN.
        """
        for name in (f"rewards/{_PUNISHMENT}/mean", f"rewards/{_PUNISHMENT}/std"):
            if all(math.isnan(value) for value in metrics.get(name, [])):
                metrics.pop(name, None)
        prefix = next((name.removesuffix("_runtime") for name in logs if name.endswith("_runtime")), "eval")
        means = {
            f"{prefix}_{name}@{self.k}": sum(column) / len(column) for name, column in self._values.items() if column
        }
        self._values.clear()
        return means
