"""The comparison of vLLM's log-probabilities with the trainer's, on made-up ones. On a real vLLM: tests/with_vllm."""

import math

import pytest
import torch
from thread_ranks import run_ranks
from tiny import training_arguments

from trl_dapo import DAPOConfig, StaleEngineError
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.sampling.judge import EmptyCompletion
from trl_dapo.vllm_engine.canary import WeightCanary


# Eight completions; the log-probabilities of the trained model are a function of the token.
PROMPTS = [[1, 2, 3]] * 8
COMPLETIONS = [[4, 5, 6], [5], [6, 7], [7, 8, 9, 4], [8], [9, 9], [4, 4, 4], [5, 6]]
COMPARED = [0, 2, 4, 6]  # four rows, spread evenly


def trainer_logp(token):
    return -0.25 * token


def score(rollouts):
    return [torch.tensor([trainer_logp(token) for token in rollout.completion_ids.tolist()]) for rollout in rollouts]


def generated(engine_logps, completions=COMPLETIONS, tool_mask=None, images=None):
    return PROMPTS, completions, tool_mask, None, engine_logps, {}, images, []


def engine(shift):
    """The trained model's log-probabilities, each moved by `shift(token)`."""
    return [[trainer_logp(token) + shift(token) for token in ids] for ids in COMPLETIONS]


def make_canary(tmp_path, ranks=None, syncs=lambda: 1, **overrides):
    args = DAPOConfig(**training_arguments(tmp_path, use_vllm=True, vllm_mode="colocate", **overrides))
    return WeightCanary(args, ranks or AloneRank(), score, syncs)


class AloneRank:
    def gather_rows(self, rows):
        return [list(row) for row in rows]


def test_gap_is_the_mean_absolute_difference_over_the_compared_tokens(tmp_path):
    figures = make_canary(tmp_path).check(generated(engine(lambda token: 0.01 * token * (-1) ** token)))
    tokens = [token for row in COMPARED for token in COMPLETIONS[row]]
    assert figures["vllm/logp_gap"] == pytest.approx(sum(0.01 * token for token in tokens) / len(tokens), abs=1e-6)
    assert figures["vllm/logp_gap_max"] == pytest.approx(0.08, abs=1e-6)


def test_stale_engine_stops_the_run_with_both_numbers(tmp_path):
    with pytest.raises(StaleEngineError, match=r"vllm_max_logp_gap allows 0\.2500") as caught:
        make_canary(tmp_path).check(generated(engine(lambda token: -1.5 if token % 2 else 0.1)))
    tokens = [token for row in COMPARED for token in COMPLETIONS[row]]
    shifts = [-1.5 if token % 2 else 0.1 for token in tokens]
    mean = sum(map(trainer_logp, tokens)) / len(tokens)
    assert caught.value.trainer_logp == pytest.approx(mean, abs=1e-6)
    assert caught.value.engine_logp == pytest.approx(mean + sum(shifts) / len(tokens), abs=1e-6)
    assert caught.value.gap == pytest.approx(sum(map(abs, shifts)) / len(tokens), abs=1e-6)
    assert caught.value.num_tokens == len(tokens)


def test_unbiased_differences_do_not_cancel(tmp_path):
    with pytest.raises(StaleEngineError):
        make_canary(tmp_path).check(generated(engine(lambda token: 0.6 if token % 2 else -0.6)))


def test_every_rank_stops_when_the_engine_of_one_is_stale(tmp_path):
    def work(ranks):
        canary = make_canary(tmp_path, ranks)
        shift = 0.9 if ranks.rank == 1 else 0.001
        try:
            canary.check(generated(engine(lambda token: shift)))
        except StaleEngineError as error:
            return error.rank, round(error.gap, 4)
        return None

    assert run_ranks(3, work) == [(1, 0.9)] * 3


def test_it_compares_after_the_first_sync_and_every_interval_from_then_on(tmp_path):
    num_syncs = 0
    canary = make_canary(tmp_path, syncs=lambda: num_syncs, vllm_check_interval=3)
    compared = []
    for num_syncs in range(9):
        for _ in range(2):  # rounds of a batch
            if canary.check(generated(engine(lambda token: 0.0))):
                compared.append(num_syncs)
    assert compared == [1, 4, 7]
    never = make_canary(tmp_path, vllm_check_interval=0)
    assert never.check(generated(engine(lambda token: 9.0))) == {}


def test_long_completions_are_compared_in_their_first_tokens(tmp_path):
    completions = [[4] * 100] * 8
    logps = [[trainer_logp(4)] * 64 + [-50.0] * 36] * 8
    figures = make_canary(tmp_path).check(generated(logps, completions))
    assert figures == {"vllm/logp_gap": 0.0, "vllm/logp_gap_max": 0.0}


def test_tokens_of_which_the_engine_says_nothing_are_left_out(tmp_path):
    logps = engine(lambda token: 0.02)
    for row in logps:
        row[0] = None
    completions = [*COMPLETIONS[:4], EmptyCompletion([0]), *COMPLETIONS[5:]]
    figures = make_canary(tmp_path).check(generated([*logps[:4], [None], *logps[5:]], completions))
    assert figures["vllm/logp_gap"] == pytest.approx(0.02, abs=1e-6)


def test_engine_that_gives_tokens_and_not_one_number_stops_the_run(tmp_path):
    nothing = [[None] * len(ids) for ids in COMPLETIONS]
    with pytest.raises(StaleEngineError) as caught:
        make_canary(tmp_path).check(generated(nothing))
    assert math.isnan(caught.value.engine_logp)
    # Where the trained model has none either, the policy is broken and not the sync.
    canary = make_canary(tmp_path)
    canary.score = lambda rollouts: [torch.full((len(rollout.completion_ids),), torch.nan) for rollout in rollouts]
    assert canary.check(generated(engine(lambda token: 0.0))) == {}


def test_empty_completions_leave_the_comparison_due(tmp_path):
    canary = make_canary(tmp_path)
    assert canary.check(generated([[None]] * 8, [EmptyCompletion([0])] * 8)) == {}
    assert canary.check(generated(engine(lambda token: 0.0))) != {}


@pytest.mark.parametrize(
    ("overrides", "shift", "stops"),
    [
        ({"vllm_max_logp_gap": None}, 9.0, False),
        ({"vllm_max_logp_gap": 1.0}, 0.9, False),
        ({"top_p": 0.5}, 0.25 + math.log(2) - 0.01, False),  # what top-p drops goes to the tokens that it keeps
        ({"top_p": 0.5}, 0.25 + math.log(2) + 0.01, True),
        ({"temperature": 0.7}, 0.26, True),  # both sides divide by it
        ({"top_k": 5}, 9.0, False),
        ({"min_p": 0.1}, 9.0, False),
        ({"repetition_penalty": 1.1}, 9.0, False),
        ({"generation_kwargs": {"logit_bias": {"4": 1.0}}}, 9.0, False),
        ({"generation_kwargs": {"stop": ["x"]}}, 0.26, True),
    ],
)
def test_only_a_gap_that_the_sampling_options_cannot_explain_stops_the_run(tmp_path, overrides, shift, stops):
    canary = make_canary(tmp_path, **overrides)
    if stops:
        with pytest.raises(StaleEngineError):
            canary.check(generated(engine(lambda token: shift)))
    else:
        assert canary.check(generated(engine(lambda token: shift)))["vllm/logp_gap"] == pytest.approx(shift, abs=1e-6)


def test_with_images_nothing_is_compared(tmp_path):
    stale = [[-9.0] * len(ids) for ids in COMPLETIONS]
    assert make_canary(tmp_path).check(generated(stale, images=[None])) == {}


def test_with_tools_the_tokens_that_the_model_wrote_are_compared(tmp_path):
    masks = [[int((token + place) % 3 > 0) for place, token in enumerate(ids)] for ids in COMPLETIONS]
    logps = [
        [trainer_logp(token) + 0.125 if own else 0.0 for token, own in zip(ids, mask, strict=True)]
        for ids, mask in zip(COMPLETIONS, masks, strict=True)
    ]
    assert any(0 in masks[row] for row in COMPARED)
    figures = make_canary(tmp_path).check(generated(logps, tool_mask=masks))
    assert figures == {"vllm/logp_gap": pytest.approx(0.125), "vllm/logp_gap_max": pytest.approx(0.125)}
    stale = [[logp - 3.0 * own for logp, own in zip(*row, strict=True)] for row in zip(logps, masks, strict=True)]
    with pytest.raises(StaleEngineError):
        make_canary(tmp_path).check(generated(stale, tool_mask=masks))


def test_ranks_compare_whatever_few_rollouts_each_has(tmp_path):
    gaps = [0.01, 0.03, 0.02]

    def work(ranks):
        rows = [
            Rollout.from_lists([1], [4, 5], [trainer_logp(token) + gaps[ranks.rank] for token in (4, 5)])
            for _ in range(2 * ranks.rank)
        ]
        return make_canary(tmp_path, ranks).check_rollouts(rows)

    for figures in run_ranks(3, work):
        assert figures["vllm/logp_gap"] == pytest.approx(0.03, abs=1e-6)  # rank 0 had none, and rank 1 is the worst
