"""What a trainer needs of a request to vLLM: its tokens, and the log-probability of each. And nothing else."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def ask_for_little(params: Any) -> None:
    """
    Has vLLM make no more of a request than its tokens and their log-probabilities, and only once it is finished.

    By default it keeps several objects a token until the request is read, and decodes each token twice, as text of the
    completion and as text of its log-probability. That is most of the memory and of the CPU time of a long completion.

    Args:
        params (`vllm.SamplingParams`):
            The sampling parameters of the request, which are changed.
    """
    from vllm.sampling_params import RequestOutputKind

    params.output_kind = RequestOutputKind.FINAL_ONLY
    params.flat_logprobs = True
    # A stop string is found in the text.
    params.detokenize = bool(params.stop)


def sampled_logps(token_ids: Sequence[int], logprobs: Any) -> np.ndarray:
    """
    Returns the log-probabilities of sampled tokens.

    Args:
        token_ids (`Sequence[int]`):
            The C tokens.
        logprobs (`vllm.logprobs.FlatLogprobs` or `list[dict[int, vllm.logprobs.Logprob]]` or `None`):
            vLLM's, of the sampled token and perhaps of others; see also `hold_in_arrays`. `None`: it gave none.

    Returns:
        `np.ndarray`: shape `(C,)`, float32, in nats; NaN where vLLM gave none.
    """
    if logprobs is None:
        return np.full(len(token_ids), np.nan, np.float32)
    flat = getattr(logprobs, "values", None) or getattr(logprobs, "logprobs", None)
    if flat is not None and len(flat) == len(logprobs) == len(token_ids):
        return np.array(flat, np.float32)
    return np.asarray(
        [
            by_token[token].logprob if token in by_token else np.nan
            for token, by_token in zip(token_ids, logprobs, strict=True)
        ],
        np.float32,
    )


def unknown_as_none(logps: np.ndarray) -> list[float | None]:
    """
    Returns log-probabilities as TRL has them.

    >>> unknown_as_none(np.array([-1.0, np.nan], np.float32))
    [-1.0, None]
    """
    return [None if math.isnan(logp) else logp for logp in logps.tolist()]
