"""The errors that a user of the package may want to catch."""

from collections.abc import Mapping


class RefillExhaustedError(RuntimeError):
    """
    A generation batch could not be filled within `max_generation_rounds`, and `on_exhausted="error"`.

    Args:
        num_accepted (`int`):
            Informative groups found.
        num_needed (`int`):
            Groups of a full generation batch.
        num_rounds (`int`):
            Generation rounds spent.
        verdict_counts (`Mapping[str, int]`):
            Number of sampled groups per verdict of the group filter.
    """

    def __init__(self, num_accepted: int, num_needed: int, num_rounds: int, verdict_counts: Mapping[str, int]):
        self.num_accepted = num_accepted
        self.num_needed = num_needed
        self.num_rounds = num_rounds
        self.verdict_counts = dict(verdict_counts)
        super().__init__(describe_exhaustion(num_accepted, num_needed, num_rounds, verdict_counts))


class StaleEngineError(RuntimeError):
    """
    vLLM samples from other weights than those that train: their log-probabilities of the same tokens are too far apart.

    Importance sampling would hide it, by weighting the loss with ratios that no longer correct anything.

    Args:
        engine_logp (`float`):
            Mean log-probability of the compared tokens by vLLM, in nats. NaN: it gave none.
        trainer_logp (`float`):
            Their mean log-probability by the trained model.
        gap (`float`):
            Mean absolute difference over these tokens. NaN: no token could be compared.
        limit (`float`):
            The gap that rounding may make.
        num_tokens (`int`):
            Tokens compared.
        rank (`int`):
            The rank whose engine it is: the one with the largest gap.
    """

    def __init__(
        self, engine_logp: float, trainer_logp: float, gap: float, limit: float, num_tokens: int, rank: int = 0
    ):
        self.engine_logp = engine_logp
        self.trainer_logp = trainer_logp
        self.gap = gap
        self.limit = limit
        self.num_tokens = num_tokens
        self.rank = rank
        super().__init__(
            f"The vLLM engine of rank {rank} does not sample from the weights that train: over {num_tokens} sampled tokens "
            f"its mean log-probability is {engine_logp:.4f} and the trained model's {trainer_logp:.4f}; they differ by "
            f"{gap:.4f} on average, and vllm_max_logp_gap allows {limit:.4f}.\n"
            "Either the weight sync does not reach all of the engine's weights (a tied head, a repacked layer, an adapter "
            "that was not merged), or the engine computes much less exactly than the trainer (quantization): then raise "
            "vllm_max_logp_gap, or set it to None."
        )


class HubUnreachableError(ConnectionError):
    """A model or dataset is neither a local path nor in the cache, and the Hugging Face Hub does not answer."""


class HubPushError(RuntimeError):
    """A model could not be pushed. It is safe on disk; the message says why, and how to try again."""


def describe_exhaustion(num_accepted: int, num_needed: int, num_rounds: int, verdict_counts: Mapping[str, int]) -> str:
    """
    Says how far the refill came, what the sampled groups were, and what would help.

    >>> describe_exhaustion(3, 8, 10, {"informative": 3, "all_wrong": 77}).splitlines()[0]
    '3 of 8 informative groups after 10 generation rounds (77 all_wrong, 3 informative).'
    """
    counts = ", ".join(
        f"{count} {verdict}" for verdict, count in sorted(verdict_counts.items(), key=lambda item: -item[1]) if count
    )
    too_hard = verdict_counts.get("all_wrong", 0) >= verdict_counts.get("all_correct", 0)
    direction = "easier" if too_hard else "harder"
    return (
        f"{num_accepted} of {num_needed} informative groups after {num_rounds} generation rounds ({counts}).\n"
        f"What helps: {direction} prompts, a larger `num_generations`, a higher `max_generation_rounds`, or a smaller "
        "generation batch (`steps_per_generation`)."
    )
