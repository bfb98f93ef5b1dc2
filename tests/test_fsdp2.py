"""Two real processes over gloo that share one model (FSDP2), against two that have a copy each (DDP)."""

import json

import numpy as np
import pytest
from test_distributed import assert_same_batches, run, trained_batches
from transformers import LlamaForCausalLM

from trl_dapo.checkpoints.files import MANIFEST, find_fault


# Three launches of two processes each in a test, which take their time on a busy machine.
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]

# The model samples for real, and ends a completion with probability one half, so that ranks decode unequally far. What is
# carried needs log-probabilities, the rows of an optimizer step come from two micro-batches, and there are evaluations.
OPTIONS = {
    "samples": True,
    "generation_kwargs": {"sequence_bias": [[[2], 3.0]]},
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "surplus": "carry",
    "refill_confidence": 0.99,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "per_device_eval_batch_size": 4,
    "save_strategy": "steps",
    "save_steps": 1,
}
FIGURES = (
    "loss",
    "grad_norm",
    "eval_reward",
    "eval_avg@4",
    "dapo/rounds",
    "dapo/carried",
    "dapo/entropy",
    "dapo/ratio/max",
)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ddp") / "run", 2, **OPTIONS)


@pytest.fixture(scope="module", params=["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def sharded(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("fsdp") / "run"
    return folder, request.param, run(folder, 2, state_dict_type=request.param, **OPTIONS)


# Completions by a script, so that one process and two can be compared.
LORA = {
    "lora": True,
    "max_steps": 3,
    "max_generation_rounds": 30,
    "learning_rate": 1e-2,
}


def assert_same_weights(mine, its):
    assert len(mine["parameters"]) == len(its["parameters"])
    for one, other in zip(mine["parameters"], its["parameters"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def assert_same_log(mine, its):
    for one, other in zip(mine["logs"][:-1], its["logs"][:-1], strict=True):
        figures = {name: one[name] for name in FIGURES if name in one}
        assert figures
        assert figures == pytest.approx({name: other[name] for name in figures}, rel=1e-4, abs=1e-6)


@pytest.mark.supports("fsdp2")
def test_sharded_model_takes_the_steps_of_a_copied_one(copied, sharded):
    _, _, results = sharded
    assert {result["distributed_type"] for result in results} == {"FSDP"}
    assert all(result["num_sharded"] == len(result["parameters"]) for result in results)
    assert copied[0]["num_sharded"] == 0
    # Every layer is gathered in every forward pass, so a rank that is done decodes on for the other.
    assert results[0]["longest"] != results[1]["longest"]
    assert sum(entry.get("dapo/carried", 0) for entry in results[0]["logs"]) > 0
    assert_same_batches(trained_batches(copied), trained_batches(results))
    for mine, its in zip(results, copied, strict=True):
        assert_same_weights(mine, its)
        assert_same_log(mine, its)


@pytest.mark.supports("fsdp2")
def test_sharded_run_is_resumed(tmp_path, sharded):
    folder, state_dict_type, straight = sharded
    assert find_fault(folder / "checkpoint-3") is None
    if state_dict_type == "FULL_STATE_DICT":
        # Whole, and not the shards of the rank that writes.
        saved = LlamaForCausalLM.from_pretrained(folder / "checkpoint-4").parameters()
        for mine, its in zip(saved, straight[0]["parameters"], strict=True):
            np.testing.assert_allclose(mine.detach().flatten(), its, rtol=1e-6, atol=1e-7)
    else:
        files = {entry["name"] for entry in json.loads((folder / "checkpoint-3" / MANIFEST).read_text())["files"]}
        assert {"pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"} <= files
    # From inside a generation batch, and with groups that are carried into the next one.
    options = OPTIONS | {"save_strategy": "no", "resume_from": str(folder / "checkpoint-3")}
    resumed = run(tmp_path / "resumed", 2, state_dict_type=state_dict_type, **options)
    for mine, its in zip(resumed, straight, strict=True):
        assert_same_weights(mine, its)
        assert mine["position"] == its["position"]
        assert [entry["loss"] for entry in mine["logs"] if "loss" in entry] == pytest.approx(
            [entry["loss"] for entry in its["logs"] if "loss" in entry], rel=1e-4, abs=1e-6
        )


@pytest.mark.supports("lora", "ddp", "fsdp2")
def test_adapter_takes_the_steps_of_one_process_copied_and_sharded(tmp_path):
    alone = run(tmp_path / "one", 1, per_device_train_batch_size=16, **LORA)
    copied = run(tmp_path / "ddp", 2, per_device_train_batch_size=8, **LORA)
    sharded = run(tmp_path / "fsdp", 2, per_device_train_batch_size=8, state_dict_type="FULL_STATE_DICT", **LORA)
    assert_same_batches(trained_batches(alone), trained_batches(copied))
    assert_same_batches(trained_batches(alone), trained_batches(sharded))
    assert sharded[0]["num_sharded"] == len(alone[0]["parameters"])
    assert alone[0]["trained_parameters"] == copied[0]["trained_parameters"] == sharded[0]["trained_parameters"]
    for result in (*copied, *sharded):
        assert_same_weights(result, alone[0])


def test_sharded_run_skips_what_a_copied_one_skips(tmp_path):
    # Batches that are filled in part, empty ones, a step whose loss is NaN on one rank, and layers that are computed twice.
    options = {"max_generation_rounds": 1, "max_prompts_per_round": 1, "poisoned_steps": [2], "max_steps": 6}
    options |= {
        "samples": True,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": True,
        "learning_rate": 1e-3,
    }
    copied = run(tmp_path / "ddp", 2, **options)
    sharded = run(tmp_path / "fsdp", 2, state_dict_type="FULL_STATE_DICT", **options)
    for mine, its in zip(sharded, copied, strict=True):
        shares = [entry["dapo/frac_non_finite_steps"] for entry in mine["logs"] if "loss" in entry]
        assert shares == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
        num_items = [batch["num_items"] for batch in mine["trained"]]
        assert min(num_items) == 0 < max(num_items)
        assert_same_weights(mine, its)
        assert np.isfinite(mine["parameters"][0]).all()
