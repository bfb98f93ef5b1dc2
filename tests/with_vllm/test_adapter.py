"""An engine that gets the adapter alone: against the merged weights, the policy in float64, and an adapter that is stale."""

import pytest
import torch
from peft import LoraConfig
from test_streaming import CollectingTrainer
from tiny_engine import (
    OPTIONS,
    engines_by,
    exact_logps,
    largest_gap,
    make_trainer,
    merged_copy,
    save_models,
)

from trl_dapo import StaleEngineError
from trl_dapo.trl_seams import ignored_of_adapter, is_loading_under_adapters, model_runner_of
from trl_dapo.vllm_engine.adapter import ENGINE_RANKS


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

# float32 on both sides, exact arithmetic in the middle.
ROUNDING = 1e-4

# Parts of packed layers, one of its own and the embedding; a scaling of its own for each rank and for some layers.
PLAIN = {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj", "down_proj"]}
UNEVEN = {
    "r": 4, "lora_alpha": 16, "target_modules": ["k_proj", "v_proj", "up_proj", "o_proj", "embed_tokens"],
    "use_rslora": True, "rank_pattern": {"v_proj": 2, "up_proj": 7}, "alpha_pattern": {"o_proj": 3},
}  # fmt: skip
# The base weights are no longer those of the checkpoint: PEFT takes the adapter's part out of them.
CHANGED_BASE = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": "pissa"}
ADAPTERS = {"plain": (True, PLAIN), "uneven": (False, UNEVEN), "changed base": (False, CHANGED_BASE)}

# The importance ratio holds the engine's rounding. Without it the two ways train the same policy, as long as they sample the same.
SAME_LOSS = {"vllm_importance_sampling_correction": False, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory):
    return save_models(tmp_path_factory)


@pytest.fixture(scope="module", autouse=True)
def engines():
    def key(backend, options):
        return options["model"], backend.dapo_args.vllm_adapter_sync, repr(backend.dapo_args.vllm_engine_kwargs)

    with engines_by(key) as started:
        yield started


def make_lora_trainer(folder, model_folder, adapter, sync="adapter", **overrides):
    config = LoraConfig(task_type="CAUSAL_LM", **adapter)
    trainer = make_trainer(folder, model_folder, peft_config=config, vllm_adapter_sync=sync, **overrides)
    # An adapter begins as nothing, and learns slowly.
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name and adapter is not CHANGED_BASE:
            parameter.data.normal_(std=0.1, generator=generator)
    named = trainer.model.named_parameters()
    trainer.base_before = {name: value.detach().clone() for name, value in named if "lora_" not in name}
    trainer.sync_sizes = []
    engine = trainer.vllm_generation
    sync_weights = engine.sync_weights

    def sync_and_note():
        sync_weights()
        trainer.sync_sizes.append(engine.last_sync_bytes)

    engine.sync_weights = sync_and_note
    return trainer


def count_parameters(model, of_adapter):
    return sum(p.numel() for name, p in model.named_parameters() if ("lora_" in name) == of_adapter)


@pytest.fixture(scope="module", params=ADAPTERS)
def trained(request, model_folders, tmp_path_factory):
    """Trainers after three batches of two optimizer steps each, one for each way."""
    is_tied, adapter = ADAPTERS[request.param]
    options = SAME_LOSS | {"max_steps": 6, "temperature": 1.0 if is_tied else 0.7}
    trainers = {}
    for sync in ("merged", "adapter"):
        folder = tmp_path_factory.mktemp("out")
        trainers[sync] = make_lora_trainer(folder, model_folders[is_tied], adapter, sync, **options)
        trainers[sync].train()
    return trainers


@pytest.mark.supports("vllm", "lora")
def test_engine_gives_the_log_probabilities_of_the_policy_over_optimizer_steps(trained):
    trainer = trained["adapter"]
    assert {step for step, _, _ in trainer.rounds} == {0, 2, 4}
    first_policy = trainer.rounds[0][1]
    for step, policy, generated in trainer.rounds:
        assert largest_gap(generated, policy, trainer.temperature) < ROUNDING
        if step:  # and would not, had it kept the adapter of the first batch
            assert largest_gap(generated, first_policy, trainer.temperature) > 0.02
    logged = [entry["dapo/vllm/logp_gap"] for entry in trainer.state.log_history if "dapo/vllm/logp_gap" in entry]
    assert len(logged) == 3
    assert all(gap < ROUNDING for gap in logged)


def test_batches_and_log_probabilities_are_those_of_merged_weights(trained):
    pairs = list(zip(trained["merged"].rounds, trained["adapter"].rounds, strict=True))
    assert len(pairs) >= 3
    for (_, _, merged), (_, _, beside) in pairs:
        assert merged[0] == beside[0]
        assert merged[1] == beside[1]
        for ours, theirs in zip(merged[4], beside[4], strict=True):
            assert ours == pytest.approx(theirs, abs=ROUNDING)


def test_base_weights_of_the_trainer_stay_as_they_were(trained):
    weights = dict(trained["adapter"].model.named_parameters())
    first = trained["adapter"].base_before
    assert first.keys() == {name for name in weights if "lora_" not in name}
    assert all(torch.equal(weights[name], value) for name, value in first.items())


def test_base_weights_come_once_and_then_the_adapter_alone(trained):
    trainer = trained["adapter"]
    adapter, base = (4 * count_parameters(trainer.model, of_adapter) for of_adapter in (True, False))
    assert trainer.sync_sizes == [base + adapter, adapter, adapter]
    assert trained["merged"].sync_sizes == [base] * 3


@pytest.mark.parametrize("surplus", ["requeue", "carry"])
def test_streamed_completions_have_the_log_probabilities_of_the_policy(model_folders, tmp_path, surplus):
    collected = {}
    for sync in ("merged", "adapter"):
        trainer = make_lora_trainer(
            tmp_path, model_folders[True], PLAIN, sync, cls=CollectingTrainer, refill="stream", surplus=surplus,
            max_prompts_per_round=12, max_steps=6, per_device_train_batch_size=16, steps_per_generation=1,
            **(SAME_LOSS | {"learning_rate": 2e-3}),
        )  # fmt: skip
        trainer.train()
        collected[sync] = trainer.collected
    num_mixed = 0
    for number, (policy, batch) in enumerate(collected["adapter"]):
        for rollout, is_filler in zip(batch.rollouts, batch.is_filler, strict=True):
            if is_filler:
                continue
            ids = rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()
            exact = exact_logps(policy, *ids)
            if rollout.old_logps is not None and len(rollout.old_logps):
                num_old = len(rollout.old_logps)
                exact[:num_old] = exact_logps(collected["adapter"][number - 1][0], *ids)[:num_old]
                num_mixed += 1
            assert (rollout.sampling_logps - exact).abs().max() < ROUNDING
    assert len(collected["adapter"]) == 6
    if surplus == "requeue":
        for (_, ours), (_, theirs) in zip(*collected.values(), strict=True):
            assert [r.completion_ids.tolist() for r in ours.rollouts] == [
                r.completion_ids.tolist() for r in theirs.rollouts
            ]


def test_run_stops_when_the_engine_keeps_the_adapter_of_the_first_batch(model_folders, tmp_path):
    trainer = make_lora_trainer(tmp_path, model_folders[True], PLAIN, learning_rate=0.1, vllm_max_logp_gap=0.05)
    adapter = trainer.vllm_generation.adapter
    load, loads = adapter.load, []

    def load_once(llm):
        loads.append(trainer.state.global_step)
        return load(llm) if len(loads) == 1 else 0

    adapter.load = load_once
    with pytest.raises(StaleEngineError) as caught:
        trainer.train()
    assert loads == [0, 2]
    assert trainer.state.global_step == 2
    assert caught.value.gap > 0.05


def test_run_that_resumes_samples_what_an_uninterrupted_one_does(model_folders, tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 3e-3}
    whole = make_lora_trainer(tmp_path / "whole", model_folders[True], PLAIN, **options)
    whole.train()
    resumed = make_lora_trainer(tmp_path / "resumed", model_folders[True], PLAIN, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    later = [generated for step, _, generated in whole.rounds if step >= 2]
    assert len(later) >= 2
    assert [generated[1] for generated in later] == [generated[1] for _, _, generated in resumed.rounds]
    assert max(largest_gap(generated, policy) for _, policy, generated in resumed.rounds) < ROUNDING


def test_engine_that_slept_gets_the_base_weights_again(model_folders, tmp_path, monkeypatch):
    trainer = make_lora_trainer(tmp_path, model_folders[True], PLAIN)
    engine = trainer.vllm_generation
    # vLLM refuses sleep mode on a CPU when it starts; what it does to weights there is done by hand.
    engine.enable_sleep_mode = engine._llm_weights_sleeping = True

    def lose_weights(level):
        assert level == 2
        for tensor in model_runner_of(engine.llm).get_model().state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))

    monkeypatch.setattr(engine.llm, "sleep", lose_weights)
    monkeypatch.setattr(engine.llm, "wake_up", lambda tags: None)
    monkeypatch.setattr("trl.generation.vllm_generation.empty_cache", lambda: None)
    trainer.train()
    adapter, base = (4 * count_parameters(trainer.model, of_adapter) for of_adapter in (True, False))
    assert trainer.sync_sizes == [base + adapter] * 2
    assert max(largest_gap(generated, policy) for _, policy, generated in trainer.rounds) < ROUNDING


def test_prefixes_of_an_earlier_adapter_are_not_used_even_where_the_cache_was_kept(
    model_folders, tmp_path, monkeypatch
):
    from vllm import SamplingParams

    trainer = make_lora_trainer(tmp_path, model_folders[True], PLAIN, vllm_engine_kwargs=OPTIONS | {"block_size": 32})
    engine = trainer.vllm_generation
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: True)
    # Longer than a block of the cache.
    prompt = [3 + number % 10 for number in range(40)]
    cached, gaps = [], []
    for _ in range(3):
        engine.sync_weights()
        policy = merged_copy(trainer.model)
        for _ in range(2):
            (output,) = engine.llm.generate(
                [{"prompt_token_ids": prompt}], SamplingParams(max_tokens=8, logprobs=0), use_tqdm=False,
                lora_request=engine.adapter.request,
            )  # fmt: skip
            (completion,) = output.outputs
            logps = [
                found[token].logprob for token, found in zip(completion.token_ids, completion.logprobs, strict=True)
            ]
            gaps.append(largest_gap(([prompt], [list(completion.token_ids)], None, None, [logps]), policy))
            cached.append(output.num_cached_tokens)
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:
                parameter.data.add_(0.05)
    assert cached[::2] == [0, 0, 0]
    assert cached[1::2] == [32, 32, 32]
    assert max(gaps) < ROUNDING


def test_part_of_an_adapter_that_no_layer_of_the_engine_has_is_refused(model_folders, tmp_path, monkeypatch):
    trainer = make_lora_trainer(tmp_path, model_folders[True], PLAIN)
    engine = trainer.vllm_generation
    engine.sync_weights()
    runner = model_runner_of(engine.llm)
    assert ignored_of_adapter(runner, engine.adapter.request.lora_int_id) == []
    manager = runner.lora_manager._adapter_manager
    monkeypatch.delitem(manager.modules, "model.layers.1.mlp.down_proj")
    with pytest.raises(ValueError, match=r"vLLM's model has no layer for 'model\.layers\.1\.mlp\.down_proj'"):
        engine.sync_weights()


def test_ranks_are_those_that_vllm_takes():
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == ENGINE_RANKS
    assert is_loading_under_adapters()


def test_engine_is_built_for_the_largest_rank(trained):
    trainer = trained["adapter"]
    config = trainer.vllm_generation.llm.llm_engine.vllm_config
    assert config.lora_config.max_lora_rank == trainer.vllm_generation.adapter.max_rank == 8
    assert config.lora_config.max_loras == 1
    assert config.model_config.enforce_eager is OPTIONS["enforce_eager"]
