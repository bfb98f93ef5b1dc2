"""Whether a real vLLM samples from the weights that train, and whether the trainer notices when it does not."""

import math

import pytest
import torch
from peft import LoraConfig
from tiny import numbered_prompts
from tiny_engine import (
    OPTIONS,
    VOCABULARY,
    engines_by,
    exact_logps,
    largest_gap,
    make_trainer,
    multiple_of_ten_reward,
    save_models,
)
from transformers import LlamaConfig, LlamaForSequenceClassification

from trl_dapo import StaleEngineError
from trl_dapo.trl_seams import model_runner_of


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

# float32 on both sides, exact arithmetic in the middle.
ROUNDING = 1e-4

# Layers whose adapter is merged into a part of a packed weight (q, v), into one of its own, and into a padded one (TRL refuses the head).
LORA_TARGETS = {
    "tied, LoRA": ["q_proj", "v_proj", "down_proj"],
    "untied, LoRA": ["k_proj", "up_proj", "embed_tokens"],
}


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory):
    return save_models(tmp_path_factory)


@pytest.fixture(scope="module", autouse=True)
def engines():
    with engines_by(lambda backend, options: options["model"]) as started:
        yield started


@pytest.fixture(scope="module", params=["tied", "untied", *LORA_TARGETS])
def trained(request, model_folders, tmp_path_factory):
    """A trainer after two batches of two optimizer steps each; at another temperature where the head is untied."""
    is_tied = request.param.startswith("tied")
    overrides = {"temperature": 1.0 if is_tied else 0.7}
    if request.param in LORA_TARGETS:
        targets = LORA_TARGETS[request.param]
        overrides["peft_config"] = LoraConfig(r=4, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path_factory.mktemp("out"), model_folders[is_tied], **overrides)
    # An adapter begins as nothing, and learns slowly.
    torch.manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    from vllm.config import get_current_vllm_config_or_none

    reloads, configurations = [], []
    runner = model_runner_of(trainer.vllm_generation.llm)
    reload, head = runner.reload_weights, runner.get_model().lm_head.quant_method
    pack = head.process_weights_after_loading

    def reload_and_note(**kwargs):
        reloads.append(trainer.state.global_step)
        reload(**kwargs)

    def pack_and_note(layer):
        configurations.append(get_current_vllm_config_or_none())
        pack(layer)

    runner.reload_weights, head.process_weights_after_loading = reload_and_note, pack_and_note
    trainer.train()
    runner.reload_weights, head.process_weights_after_loading = reload, pack
    trainer.reloads, trainer.configurations = reloads, configurations
    return trainer


@pytest.mark.supports("vllm", "lora")
def test_engine_gives_the_log_probabilities_of_the_policy_before_and_after_optimizer_steps(trained):
    assert {step for step, _, _ in trained.rounds} == {0, 2}
    first_policy = trained.rounds[0][1]
    for step, policy, generated in trained.rounds:
        assert largest_gap(generated, policy, trained.temperature) < ROUNDING
        if step:  # and would not, had it kept the weights of the first batch
            assert largest_gap(generated, first_policy, trained.temperature) > 0.02


def test_weights_are_synced_once_a_batch_however_many_rounds_it_takes(trained):
    assert len(trained.rounds) > 2
    assert trained.reloads == [0, 2]
    assert trained.vllm_generation.num_syncs == 2


def test_layers_are_packed_under_the_configuration_of_the_engine(trained):
    assert len(trained.configurations) >= 2
    assert all(config is trained.vllm_generation.llm.llm_engine.vllm_config for config in trained.configurations)


def test_gap_that_is_logged_is_rounding(trained):
    logged = [entry["dapo/vllm/logp_gap"] for entry in trained.state.log_history if "dapo/vllm/logp_gap" in entry]
    assert len(logged) == 2
    assert all(gap < ROUNDING for gap in logged)


def test_model_that_knows_nothing_shows_up_in_generation(trained):
    # No hidden state leaves the last norm, so that all logits are 0.
    (norm,) = (weight for name, weight in trained.model.named_parameters() if name.endswith("model.norm.weight"))
    kept = norm.detach().clone()
    with torch.no_grad():
        norm.zero_()
    trained.vllm_generation.sync_weights()
    _, _, logps, _ = trained.vllm_generation.generate([[3, 4, 5]] * 8, images=None, num_generations=4)
    with torch.no_grad():
        norm.copy_(kept)
    flat = [value for row in logps for (value,) in row]
    assert flat == pytest.approx([-math.log(VOCABULARY)] * len(flat), abs=1e-6)


def test_engine_has_the_options_asked_for_and_slots_for_the_largest_round(engines, model_folders, trained):
    engine = trained.vllm_generation.llm.llm_engine.vllm_config
    assert engine.model_config.enforce_eager is OPTIONS["enforce_eager"]
    assert engine.model_config.dtype is torch.float32
    # 8 rows x 2 steps in a batch, but 6 prompts x 4 completions in the largest round
    assert engine.scheduler_config.max_num_seqs == 24


class SyncedOnce:
    """Stands in for `sync_weights`: the first is real, the others are only counted."""

    def __init__(self, engine):
        self.engine = engine
        self.sync = engine.sync_weights

    def __call__(self):
        if self.engine.num_syncs:
            self.engine.num_syncs += 1
        else:
            self.sync()


def test_run_stops_when_the_engine_keeps_the_weights_of_the_first_batch(model_folders, tmp_path):
    trainer = make_trainer(tmp_path, model_folders[True], learning_rate=0.1, vllm_max_logp_gap=0.05)
    trainer.vllm_generation.sync_weights = SyncedOnce(trainer.vllm_generation)
    compared = []
    check = trainer.canary.check

    def record_and_check(generated):
        stride = len(generated[0]) // 4
        compared.append([generated[column][::stride][:4] for column in (0, 1, 4)])
        return check(generated)

    trainer.canary.check = record_and_check
    with pytest.raises(StaleEngineError) as caught:
        trainer.train()
    assert trainer.state.global_step == 2
    error, (stale_policy, policy) = caught.value, [trainer.rounds[number][1] for number in (0, -1)]
    assert error.gap > 0.05
    # Four rows of the first round of the second batch, spread evenly.
    prompts, completions, _ = compared[-1]
    exact = torch.cat([exact_logps(policy, *pair) for pair in zip(prompts, completions, strict=True)])
    stale = torch.cat([exact_logps(stale_policy, *pair) for pair in zip(prompts, completions, strict=True)])
    assert error.engine_logp == pytest.approx(stale.mean().item(), abs=ROUNDING)
    assert error.trainer_logp == pytest.approx(exact.mean().item(), abs=ROUNDING)
    assert error.gap == pytest.approx((stale - exact).abs().mean().item(), abs=ROUNDING)
    assert error.num_tokens == len(exact)


def test_importance_ratio_of_a_stale_engine_is_the_one_computed_by_hand(model_folders, tmp_path):
    options = {"vllm_max_logp_gap": None, "vllm_importance_sampling_mode": "token_truncate"}
    trainer = make_trainer(tmp_path, model_folders[True], **options)
    trainer.vllm_generation.sync_weights = SyncedOnce(trainer.vllm_generation)
    trainer.train()
    stale_policy, policy = (trainer.rounds[number][1] for number in (0, -1))
    output = trainer.outputs[-1]
    num_rows, largest = 0, 0.0
    for row, mask in enumerate(output["completion_mask"].bool()):
        if not mask.any():
            continue
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        completion = output["completion_ids"][row][mask].tolist()
        log_ratio = exact_logps(policy, prompt, completion) - exact_logps(stale_policy, prompt, completion)
        expected = log_ratio.exp().clamp(max=3.0)
        ratio = output["importance_sampling_ratio"][row][mask].double()
        torch.testing.assert_close(ratio, expected, atol=0, rtol=10 * ROUNDING)
        num_rows, largest = num_rows + 1, max(largest, log_ratio.abs().max().item())
    assert num_rows >= 8
    assert largest > 0.1
    # And the gap was logged all the same.
    assert any(entry.get("dapo/vllm/logp_gap", 0) > 0.01 for entry in trainer.state.log_history)


def test_sleeping_engine_wakes_and_sleeps_once_a_batch(model_folders, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, model_folders[True])
    engine = trainer.vllm_generation
    # vLLM refuses sleep mode on a CPU when it starts; asked to sleep all the same, it does nothing.
    engine.enable_sleep_mode = engine._llm_weights_sleeping = True
    calls = []
    monkeypatch.setattr(engine.llm, "sleep", lambda level: calls.append(f"sleep {level}"))
    monkeypatch.setattr(engine.llm, "wake_up", lambda tags: calls.append(f"wake {tags[0]}"))
    monkeypatch.setattr("trl.generation.vllm_generation.empty_cache", lambda: None)
    sync = engine.sync_weights
    monkeypatch.setattr(engine, "sync_weights", lambda: (calls.append("sync"), sync()))
    trainer.train()
    assert len(trainer.rounds) > 2
    assert calls == ["sync", "wake weights", "wake kv_cache", "sleep 2"] * 2
    assert engine.enable_sleep_mode


def test_engine_sleeps_while_reward_models_score(model_folders, tmp_path, monkeypatch):
    judge = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            pad_token_id=0, num_labels=1, name_or_path=str(model_folders[True]),
        )
    )  # fmt: skip
    options = {"soft_punish_cache": 0, "filter_reward": "multiple_of_ten_reward"}
    trainer = make_trainer(tmp_path, model_folders[True], reward=[multiple_of_ten_reward, judge], **options)
    engine = trainer.vllm_generation
    engine.enable_sleep_mode = engine._llm_weights_sleeping = True
    calls = []
    judge.register_forward_pre_hook(lambda *_: calls.append("score"))
    monkeypatch.setattr(engine.llm, "sleep", lambda level: calls.append(f"sleep {level}"))
    monkeypatch.setattr(engine.llm, "wake_up", lambda tags: calls.append(f"wake {tags[0]}"))
    monkeypatch.setattr("trl.generation.vllm_generation.empty_cache", lambda: None)
    trainer.train()
    assert calls.count("score") > 2
    assert calls == ["wake weights", "wake kv_cache", "sleep 2", "score"] * calls.count("score")


def test_sleeping_engine_wakes_and_sleeps_once_an_evaluation(model_folders, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, model_folders[True], per_device_eval_batch_size=8)
    engine = trainer.vllm_generation
    engine.enable_sleep_mode = engine._llm_weights_sleeping = True
    calls, generate, sync = [], engine.llm.generate, engine.sync_weights

    def generate_and_note(*args, **kwargs):
        calls.append("generate")
        return generate(*args, **kwargs)

    monkeypatch.setattr(engine.llm, "generate", generate_and_note)
    monkeypatch.setattr(engine.llm, "sleep", lambda level: calls.append(f"sleep {level}"))
    monkeypatch.setattr(engine.llm, "wake_up", lambda tags: calls.append(f"wake {tags[0]}"))
    monkeypatch.setattr(engine, "sync_weights", lambda: (calls.append("sync"), sync()))
    monkeypatch.setattr("trl.generation.vllm_generation.empty_cache", lambda: None)
    for _ in range(2):
        calls.clear()
        # Two prompts of four completions are a batch.
        trainer.evaluate(numbered_prompts(6))
        assert calls == ["sync", "wake weights", "wake kv_cache", *["generate"] * 3, "sleep 2"]


def test_run_ends_when_a_request_of_somebody_else_keeps_the_cache_of_earlier_weights(model_folders, tmp_path):
    trainer = make_trainer(tmp_path, model_folders[True])
    engine = trainer.vllm_generation.llm.llm_engine
    # A whole block of the cache, and more tokens to come.
    from vllm import SamplingParams, TokensPrompt

    engine.add_request("mine", TokensPrompt(prompt_token_ids=[3] * 40), SamplingParams(max_tokens=20, ignore_eos=True))
    engine.step()
    try:
        with pytest.raises(RuntimeError, match=r"did not drop its prefix cache after a weight sync.*or abort them"):
            trainer.train()
    finally:
        engine.abort_request(["mine"])
        while engine.has_unfinished_requests():
            engine.step()
    trainer.vllm_generation.sync_weights()
