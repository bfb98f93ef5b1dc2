"""A group that goes on in a later batch, in a checkpoint."""

import json

import numpy as np
import pytest
import torch

from trl_dapo.checkpoints.files import STATE_FOLDER, read_state, write_state
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.streaming.streamed_group import StreamedGroup
from trl_dapo.vllm_engine.sequence_engine import Decoded


@pytest.fixture
def group():
    group = StreamedGroup.begin(Draw(7, 3), {"prompt": "w3"}, [5, 6], policy_step=4, num_generations=3)
    group.extend(0, Decoded.of([40_000, 8], [-0.5, None]), is_finished=False)
    group.extend(0, Decoded.of([9], [-1.25]), is_finished=True)
    group.extend(2, Decoded.of([10, 11], [-2.0, -3.0]), is_finished=False)
    group.keep_logps(2, torch.tensor([-2.5, -3.5]))
    return group


def assert_same(found, expected):
    assert (found.draw, found.policy_step, found.unfinished) == (
        expected.draw,
        expected.policy_step,
        expected.unfinished,
    )
    for name, dtype in (("token_ids", np.int32), ("logps", np.float32)):
        for mine, its in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert mine.dtype == dtype
            np.testing.assert_array_equal(mine, its)
    np.testing.assert_array_equal(found.prompt_ids, expected.prompt_ids)
    assert [None if logps is None else logps.tolist() for logps in found.old_logps] == [None, None, [-2.5, -3.5]]


def test_tokens_are_what_the_engine_gave_in_turn(group):
    assert [ids.tolist() for ids in group.token_ids] == [[40_000, 8, 9], [], [10, 11]]
    np.testing.assert_array_equal(group.logps[0], np.float32([-0.5, np.nan, -1.25]))
    assert group.unfinished == {1, 2}
    assert group.num_tokens == 5
    assert [group.has_new_tokens(sample) for sample in range(3)] == [True, False, False]


def test_checkpoint_holds_its_tokens_as_tensors(group, tmp_path):
    write_state(tmp_path, "rank0", {"groups": [group.state_dict()]})
    (found,) = read_state(tmp_path, "rank0")["groups"]
    assert_same(StreamedGroup.from_state_dict(found), group)
    assert "40000" not in (tmp_path / STATE_FOLDER / "rank0.json").read_text()


def test_lists_of_earlier_releases_are_read(group):
    logps = [[-0.5, None, -1.25], [], [-2.0, -3.0]]
    state = {
        "draw": [7, 3], "prompt_ids": [5, 6], "policy_step": 4, "token_ids": [[40_000, 8, 9], [], [10, 11]],
        "logps": logps, "old_logps": [None, None, None], "unfinished": [1, 2],
    }  # fmt: skip
    found = StreamedGroup.from_state_dict(json.loads(json.dumps(state)))
    found.keep_logps(2, torch.tensor([-2.5, -3.5]))
    assert_same(found, group)


def test_copy_stays_when_the_group_goes_on(group):
    before = group.copy()
    group.extend(2, Decoded.of([12], [-4.0]), is_finished=True)
    assert [ids.tolist() for ids in before.token_ids] == [[40_000, 8, 9], [], [10, 11]]
    assert before.unfinished == {1, 2}
