import math
from dataclasses import replace

import torch

from trl_dapo.ranks.rollout import Rollout, packed_size


def test_packed_rollout_comes_back_bit_for_bit():
    rollout = Rollout.from_lists([5, 6, 7], [8, 9], [-0.1, None])
    packed = rollout.pack()
    assert len(packed) == packed_size(3, 2, num_logps=1)
    back = Rollout.unpack(packed, 3, 2, has_sampling_logps=True)
    assert back.prompt_ids.tolist() == [5, 6, 7]
    assert back.completion_ids.tolist() == [8, 9]
    assert back.sampling_logps.dtype is torch.float32
    assert back.sampling_logps[0] == torch.tensor(-0.1)
    assert math.isnan(back.sampling_logps[1])


def test_rollout_without_logps_packs_to_its_tokens():
    packed = Rollout.from_lists([5, 6], [7], None).pack()
    assert packed.tolist() == [5, 6, 7]
    assert Rollout.unpack(packed, 2, 1).sampling_logps is None


def test_truncated_rollout_keeps_its_prompt():
    rollout = Rollout.from_lists([5, 6], [7, 8, 9], [-1.0, -2.0, -3.0]).truncated(1)
    assert (rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()) == ([5, 6], [7])
    assert rollout.sampling_logps.tolist() == [-1.0]


def test_old_logps_travel_beside_those_of_the_engine():
    rollout = replace(Rollout.from_lists([5], [8, 9], [-0.1, -0.2]), old_logps=torch.tensor([-0.3, -0.4]))
    back = Rollout.unpack(rollout.pack(), 1, 2, has_sampling_logps=True, has_old_logps=True)
    assert back.sampling_logps.tolist() == rollout.sampling_logps.tolist()
    assert back.old_logps.tolist() == rollout.old_logps.tolist()


def test_log_probabilities_of_the_first_tokens_travel_too():
    rollout = Rollout.from_lists([5], [7, 8, 9], [-0.1, None, -0.3]).with_old_logps(torch.tensor([-1.0, -2.0]))
    packed = rollout.pack(has_old_logps=True)
    assert len(packed) == packed_size(1, 3, num_logps=2)
    back = Rollout.unpack(packed, 1, 3, has_sampling_logps=True, has_old_logps=True)
    assert back.old_logps.tolist() == [-1.0, -2.0]
    # A rollout of the same group that the new policy sampled alone has none, and takes the same place.
    nothing = rollout.with_old_logps(None).pack(has_old_logps=True)
    assert len(nothing) == len(packed)
    assert Rollout.unpack(nothing, 1, 3, has_sampling_logps=True, has_old_logps=True).old_logps.tolist() == []


def test_each_token_keeps_the_log_probability_of_the_policy_that_sampled_it():
    rollout = Rollout.from_lists([5], [7, 8, 9], None)
    first = rollout.with_old_logps(None, torch.tensor([-1.0, -2.0, -3.0]))
    assert first.old_logps.tolist() == [-1.0, -2.0, -3.0]
    later = rollout.with_old_logps(torch.tensor([-1.0, -2.0]), torch.tensor([-10.0, -20.0, -30.0]))
    assert later.old_logps.tolist() == [-1.0, -2.0, -30.0]


def test_tokens_that_the_model_did_not_write_travel_with_their_ids():
    rollout = Rollout.from_lists([5, 6], [0, 7, 0, 9], [-0.1, 0.0, 0.0, -0.2], tool_mask=[1, 0, 0, 1])
    packed = rollout.pack()
    assert len(packed) == packed_size(prompt_length=2, completion_length=4, num_logps=1)
    arrived = Rollout.unpack(packed, 2, 4, has_sampling_logps=True)
    assert arrived.completion_ids.tolist() == [0, 7, 0, 9]
    assert arrived.tool_mask.tolist() == [True, False, False, True]
    assert (rollout.num_tool_tokens, arrived.num_tool_tokens) == (2, 2)
    assert torch.equal(arrived.sampling_logps, rollout.sampling_logps)
    assert Rollout.unpack(Rollout.from_lists([5], [0, 1], None, tool_mask=[1, 1]).pack(), 1, 2).tool_mask is None


def test_stretches_are_the_lengths_of_what_the_model_and_others_wrote_in_turn():
    def stretches(mask):
        return Rollout.from_lists([5], [7] * len(mask), None, tool_mask=mask).stretches

    assert stretches([1, 1, 0, 1]) == [2, 1, 1]
    assert stretches([0, 0, 1]) == [0, 2, 1]
    assert stretches([1, 1]) == [2]


def test_rollouts_with_turns_survive_a_checkpoint_and_a_cut():
    prompt = [{"role": "user", "content": "2 + 2 = ?"}]
    rollout = Rollout.from_lists([5], [7, 8, 9], None, tool_mask=[1, 0, 1], prompt=prompt)
    restored = Rollout.from_state_dict(rollout.state_dict({}), dict)
    assert restored.tool_mask.tolist() == [True, False, True]
    assert restored.prompt == prompt
    assert rollout.truncated(2).tool_mask.tolist() == [True, False]
