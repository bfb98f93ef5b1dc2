"""Accuracy of a model on problems with known answers: avg@k, maj@k, pass@k with confidence intervals."""

from .completion_sampler import CompletionSampler, SamplingSettings, TransformersSampler, load_sampler
from .evaluator import evaluate
from .k_metrics import avg_at_k, maj_at_k, pass_at_k
from .result import EvaluationResult


__all__ = [
    "CompletionSampler",
    "EvaluationResult",
    "SamplingSettings",
    "TransformersSampler",
    "avg_at_k",
    "evaluate",
    "load_sampler",
    "maj_at_k",
    "pass_at_k",
]
