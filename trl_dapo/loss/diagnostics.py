"""
The metrics by which DAPO's authors steer a run, read from what the loss computes.

Sums and counts are kept on the device until a line is logged, and then merged over the ranks: every mean is exact over
ranks, micro-batches and optimizer steps, and nothing waits for the device in between.

Shapes: B rows of a micro-batch, T tokens of the longest completion, W ranks.
"""

import math
from collections.abc import Callable, Mapping

import torch


# Means: name, and the names of its sum and of its count.
_MEANS = {
    "entropy": ("entropy", "tokens"),
    "entropy/positive": ("entropy_positive", "tokens_positive"),
    "entropy/negative": ("entropy_negative", "tokens_negative"),
    "ratio/mean": ("ratio", "tokens"),
    "clip_high/token_prob_mean": ("prob_high", "clipped_high"),
    "clip_high/frac_of_positive": ("clipped_high", "tokens_positive"),
    "clip_low/token_prob_mean": ("prob_low", "clipped_low"),
    "clip_low/frac_of_negative": ("clipped_low", "tokens_negative"),
    "length/frac_long_given_negative": ("long_negative", "rows_negative"),
}
_SUMS = sorted({name for pair in _MEANS.values() for name in pair})
# Extremes, each kept as a maximum: a minimum as the maximum of the negative.
_MAXIMA = {
    "ratio/max": ("ratio_max", 1.0),
    "ratio/min": ("ratio_min", -1.0),
    "advantage/max": ("advantage_max", 1.0),
    "advantage/min": ("advantage_min", -1.0),
    "clip_high/token_prob_max": ("prob_high_max", 1.0),
}
_EXTREMES = [name for name, _ in _MAXIMA.values()]


class LossDiagnostics:
    """
    Collects metrics of the trained tokens between two log lines.

    Args:
        epsilon_low (`float`):
            The ratio is clipped from below at 1 - `epsilon_low`.
        epsilon_high (`float`):
            The ratio is clipped from above at 1 + `epsilon_high`.
        long_length (`int` or `None`):
            Completions with more tokens than this are long. `None`: no completion is.
        has_clipping (`bool`, *optional*, defaults to `True`):
            Whether the loss clips the ratio at all.
    """

    def __init__(self, epsilon_low: float, epsilon_high: float, long_length: int | None, has_clipping: bool = True):
        self.epsilon_low = epsilon_low
        self.epsilon_high = epsilon_high
        self.long_length = math.inf if long_length is None else long_length
        self.has_clipping = has_clipping
        self._totals: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def observe_tokens(
        self,
        logps: torch.Tensor,
        old_logps: torch.Tensor | None,
        entropies: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        is_sequence_ratio: bool = False,
    ) -> None:
        """
        Takes one micro-batch of the loss.

        Args:
            logps (`torch.Tensor`):
                Log-probabilities under the trained policy, shape `(B, T)`.
            old_logps (`torch.Tensor`, *optional*):
                Log-probabilities under the policy that sampled, shape `(B, T)`. `None`: the same policy, the ratio is 1.
            entropies (`torch.Tensor`):
                Entropy of the trained policy at each token in nats, shape `(B, T)`.
            advantages (`torch.Tensor`):
                Shape `(B,)` or `(B, T)`; only their signs are read.
            mask (`torch.Tensor`):
                1 where a token carries loss, shape `(B, T)`.
            is_sequence_ratio (`bool`, *optional*, defaults to `False`):
                Whether the ratio is that of the sequence, the geometric mean over its tokens.
        """
        live = mask.bool()
        log_ratio = torch.zeros_like(logps) if old_logps is None else (logps - old_logps).masked_fill(~live, 0.0)
        if is_sequence_ratio:
            lengths = live.sum(dim=1, keepdim=True).clamp(min=1)
            log_ratio = (log_ratio.sum(dim=1, keepdim=True) / lengths).expand_as(logps)
        ratio = log_ratio.float().exp()
        prob = (logps if old_logps is None else old_logps).float().exp()
        signs = advantages.sign() if advantages.dim() == 2 else advantages.sign().unsqueeze(1)
        positive, negative = live & (signs > 0), live & (signs < 0)
        figures = {
            "tokens": live,
            "tokens_positive": positive,
            "tokens_negative": negative,
            "entropy": entropies.masked_fill(~live, 0.0),
            "entropy_positive": entropies.masked_fill(~positive, 0.0),
            "entropy_negative": entropies.masked_fill(~negative, 0.0),
            "ratio": ratio.masked_fill(~live, 0.0),
        }
        extremes = {"ratio_max": _masked_max(ratio, live), "ratio_min": _masked_max(-ratio, live)}
        if self.has_clipping:
            high = positive & (ratio > 1 + self.epsilon_high)
            low = negative & (ratio < 1 - self.epsilon_low)
            figures |= {
                "clipped_high": high,
                "clipped_low": low,
                "prob_high": prob.masked_fill(~high, 0.0),
                "prob_low": prob.masked_fill(~low, 0.0),
            }
            extremes["prob_high_max"] = _masked_max(prob, high)
        self._add({name: value.sum() for name, value in figures.items()}, extremes)

    @torch.no_grad()
    def observe_rows(self, advantages: torch.Tensor, lengths: torch.Tensor, is_live: torch.Tensor) -> None:
        """
        Takes the rows of one generation batch.

        Args:
            advantages (`torch.Tensor`):
                Shape `(B,)`.
            lengths (`torch.Tensor`):
                Generated tokens of each row, shape `(B,)`.
            is_live (`torch.Tensor`):
                Whether each row stands for a completion, and not for a group that was not found, shape `(B,)`.
        """
        negative = is_live & (advantages < 0)
        self._add(
            {"rows_negative": negative.sum(), "long_negative": (negative & (lengths > self.long_length)).sum()},
            {"advantage_max": _masked_max(advantages, is_live), "advantage_min": _masked_max(-advantages, is_live)},
        )

    def flush(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """
        Returns the metrics since the last call, over all ranks, and starts again from zero.

        Args:
            gather (`Callable`):
                Concatenates a tensor of shape `(K,)` of every rank to `(W * K,)`. Called on all ranks or on none, as long
                as all of them observe equally often.

        Returns:
            `dict[str, float]`: by name. A mean over nothing, and an extreme of nothing, is NaN.
        """
        if not self._totals:
            return {}
        some = next(iter(self._totals.values()))
        absent = dict.fromkeys(_SUMS, 0.0) | dict.fromkeys(_EXTREMES, -math.inf)
        local = torch.stack([self._totals.get(name, some.new_tensor(value)) for name, value in absent.items()])
        self._totals = {}
        by_rank = gather(local).view(-1, len(absent)).cpu()
        sums = dict(zip(_SUMS, by_rank[:, : len(_SUMS)].sum(dim=0).tolist(), strict=True))
        maxima = dict(zip(_EXTREMES, by_rank[:, len(_SUMS) :].amax(dim=0).tolist(), strict=True))
        means = {
            name: sums[total] / sums[count] if sums[count] else math.nan for name, (total, count) in _MEANS.items()
        }
        extremes = {
            name: sign * maxima[key] if math.isfinite(maxima[key]) else math.nan
            for name, (key, sign) in _MAXIMA.items()
        }
        return means | extremes

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the sums and extremes of this rank since the last log line."""
        return dict(self._totals)

    def load_state_dict(self, state: Mapping[str, torch.Tensor], device: torch.device | str = "cpu") -> None:
        """Continues from saved sums, on the device of what will be observed."""
        self._totals = {name: value.to(device) for name, value in state.items()}

    def _add(self, sums: Mapping[str, torch.Tensor], maxima: Mapping[str, torch.Tensor]) -> None:
        # In float64: float32 stops counting tokens at 2**24.
        for name, value in sums.items():
            value = _double(value)
            self._totals[name] = value + self._totals[name] if name in self._totals else value
        for name, value in maxima.items():
            value = _double(value)
            self._totals[name] = torch.maximum(value, self._totals[name]) if name in self._totals else value


def _double(value: torch.Tensor) -> torch.Tensor:
    # Apple's GPUs have no float64.
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


def _masked_max(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(~mask, -math.inf).max()


def count_truncated(
    proximal_logps: torch.Tensor, sampling_logps: torch.Tensor, mask: torch.Tensor, max_weight: float
) -> tuple[int, int]:
    """
    Returns how many tokens have an importance weight above the highest one, and how many tokens there are.

    Args:
        proximal_logps (`torch.Tensor`), sampling_logps (`torch.Tensor`):
            Log-probability of each token under the policy that begins to train on it, and by the engine that sampled it,
            shape `(B, T)`. Their difference is the logarithm of the weight.
        mask (`torch.Tensor`):
            1 for tokens that carry loss, shape `(B, T)`.
        max_weight (`float`):
            The highest weight.

    Example:

    >>> count_truncated(torch.tensor([[0.0, -1.0, -1.0]]), torch.tensor([[-2.0, -1.0, -9.0]]), torch.tensor([[1, 1, 0]]), 3.0)
    (1, 2)
    """
    is_live = mask.bool()
    is_truncated = (proximal_logps - sampling_logps > math.log(max_weight)) & is_live
    return int(is_truncated.sum()), int(is_live.sum())
