"""Two real processes over gloo, each with a real vLLM."""

import json

import pytest
from launched import run_two_ranks
from tiny_engine import save_model


pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.distributed]


@pytest.mark.supports("vllm", "lora")
@pytest.mark.parametrize("trains", ["model", "adapter"])
def test_each_of_two_ranks_samples_from_the_weights_that_train(tmp_path, trains):
    save_model(tmp_path / "model", tied=True)
    run_two_ranks("two_engines.py", tmp_path, tmp_path / "model", trains, 1)
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for result in results:
        assert result["num_processes"] == 2
        assert max(result["gaps"]) < 1e-4
        later = [gap for step, gap in zip(result["steps"], result["gaps_of_first_policy"], strict=True) if step]
        assert min(later) > 0.02
        assert result["num_syncs"] == 2 < len(result["steps"])
        # Of the 24 rows of the largest round, half are this engine's.
        assert result["max_num_seqs"] == 12
    # Two engines with different seeds, each with prompts of its own.
    assert results[0]["completions"] != results[1]["completions"]
    assert results[0]["steps"] == results[1]["steps"]


@pytest.mark.supports("vllm", "lora")
def test_engine_of_two_ranks_gets_the_adapter_of_both(tmp_path):
    save_model(tmp_path / "model", tied=True)
    run_two_ranks("two_engines.py", tmp_path, tmp_path / "model", "adapter", 2)
    for rank in (0, 1):
        result = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert max(result["gaps"]) < 1e-4
        later = [gap for step, gap in zip(result["steps"], result["gaps_of_first_policy"], strict=True) if step]
        assert min(later) > 0.02
        # All 24 rows of the largest round.
        assert result["max_num_seqs"] == 24
