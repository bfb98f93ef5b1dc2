"""NaN on one of two ranks: both skip the step, and both stop."""

import json
from pathlib import Path

import pytest
from poisoned_training import poisoned_training
from processes import outcome, run, said

from trl_dapo.checkpoints.files import read_state


pytestmark = pytest.mark.distributed

OPTIONS = {"per_device_train_batch_size": 4, "steps_per_generation": 2}
# Ranks that see it: the average over ranks spreads a NaN in the loss.
SEEN_BY = {"loss": [0, 1], "gradients": [1]}


def weights(folder, rank):
    """The hash of the weights before each optimizer step."""
    return [json.loads(line)["sha256"] for line in Path(folder, f"weights{rank}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("where", ["loss", "gradients"])
def test_both_ranks_skip_a_step_that_is_nan_on_one(tmp_path, where):
    options = OPTIONS | {"where": where, "steps": [1], "max_steps": 4}
    assert run(tmp_path, options, num_ranks=2, task=poisoned_training) == [0, 0], said(tmp_path, 1)
    before = weights(tmp_path, 0)
    assert before == weights(tmp_path, 1)
    assert before[1] == before[2]
    assert len(set(before)) == 3
    assert outcome(tmp_path, 0)["weights"] == outcome(tmp_path, 1)["weights"] not in before
    shares = [entry["dapo/frac_non_finite_steps"] for entry in outcome(tmp_path)["log"]]
    assert shares == ["0.0", "1.0", "0.0", "0.0"]
    assert f"Optimizer step 2 has gradients that are NaN or infinite, on ranks {SEEN_BY[where]}" in said(
        tmp_path, whole=True
    )
    for rank in range(2):
        # What each was to train: half of the 2 groups of 4.
        (part,) = read_state(tmp_path / "_non_finite" / "step-2", f"rank{rank}")["micro_batches"]
        assert len(part["completion_ids"]) == 4


@pytest.mark.parametrize("where", ["loss", "gradients"])
def test_both_ranks_stop_at_the_same_step_with_finite_weights(tmp_path, where):
    options = OPTIONS | {"where": where, "steps": [1, 3, 4, 5, 6, 7], "max_steps": 8, "max_non_finite_steps": 3}
    assert run(tmp_path, options, num_ranks=2, task=poisoned_training) == [1, 1]
    for rank in range(2):
        # The first one was forgiven; 4, 5 and 6 are three in a row.
        message = said(tmp_path, rank, whole=True)
        assert "NonFiniteGradientError: Optimizer step 6 has gradients" in message, message[-3000:]
        assert f"on ranks {SEEN_BY[where]}" in message
    before = weights(tmp_path, 0)
    assert before == weights(tmp_path, 1)
    # Six steps were begun, and those at 0 and 2 taken.
    assert len(before) == 6
    assert before[1] == before[2]
    assert before[3] == before[4] == before[5]
    assert len(set(before)) == 3
