"""Whether vLLM samples from the weights that train: its log-probabilities against the trained model's, now and then."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.errors import StaleEngineError
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.sampling.judge import EmptyCompletion


# What is compared: enough tokens for a mean, few enough for one small forward pass.
NUM_ROWS = 4
_NUM_TOKENS = 64
# Numbers cross ranks as integers.
_PER_NAT = 1e6

# Sampling options that leave the distribution of a token alone. Any other makes vLLM's log-probabilities those of another
# distribution, and the gap says nothing of the weights.
_HARMLESS_OPTIONS = {
    "seed",
    "stop",
    "stop_token_ids",
    "max_tokens",
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
}


class WeightCanary:
    """
    Compares vLLM's log-probabilities of sampled tokens with the trained model's, and stops a run whose engine is stale.

    Args:
        args (`DAPOConfig`):
            The trainer's configuration: `vllm_check_interval` and `vllm_max_logp_gap`.
        ranks (`Ranks`):
            The ranks of the run. Each compares tokens that its own engine sampled, and all judge by the worst.
        score (`Callable[[list[Rollout]], list[torch.Tensor]]`):
            Returns the log-probabilities of completions under the trained model, at the training temperature. Called on all
            ranks at once, with equally many rollouts.
        num_syncs (`Callable[[], int]`):
            Weight syncs so far, the same on all ranks.
    """

    def __init__(
        self,
        args: DAPOConfig,
        ranks: Ranks,
        score: Callable[[list[Rollout]], list[torch.Tensor]],
        num_syncs: Callable[[], int],
    ):
        self.interval = args.vllm_check_interval
        self.limit = None if args.vllm_max_logp_gap is None else args.vllm_max_logp_gap + _expected_gap(args)
        self.ranks = ranks
        self.score = score
        self.num_syncs = num_syncs
        self._next_check = 1

    def check(self, generated: Sequence[Any]) -> dict[str, float]:
        """
        Compares, if it is due, a few tokens of what was just generated with the weights of the last sync. A collective.

        Args:
            generated (`Sequence`):
                What TRL's `_generate` returned: the token ids of prompts and of completions of this rank, equally many on
                all ranks, third, which of these the model wrote (`None`: all), and, fifth, vLLM's log-probability of each
                completion token, in nats (`None` where it gave none). With images nothing is compared, since the scorer does
                not know them.

        Returns:
            `dict[str, float]`: the mean and the largest absolute gap, in nats, of the rank where the mean is largest.
            Empty: it was not due, or there was no token to compare.

        Raises:
            `StaleEngineError`: on all ranks, when the mean gap of any of them is beyond the limit, or where vLLM gave
            tokens and not one log-probability.
        """
        prompt_ids, completion_ids, tool_mask, _, engine_logps, _, images, _ = generated
        if images is not None or engine_logps is None:
            return {}
        stride = max(1, len(prompt_ids) // NUM_ROWS)
        rows = range(0, len(prompt_ids), stride)[:NUM_ROWS]
        # Of an empty completion there is a placeholder.
        sizes = {row: 0 if isinstance(completion_ids[row], EmptyCompletion) else _NUM_TOKENS for row in rows}
        return self.check_rollouts(
            [
                Rollout.from_lists(
                    prompt_ids[row],
                    completion_ids[row][:size],
                    engine_logps[row][:size],
                    tool_mask=None if tool_mask is None else tool_mask[row][:size],
                )
                for row, size in sizes.items()
            ]
        )

    def check_rollouts(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """
        As `check`, with the first few of the rollouts that this rank sampled with the weights of the last sync. A collective.

        How many there are, each rank decides for itself.
        """
        if not self.interval or self.num_syncs() < self._next_check:
            return {}
        nothing = Rollout.from_lists([0], [], [])
        rollouts = [*(rollout.truncated(_NUM_TOKENS) for rollout in rollouts[:NUM_ROWS]), *[nothing] * NUM_ROWS]
        rollouts = rollouts[:NUM_ROWS]
        is_own = torch.cat(
            [
                torch.ones(len(rollout.completion_ids), dtype=torch.bool)
                if rollout.tool_mask is None
                else rollout.tool_mask
                for rollout in rollouts
            ]
        )
        trainer = torch.cat(self.score(rollouts)).double()[is_own]
        engine = torch.cat([logps for rollout in rollouts if (logps := rollout.sampling_logps) is not None])
        engine = engine.double()[is_own]
        gathered = self.ranks.gather_rows([as_integers(engine, trainer)])
        if not any(num_tokens for num_tokens, *_ in gathered):
            return {}
        self._next_check = self.num_syncs() + self.interval
        by_rank = [Comparison(rank, *row) for rank, row in enumerate(gathered) if row[0]]
        worst = max(by_rank, key=lambda comparison: comparison.severity)
        if self.limit is not None and worst.severity > self.limit:
            raise StaleEngineError(
                worst.engine_logp, worst.trainer_logp, worst.gap, self.limit, worst.num_compared, worst.rank
            )
        if not worst.num_compared:
            return {}
        return {"vllm/logp_gap": worst.gap, "vllm/logp_gap_max": worst.largest_gap}


class Comparison:
    """
    The sums of one rank or server, read back.

    Args:
        rank (`int`):
            Its number.
        num_tokens (`int`), num_compared (`int`), num_scored (`int`), *sums (`int`):
            What [`as_integers`] made.

    Attributes:
        severity (`float`):
            The mean gap in nats; infinite where the engine gave no log-probability.
    """

    def __init__(self, rank: int, num_tokens: int, num_compared: int, num_scored: int, *sums: int):
        self.rank = rank
        self.num_compared = num_compared
        count = num_compared or math.nan
        self.engine_logp, self.trainer_logp, self.gap = (value / _PER_NAT / count for value in sums[:3])
        self.largest_gap = sums[3] / _PER_NAT if num_compared else math.nan
        # Where the trained model itself has no log-probabilities, the policy is broken and not the sync.
        nothing_known = 0.0 if num_scored == 0 else math.inf
        self.severity = self.gap if num_compared else nothing_known


def as_integers(engine: torch.Tensor, trainer: torch.Tensor) -> list[int]:
    """Returns the tokens, those compared, those the trainer scored, and three sums and a maximum over those compared."""
    is_scored = trainer.isfinite()
    is_compared = is_scored & engine.isfinite()
    engine, trainer = engine[is_compared], trainer[is_compared]
    gaps = (engine - trainer).abs()
    largest = gaps.max().item() if len(gaps) else 0.0
    sums = [engine.sum().item(), trainer.sum().item(), gaps.sum().item(), largest]
    counts = [len(is_compared), len(gaps), int(is_scored.sum())]
    return [*counts, *(round(value * _PER_NAT) for value in sums)]


def _expected_gap(args: DAPOConfig) -> float:
    """
    Returns the gap that the sampling options make when the weights are the same, in nats; infinite where unknown.

    vLLM's log-probabilities are those of the distribution that it samples from, after temperature, top-p and the like;
    the trained model's are after temperature alone. Keeping the share `top_p` of the probability adds at most
    -log(top_p) to each.
    """
    options: Any = args.generation_kwargs or {}
    is_reshaped = (
        (args.top_k or 0) > 0
        or bool(args.min_p)
        or args.repetition_penalty != 1.0
        or args.vllm_structured_outputs_regex is not None
        or any(name not in _HARMLESS_OPTIONS for name in options)
    )
    if is_reshaped or args.temperature <= 0:
        return math.inf
    return -math.log(args.top_p)
