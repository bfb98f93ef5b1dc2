"""Which adapters an engine can have beside the base weights, and what it is given. Without vLLM: see tests/with_vllm."""

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import tiny_model

from trl_dapo.vllm_engine import adapter as engine_adapter
from trl_dapo.vllm_engine.adapter import EngineAdapter, check_adapter, save_adapter


@pytest.fixture(autouse=True)
def _vllm_is_there(monkeypatch):
    monkeypatch.setattr(engine_adapter, "is_loading_under_adapters", lambda: True)


def with_adapter(config=LoraConfig, **options):
    return get_peft_model(tiny_model(seed=1), config(task_type="CAUSAL_LM", **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "the LoraConfig has use_dora=True: then a layer is more than W x .* Leave use_dora at False"),
        ({"bias": "lora_only"}, "has bias='lora_only'.*Leave bias at 'none'"),
        ({"lora_bias": True}, "has lora_bias=True"),
        ({"modules_to_save": ["embed_tokens"]}, r"has modules_to_save=\['embed_tokens'\].*Leave modules_to_save at None"),
        ({"trainable_token_indices": [1, 2]}, "has trainable_token_indices="),
        ({"r": 600, "target_modules": ["q_proj"]}, "rank 600, and vLLM takes up to 512. Lower r or rank_pattern"),
        ({"config": IA3Config, "target_modules": ["k_proj"], "feedforward_modules": []}, "of the kind .*IA3.*takes LoRA"),
    ],
)  # fmt: skip
def test_adapter_that_an_engine_cannot_have_is_refused_with_the_fix(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        EngineAdapter(with_adapter(**options))
    assert str(caught.value).startswith("vllm_adapter_sync is 'adapter', but ")
    assert str(caught.value).endswith('or set vllm_adapter_sync="merged".')


def test_model_without_an_adapter_with_several_or_with_more_that_trains_is_refused():
    with pytest.raises(ValueError, match=r"the model has no adapter\. Pass a peft_config, or set"):
        check_adapter(tiny_model(seed=1))
    model = with_adapter()
    check_adapter(model)
    model.add_adapter("ref", LoraConfig(task_type="CAUSAL_LM"))
    check_adapter(model)
    model.base_model.set_adapter(["default", "ref"])
    with pytest.raises(ValueError, match=r"the adapters \['default', 'ref'\] are active at once"):
        check_adapter(model)
    model = with_adapter()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"model\.norm\.weight trains too, and only the adapter reaches the engine"):
        check_adapter(model)


def test_quantized_base_and_a_vllm_that_cannot_load_it_are_refused(monkeypatch):
    model = with_adapter()
    monkeypatch.setattr(engine_adapter, "is_loading_under_adapters", lambda: False)
    with pytest.raises(ValueError, match=r"this vLLM cannot load base weights .* Install vLLM 0\.31 or newer"):
        check_adapter(model)
    model.get_base_model().is_quantized = True
    with pytest.raises(ValueError, match=r"the base weights are quantized.* Load the model unquantized"):
        check_adapter(model)


@pytest.mark.parametrize(("rank", "engine_rank"), [(1, 1), (2, 8), (8, 8), (9, 16), (33, 64), (257, 320), (512, 512)])
def test_engine_takes_the_smallest_of_its_ranks_that_holds_the_adapter(rank, engine_rank):
    adapter = EngineAdapter(with_adapter(r=rank, target_modules=["q_proj"]))
    assert adapter.engine_options == {"enable_lora": True, "max_loras": 1, "max_lora_rank": engine_rank}


def test_file_holds_the_change_of_each_layer_with_its_own_scaling(tmp_path):
    model = with_adapter(
        r=4, lora_alpha=6, target_modules=["q_proj", "up_proj", "embed_tokens"], use_rslora=True,
        rank_pattern={"up_proj": 3}, alpha_pattern={"embed_tokens": 5},
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(tmp_path, dict(engine_adapter._matrices(model)))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == 1
    assert config["r"] == 4
    found = load_file(tmp_path / "adapter_model.safetensors")
    # PEFT's own: what it adds to each weight.
    changes = {
        name: layer.get_delta_weight("default") for name, layer in model.named_modules() if hasattr(layer, "lora_A")
    }
    assert len(changes) == 1 + 2 * model.config.num_hidden_layers
    assert len(found) == 2 * len(changes)
    for name, change in changes.items():
        if name.endswith("embed_tokens"):
            ours = (found[f"{name}.lora_embedding_B"] @ found[f"{name}.lora_embedding_A"]).T
        else:
            ours = found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"]
        torch.testing.assert_close(ours, change)
