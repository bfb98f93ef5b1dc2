"""Which completions were cut off, told by how their generation ended."""

import math

import pytest
import torch
from test_trainer import RecordingTrainer, make_trainer
from tiny import first_token_reward

from trl_dapo.sampling.judge import GroupFilter, GroupVerdict, TruncationRule


EOS, PAD = 2, 0


@pytest.mark.parametrize(
    ("completion_ids", "is_truncated"),
    [
        ([5, 6, 7, 8], True),  # at the limit
        ([5, 6, 7, EOS], False),  # at the limit, but it ended
        ([5, 6, 7, PAD], True),  # a padding token ends nothing
        ([5, 6], False),  # something stopped it: no limit was near
        ([], False),
    ],
)
def test_limit_cuts_off_and_end_token_ends(completion_ids, is_truncated):
    rule = TruncationRule(end_token_ids=[EOS], max_completion_length=4)
    assert rule.is_truncated(3, completion_ids) is is_truncated


def test_end_of_the_context_window_cuts_off():
    rule = TruncationRule([EOS], max_completion_length=100, max_sequence_length=10)
    assert rule.is_truncated(7, [5, 6, 7])
    assert not rule.is_truncated(6, [5, 6, 7])


def test_without_any_limit_only_an_end_token_or_stop_string_ends():
    rule = TruncationRule(
        [EOS], max_completion_length=None, stop_strings=["stop"], decode=lambda ids: "st" + "op" * (7 in ids)
    )
    assert rule.is_truncated(1, [5, 6])
    assert not rule.is_truncated(1, [5, 7])
    assert not rule.is_truncated(1, [5, EOS])


def test_stop_string_at_the_limit_is_an_end():
    words = {5: "so", 6: " it", 7: " is", 8: "</answer>"}
    rule = TruncationRule([EOS], 3, stop_strings=["</answer>"], decode=lambda ids: "".join(words[i] for i in ids))
    assert not rule.is_truncated(1, [5, 7, 8])
    assert rule.is_truncated(1, [5, 6, 7])


def test_group_whose_live_completions_are_all_alike_is_not_informative_when_masked_ones_do_not_count():
    rewards, is_live = [1.0, 1.0, 0.0, 0.0], [True, True, False, False]
    assert GroupFilter().judge(rewards, is_live) is GroupVerdict.INFORMATIVE
    assert GroupFilter(counts_masked=False).judge(rewards, is_live) is GroupVerdict.TRUNCATED_OUT
    # The mean of the live ones alone decides the band: 2/3 with them, 1/2 over all.
    rewards, is_live = [1.0, 1.0, 0.0, 0.0], [True, True, True, False]
    assert GroupFilter((0.6, 0.7), counts_masked=False).judge(rewards, is_live) is GroupVerdict.INFORMATIVE
    assert GroupFilter((0.6, 0.7)).judge(rewards, is_live) is GroupVerdict.OUT_OF_RANGE


def test_masked_completions_carry_no_loss_and_no_attention_but_count_in_the_statistics(tmp_path):
    trainer = make_trainer(tmp_path, mask_truncated_completions=True, max_steps=4, soft_punish_cache=0)
    trainer.train()
    num_cut = 0
    for _, (_, rewards, completion_ids), output in trainer.batches:
        for start in range(0, len(rewards), 4):
            group = torch.tensor([reward[0] for reward in rewards[start : start + 4]], dtype=torch.float64)
            expected = (group - group.mean()) / (group.std() + 1e-4)
            for row in range(start, start + 4):
                is_cut = len(completion_ids[row]) == 8 and completion_ids[row][-1] != EOS
                assert output["completion_mask"][row].sum() == (0 if is_cut else len(completion_ids[row]))
                assert output["advantages"][row] == pytest.approx(expected[row - start].item(), rel=1e-5)
                num_cut += is_cut
    assert num_cut > 0


@pytest.mark.parametrize("dynamic_sampling", [True, False])
def test_masked_completions_leave_the_statistics_on_request(tmp_path, dynamic_sampling):
    trainer = make_trainer(
        tmp_path,
        cls=RecordingTrainer,
        mask_truncated_completions=True,
        truncated_in_statistics=False,
        dynamic_sampling=dynamic_sampling,
        max_steps=4,
        soft_punish_cache=0,
    )
    trainer.train()
    num_cut = 0
    for rounds, record, output in trainer.batches:
        _, _, completion_ids = record if dynamic_sampling else rounds[0]
        rewards = first_token_reward(completion_ids)
        for start in range(0, len(rewards), 4):
            rows = range(start, start + 4)
            is_cut = [len(completion_ids[row]) == 8 and completion_ids[row][-1] != EOS for row in rows]
            live = torch.tensor(
                [rewards[row] for row, cut in zip(rows, is_cut, strict=True) if not cut], dtype=torch.float64
            )
            if dynamic_sampling:
                assert live.max() > live.min()
            for row, cut in zip(rows, is_cut, strict=True):
                mean = live.mean().item() if len(live) else math.nan
                std = live.std().item() if len(live) > 1 else 0.0
                expected = 0.0 if cut else (rewards[row] - mean) / (std + 1e-4)
                assert output["advantages"][row].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
            num_cut += sum(is_cut)
    assert num_cut > 0


@pytest.mark.parametrize("dynamic_sampling", [True, False])
def test_empty_completion_neither_crashes_nor_trains(tmp_path, dynamic_sampling):
    trainer = make_trainer(tmp_path, dynamic_sampling=dynamic_sampling, max_steps=2, mask_truncated_completions=True)
    generate = trainer.model.generate

    def sometimes_nothing(*args, **kwargs):
        output = generate(*args, **kwargs)
        # TRL cuts a completion after its first end token; this engine gives nothing at all for every fourth prompt.
        output[::4, kwargs["input_ids"].shape[1] :] = EOS
        return output

    trainer.model.generate = sometimes_nothing
    single_turn = type(trainer).__mro__[2]._generate_single_turn

    def engine(self, *args, **kwargs):
        completion_ids, logps = single_turn(self, *args, **kwargs)
        return [[] if ids == [EOS] else ids for ids in completion_ids], logps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer).__mro__[2], "_generate_single_turn", engine)
        trainer.train()
    num_empty = 0
    for _, _, output in trainer.batches:
        is_placeholder = (output["completion_ids"][:, 0] == PAD) & (output["completion_ids"][:, 1:] == PAD).all(dim=1)
        assert output["completion_mask"][is_placeholder].sum() == 0
        assert output["num_items_in_batch"] == output["completion_mask"].sum()
        num_empty += is_placeholder.sum().item()
    assert num_empty > 0
