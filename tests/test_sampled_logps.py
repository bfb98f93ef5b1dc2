"""The log-probabilities of sampled tokens, out of what vLLM says of them."""

from types import SimpleNamespace

import numpy as np
import pytest

from trl_dapo.vllm_engine.sampled_logps import ask_for_little, sampled_logps


class Flat(list):
    """As vLLM's: a sequence of positions, and the log-probabilities of all of them in one list."""

    def __init__(self, positions):
        super().__init__({token: SimpleNamespace(logprob=logp) for token, logp in position} for position in positions)
        self.logprobs = [logp for position in positions for _, logp in position]


ALONE = [[(7, -0.5)], [(8, -1.5)], [(7, float("nan"))]]
# The sampled token first, then the most likely ones, as vLLM has them.
AMONG_OTHERS = [[(7, -0.5), (3, -0.25)], [(8, -1.5), (7, -2.0)], [(7, float("nan")), (9, -1.0)]]


@pytest.mark.parametrize("positions", [ALONE, AMONG_OTHERS], ids=["alone", "among others"])
@pytest.mark.parametrize("kind", [Flat, lambda positions: list(Flat(positions))], ids=["flat", "objects"])
def test_they_are_those_of_the_sampled_tokens(positions, kind):
    found = sampled_logps([7, 8, 7], kind(positions))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([-0.5, -1.5, np.nan], np.float32))


def test_token_of_which_the_engine_says_nothing_has_none():
    np.testing.assert_array_equal(sampled_logps([7, 8], None), np.array([np.nan, np.nan], np.float32))
    found = sampled_logps([7, 9], list(Flat(ALONE[:2])))
    np.testing.assert_array_equal(found, np.array([-0.5, np.nan], np.float32))


def test_text_is_made_only_where_a_stop_string_is_found_in_it():
    pytest.importorskip("vllm")
    from vllm import SamplingParams

    plain, stopped = SamplingParams(logprobs=0), SamplingParams(logprobs=0, stop=["</answer>"])
    for params in (plain, stopped):
        ask_for_little(params)
    assert (plain.detokenize, stopped.detokenize) == (False, True)
    assert plain.flat_logprobs
