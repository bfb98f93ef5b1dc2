"""A real vLLM whose weights or KV cache have fewer bits than the trainer's: it trains, and the canary tells the gap."""

import pytest
from tiny_engine import OPTIONS, engines_by, make_trainer, save_model

from trl_dapo import StaleEngineError


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ENGINES = {
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "bfloat16, FP8 cache": {"dtype": "bfloat16", "kv_cache_dtype": "fp8_e4m3"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, tied=True)
    return folder


@pytest.fixture(scope="module", autouse=True)
def engines():
    with engines_by(lambda backend, options: str(backend.dapo_args.vllm_engine_kwargs)) as started:
        yield started


def train(output, folder, engine, **options):
    trainer = make_trainer(output, folder, vllm_engine_kwargs=OPTIONS | ENGINES[engine], max_steps=2, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("engine", ENGINES)
def test_run_trains_with_a_gap_that_the_canary_tells(tmp_path, folder, engine):
    trainer = train(tmp_path, folder, engine)
    config = trainer.vllm_generation.llm.llm_engine.vllm_config
    assert str(config.model_config.dtype) == f"torch.{ENGINES[engine]['dtype']}"
    assert config.cache_config.cache_dtype == ENGINES[engine].get("kv_cache_dtype", "auto")
    gaps = [log["dapo/vllm/logp_gap"] for log in trainer.state.log_history if "dapo/vllm/logp_gap" in log]
    assert gaps
    # Beyond the rounding of float32, and below the limit, which is for an engine that has other weights.
    assert all(1e-5 < gap < trainer.args.vllm_max_logp_gap for gap in gaps)


def test_limit_below_what_the_format_costs_stops_the_run(tmp_path, folder):
    with pytest.raises(StaleEngineError):
        train(tmp_path, folder, "bfloat16, FP8 cache", vllm_max_logp_gap=1e-6)
