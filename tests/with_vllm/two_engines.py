"""
Trains on two ranks, each with a vLLM engine of its own or half of one, and writes how far each engine is from its trainer.

Run by `test_two_engines.py`.
"""

import json
import sys
from pathlib import Path

from peft import LoraConfig
from tiny_engine import largest_gap, make_trainer


def main(folder: str, model_folder: str, trains: str, tensor_parallel_size: str) -> None:
    lora = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    options = {"peft_config": lora, "vllm_adapter_sync": "adapter"} if trains == "adapter" else {}
    options["vllm_tensor_parallel_size"] = int(tensor_parallel_size)
    trainer = make_trainer(folder, model_folder, per_device_train_batch_size=4, **options)
    trainer.train()
    rank = trainer.accelerator.process_index
    first_policy = trainer.rounds[0][1]
    result = {
        "num_processes": trainer.accelerator.num_processes,
        "steps": [step for step, _, _ in trainer.rounds],
        "gaps": [largest_gap(generated, policy) for _, policy, generated in trainer.rounds],
        "gaps_of_first_policy": [largest_gap(generated, first_policy) for _, _, generated in trainer.rounds],
        "num_syncs": trainer.vllm_generation.num_syncs,
        "completions": [generated[1] for _, _, generated in trainer.rounds],
        "max_num_seqs": trainer.vllm_generation.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs,
    }
    Path(folder, f"rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
