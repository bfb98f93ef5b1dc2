"""
The errors that a user of the package may want to catch, and where each comes from.

| error | raised by | seen by |
|---|---|---|
| `RefillExhaustedError` | `refill/dynamic_sampling.py`, with `on_exhausted="error"` | all ranks |
| `RewardTimeoutError` | `guards/reward_deadline.py` | the rank whose reward function hangs |
| `EnvTimeoutError` | `turns/environments.py`; only that of a rollout function ends a run | the rank whose function hangs |
| `BadToolCallError` | tools of the caller, where the model called them wrongly | TRL, which answers the model with it |
| `RankFailedError` | `ranks/collectives.py`, when another rank failed while it sampled or graded | all other ranks |
| `NonFiniteGradientError` | `guards/optimizer_steps.py` | all ranks |
| `StaleEngineError` | `vllm_engine/canary.py` | all ranks |
| `VLLMServerError` | `vllm_server/` | the rank that asked the server; all ranks where it is the weights |
| `HubUnreachableError` | `data/hub_access.py`, `publishing/` | the process that loads or pushes |
| `HubPushError` | `publishing/` | the process that pushes |

What a reward function raises is raised unchanged, with a note on what was being computed ([`naming_rewards`]). Bad
configuration and bad data raise `ValueError`, before anything is loaded where that is possible.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence


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
        remark (`str`, *optional*):
            Which rewards judged the groups, and what the others said.
    """

    def __init__(
        self,
        num_accepted: int,
        num_needed: int,
        num_rounds: int,
        verdict_counts: Mapping[str, int],
        remark: str = "",
    ):
        self.num_accepted = num_accepted
        self.num_needed = num_needed
        self.num_rounds = num_rounds
        self.verdict_counts = dict(verdict_counts)
        super().__init__(describe_exhaustion(num_accepted, num_needed, num_rounds, verdict_counts) + remark)


class TrainingStoppedError(RuntimeError):
    """
    A guard stopped the training before its last step. A checkpoint was saved, and model card and facts say so.

    Args:
        step (`int`), num_steps (`int`):
            Optimizer steps taken, and those of the run.
        reason (`str`):
            What the guard found.
        folder (`str`):
            The folder of the run.
    """

    def __init__(self, step: int, num_steps: int, reason: str, folder: str):
        self.step = step
        self.num_steps = num_steps
        self.reason = reason
        self.folder = folder
        super().__init__(
            f"Training was stopped at step {step} of {num_steps}, so the model is not what the run was to make. {reason}\n"
            f"The last checkpoint in {folder} is of this step. Change what the counts point to before you train on from it."
        )


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
        self,
        engine_logp: float,
        trainer_logp: float,
        gap: float,
        limit: float,
        num_tokens: int,
        rank: int = 0,
        engine: str | None = None,
    ):
        self.engine_logp = engine_logp
        self.trainer_logp = trainer_logp
        self.gap = gap
        self.limit = limit
        self.num_tokens = num_tokens
        self.rank = rank
        super().__init__(
            f"The vLLM {engine or f'engine of rank {rank}'} does not sample from the weights that train: over {num_tokens} sampled tokens "
            f"its mean log-probability is {engine_logp:.4f} and the trained model's {trainer_logp:.4f}; they differ by "
            f"{gap:.4f} on average, and vllm_max_logp_gap allows {limit:.4f}.\n"
            "Either the weight sync does not reach all of the engine's weights (a tied head, a repacked layer, an adapter "
            "that was not merged), or the engine computes much less exactly than the trainer (quantization): then raise "
            "vllm_max_logp_gap, or set it to None."
        )


class VLLMServerError(RuntimeError):
    """
    A vLLM server does not answer, refuses, or answers with what no such server would.

    Args:
        address (`str`):
            The server.
        cause (`str`):
            What happened, and what helps.
    """

    def __init__(self, address: str, cause: str):
        self.address = address
        self.cause = cause
        super().__init__(f"The vLLM server at {address} {cause}")


class RankFailedError(RuntimeError):
    """
    Another process of the run failed while completions were sampled or graded.

    Args:
        rank (`int`):
            The process that failed.
        cause (`str`):
            What happened to it.
    """

    def __init__(self, rank: int, cause: str):
        self.rank = rank
        self.cause = cause
        super().__init__(f"Sampling stopped because process {rank} failed with: {cause}")


class RewardTimeoutError(RuntimeError):
    """
    A call of a reward function took longer than `reward_timeout`.

    Args:
        function (`str`):
            Name of the reward function.
        seconds (`float`):
            The limit, in wall seconds.
        where (`str`):
            Which rewards it was to compute: how many, on which rank, at which optimizer step.
    """

    def __init__(self, function: str, seconds: float, where: str):
        self.function = function
        self.seconds = seconds
        self.where = where
        super().__init__(
            f"The reward function {function} did not return within reward_timeout={seconds:g} seconds. It was computing "
            f"{where}. The stacks that were printed say where it was. Give it a limit of its own for whatever it waits "
            "for, raise reward_timeout, or set it to None for no limit."
        )


class EnvTimeoutError(RuntimeError):
    """
    A tool, the `reset` of an environment or a rollout function took longer than `env_timeout`.

    Args:
        function (`str`):
            Its name.
        seconds (`float`):
            The limit, in wall seconds.
        where (`str`):
            For which completions it was called.
    """

    def __init__(self, function: str, seconds: float, where: str):
        self.function = function
        self.seconds = seconds
        self.where = where
        super().__init__(
            f"{function} did not return within env_timeout={seconds:g} seconds. It was called for {where}. Give it a limit of "
            "its own for whatever it waits for, raise env_timeout, or set it to None for no limit."
        )


class BadToolCallError(ValueError):
    """
    For tools to raise where the model called them wrongly: the model is answered with the message, and its completion is
    scored. Whatever else a tool raises is its own fault, and leaves the completion without a reward.
    """


class NonFiniteGradientError(RuntimeError):
    """
    The gradients of `max_non_finite_steps` consecutive optimizer steps were NaN or infinite. The weights are still finite.

    Args:
        step (`int`):
            The optimizer step, counted from 1.
        num_in_a_row (`int`):
            Consecutive steps up to this one.
        ranks (`Sequence[int]`):
            Ranks with gradients that are not finite.
        suspects (`Sequence[str]`):
            Columns of this rank's batch with values that are not finite.
        folder (`str`):
            Where the first such batches are.
    """

    def __init__(self, step: int, num_in_a_row: int, ranks: Sequence[int], suspects: Sequence[str], folder: str):
        self.step = step
        self.num_in_a_row = num_in_a_row
        self.ranks = list(ranks)
        self.suspects = list(suspects)
        cause = (
            f"The batch itself is not finite in {', '.join(suspects)}: rewards, or log-probabilities of the policy that "
            "sampled it."
            if suspects
            else "The batch itself is finite, so the forward or backward pass overflows: a lower learning_rate or "
            "max_grad_norm, bf16 or float32 instead of float16, or a kernel (attn_implementation) is where to look."
        )
        super().__init__(
            f"Optimizer step {step} has gradients that are NaN or infinite, on ranks {self.ranks} "
            f"({num_in_a_row} consecutive). {cause}\nThe first such batches are in {folder}."
        )


class HubUnreachableError(ConnectionError):
    """A model or dataset is neither a local path nor in the cache, and the Hugging Face Hub does not answer."""


class HubPushError(RuntimeError):
    """A model could not be pushed. It is safe on disk; the message says why, and how to try again."""


@contextlib.contextmanager
def naming_rewards(
    names: Sequence[str], num_completions: int, last_checkpoint: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """
    Adds to an error of a reward function what was being computed, and from where the run can go on.

    Args:
        names (`Sequence[str]`):
            The reward functions. Read when there is an error.
        num_completions (`int`):
            Completions that they score.
        last_checkpoint (`Callable[[], Path or None]`, *optional*):
            Finds what to resume from; `None`: nothing.

    >>> try:
    ...     with naming_rewards(["accuracy_reward"], num_completions=8):
    ...         sum(None)
    ... except TypeError as error:
    ...     print(error.__notes__[0].splitlines()[0])
    This happened while the rewards of 8 completions were computed by accuracy_reward.
    """
    try:
        yield
    except Exception as error:
        checkpoint = last_checkpoint()
        resume = "There is no checkpoint" if checkpoint is None else f"A run can be resumed from {checkpoint}"
        error.add_note(
            f"This happened while the rewards of {num_completions} completions were computed by {', '.join(names)}.\n{resume}."
        )
        raise


# What helps against each verdict that keeps a group from training.
_ADVICE = {
    "all_wrong": "easier prompts, or a larger `num_generations`",
    "all_correct": "harder prompts, or a larger `num_generations`",
    "uniform": "another `filter_reward`, one that differs between the completions of a prompt",
    "unscorable": "golds that can be read (`trl-dapo grade` lists the others), or a `filter_reward` that does not return None "
    "for them; tools and environments that do not fail (`dapo/frac_env_failed`)",
    "out_of_range": "a wider `filter_range`",
    "truncated_out": "a larger `max_completion_length`, or mask_truncated_completions=False and "
    "truncated_in_statistics=True",
}
# Verdicts with a smaller share of the groups that do not train are not worth an advice.
_MIN_SHARE = 0.1


def describe_exhaustion(num_accepted: int, num_needed: int, num_rounds: int, verdict_counts: Mapping[str, int]) -> str:
    """
    Says how far the refill came, what the sampled groups were, and what would help against each.

    >>> print(describe_exhaustion(3, 8, 10, {"informative": 3, "all_wrong": 77}))
    3 of 8 informative groups after 10 generation rounds (77 all_wrong, 3 informative).
    What helps: easier prompts, or a larger `num_generations` (for all_wrong); a higher `max_generation_rounds`.
    """
    ordered = sorted(verdict_counts.items(), key=lambda item: -item[1])
    counts = ", ".join(f"{count} {verdict}" for verdict, count in ordered if count)
    rejected = sum(verdict_counts.get(verdict, 0) for verdict in _ADVICE)
    advice = [
        f"{_ADVICE[verdict]} (for {verdict})"
        for verdict, count in ordered
        if verdict in _ADVICE and count > _MIN_SHARE * rejected
    ]
    # Where no group was informative, more of the same gives none. A smaller batch gets fewer prompts to be filled from.
    if num_accepted or not rejected:
        advice.append("a higher `max_generation_rounds`")
    return (
        f"{num_accepted} of {num_needed} informative groups after {num_rounds} generation round{'s' * (num_rounds != 1)} "
        f"({counts}).\nWhat helps: {'; '.join(advice)}."
    )
