"""
What only CUDA shows: bfloat16, vLLM's sleep mode, streaming, tensor parallel engines, peak memory. `make test-gpu`.

Not run on a GPU so far: none was available.
"""

import os
import re
import subprocess
import sys

import pytest
import torch
from checkout import ROOT
from datasets import Dataset
from test_readme import write_counting_model
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from transformers import LlamaConfig, LlamaForCausalLM

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.command_line.preflight.arithmetic import BatchPlan, ModelSize, memory_plan


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
NUM_GPUS = torch.cuda.device_count()


def train(folder, model, **overrides):
    options = {"use_cpu": False, "bf16": True, "max_steps": 2} | overrides
    trainer = DAPOTrainer(
        model=model,
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(folder, **options)),
        train_dataset=numbered_prompts(50),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return trainer


def test_bfloat16_step_moves_float32_weights_by_the_learning_rate(tmp_path):
    model = tiny_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = train(tmp_path, model, max_steps=1, learning_rate=1e-6, warmup_steps=0)
    assert trainer.model.device.type == "cuda"
    moves = torch.cat(
        [(mine.cpu() - old).flatten() for mine, old in zip(trainer.model.parameters(), before, strict=True)]
    )
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    # Adam's first step is the learning rate, up to the rounding of float32 numbers of this size.
    assert moves.abs().max().item() == pytest.approx(1e-6, rel=0.2)


def test_peak_memory_is_at_most_what_the_arithmetic_says(tmp_path):
    shape = {"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "vocab_size": 20}
    config = LlamaConfig(**shape, intermediate_size=2816, max_position_embeddings=1024, pad_token_id=0, eos_token_id=2)
    model = LlamaForCausalLM(config)
    size = ModelSize(model.num_parameters(), 12, 1024, 16, 64)
    torch.cuda.reset_peak_memory_stats()
    trainer = train(tmp_path, model, max_completion_length=256, gradient_checkpointing=False)
    values = vars(trainer.args) | {"dtype": "float32", "load_in_4bit": None, "load_in_8bit": None}
    plan = memory_plan(values, BatchPlan.of(values, 1), size, size.num_parameters, 1, 80e9, prompt_length=2)
    measured = torch.cuda.max_memory_allocated()
    assert plan.state_bytes < measured < 1.2 * plan.peak_bytes + 5e8


def check(tmp_path, options):
    """Runs `trl-dapo check` on a tiny model that vLLM samples from."""
    rows = [{"question": "4 5", "answer": f"#### {number % 3 + 1}"} for number in range(64)]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).to_json(tmp_path / "data" / "train.jsonl")
    Dataset.from_list([{"question": "5 4", "answer": "#### 1"}]).to_json(tmp_path / "data" / "test.jsonl")
    model = write_counting_model(tmp_path / "model")
    # Heads of 64, the smallest that all attention kernels of vLLM have.
    tiny_model(vocab_size=8, hidden_size=128, num_attention_heads=2).save_pretrained(model)
    given = {"model_name_or_path": model, "dataset_name": tmp_path / "data", "use_vllm": "true", "max_steps": 10}
    given |= {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.2, "vllm_max_model_length": 64}
    given |= {
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "steps_per_generation": 2,
        "max_completion_length": 1,
    }
    given |= {"soft_punish_cache": 1, "prompt_template": "plain", "max_minutes": 10} | options
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    finished = subprocess.run(
        [sys.executable, "-m", "trl_dapo", "check", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr[-4000:]
    assert re.search(r"^weight sync +ok ", finished.stdout, re.MULTILINE), finished.stdout
    return finished.stdout


@pytest.mark.parametrize(
    "options",
    [{}, {"vllm_enable_sleep_mode": "true"}, {"refill": "stream"}, {"refill": "stream", "vllm_enable_sleep_mode": "true"}],
    ids=["rounds", "rounds, sleep mode", "stream", "stream, sleep mode"],
)  # fmt: skip
def test_vllm_samples_from_the_weights_that_train(tmp_path, options):
    pytest.importorskip("vllm")
    check(tmp_path, options)


@pytest.mark.skipif(NUM_GPUS < 2, reason="needs two GPUs")
def test_tensor_parallel_engine_samples_from_the_weights_that_train(tmp_path):
    pytest.importorskip("vllm")
    printed = check(tmp_path, {"num_processes": 2, "vllm_tensor_parallel_size": 2, "per_device_train_batch_size": 8})
    assert "2 of 2 sampled and took optimizer steps" in printed
