"""Two real processes over gloo on DeepSpeed, against two on DDP. Skipped where DeepSpeed is not installed."""

import pytest
from test_distributed import assert_same_batches, run, trained_batches
from test_fsdp2 import assert_same_log, assert_same_weights


pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]

# Accelerate turns to DeepSpeed where it is told by these, and not to the CPU.
VARIABLES = {
    "ACCELERATE_USE_CPU": "false",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "DS_ACCELERATOR": "cpu",
}
# The model samples for real and ranks decode unequally far; what is carried is scored by forward passes of its own.
OPTIONS = {
    "samples": True,
    "generation_kwargs": {"sequence_bias": [[[2], 3.0]]},
    "per_device_train_batch_size": 4,
    "surplus": "carry",
    "refill_confidence": 0.99,
    "max_off_policy_steps": 9,
    "max_steps": 3,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ddp") / "run", 2, **OPTIONS)


@pytest.mark.supports("deepspeed")
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_steps_on_deepspeed_are_those_of_ddp(tmp_path, copied, zero_stage):
    results = run(tmp_path / "run", 2, is_launched=True, variables=VARIABLES, zero_stage=zero_stage, **OPTIONS)
    assert {result["distributed_type"] for result in results} == {"DEEPSPEED"}
    assert results[0]["longest"] != results[1]["longest"]
    assert_same_batches(trained_batches(copied), trained_batches(results))
    for mine, its in zip(results, copied, strict=True):
        assert_same_weights(mine, its)
        assert_same_log(mine, its)
        # Under DeepSpeed gradients are not checked, so no share of them is logged.
        assert any("dapo/frac_non_finite_steps" in entry for entry in its["logs"])
        assert not any("dapo/frac_non_finite_steps" in entry for entry in mine["logs"])
