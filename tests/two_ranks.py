"""
Trains the tiny model on scripted completions and writes, for each rank, what it trained.

Run by `test_distributed.py`, once alone and once on two ranks. Completions are a function of the prompt, the number of
the completion in its group and how often the prompt was asked before, so that runs of any world size can be compared.
With `"samples": true` the model samples for real, with `"state_dict_type"` it is sharded by FSDP2, with `"zero_stage"` by
DeepSpeed.
"""

import functools
import importlib
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from paper import StepRecorder
from peft import LoraConfig
from tiny import (
    SPECIAL_TOKENS,
    WORDS,
    first_token_reward,
    numbered_prompts,
    tiny_model,
    tiny_tokenizer,
    training_arguments,
)
from torch.distributed.tensor import DTensor

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.checkpoints import finalization


def script(prompt_ids, sample):
    """Lengths 1 to 8; about a third of the groups is mixed, the others are all wrong or all right."""
    key = sum(position * token for position, token in enumerate(prompt_ids, start=3))
    kind = key % 3
    is_correct = kind == 0 or (kind == 1 and (sample + key) % 4 == 0)
    return [4 if is_correct else 5] * (1 + (key + sample) % 7) + [2]


def alternating_script(prompt_ids, sample):
    """Groups of even rows are mixed, those of odd rows all wrong: dealt in turn, one rank finds everything."""
    is_even = int(WORDS[prompt_ids[0] - len(SPECIAL_TOKENS)][1:]) % 2 == 0
    return [4 if is_even and sample % 2 else 5] * (1 + sample % 3) + [2]


class BatchRecorder(DAPOTrainer):
    """Keeps the batches that were trained, and how far this rank decoded in each round."""

    def __init__(self, *args, poisoned_steps=(), **kwargs):
        self.trained, self.longest, self.poisoned_steps = [], [], poisoned_steps
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, *args, **kwargs):
        generated = super()._generate_single_turn(*args, **kwargs)
        self.longest.append(max(map(len, generated[0])))
        return generated

    def _compute_loss(self, model, inputs):
        # On the last rank alone.
        is_poisoned = self._step in self.poisoned_steps and self.accelerator.is_last_process
        return super()._compute_loss(model, inputs) * (float("nan") if is_poisoned else 1.0)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            masks = output["completion_mask"].bool()
            old = output.get("old_per_token_logps")
            self.trained.append(
                {
                    "prompts": [
                        ids[mask.bool()].tolist()
                        for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
                    ],
                    "rows": [ids[mask].tolist() for ids, mask in zip(output["completion_ids"], masks, strict=True)],
                    "advantages": output["advantages"].tolist(),
                    "num_items": output["num_items_in_batch"].item(),
                    "old_logps": None
                    if old is None
                    else [x[mask].tolist() for x, mask in zip(old, masks, strict=True)],
                }
            )
        return output


class ScriptedTrainer(BatchRecorder):
    """Replaces sampling by the script; everything else is real."""

    script = staticmethod(script)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        first = self.accelerator.process_index * len(prompt_ids)
        return [self.script(ids, (first + row) % num_generations) for row, ids in enumerate(prompt_ids)], None


class ScriptedSteps(StepRecorder, ScriptedTrainer):
    """Records every optimizer step, too."""


def correct(completion_ids, log_extra, **kwargs):
    log_extra("ids_seen", [str(ids) for ids in completion_ids])
    return [float(ids[0] == 4) for ids in completion_ids]


def whole(parameter):
    """Returns a parameter of which this rank may hold a shard only. A collective."""
    if hasattr(parameter, "ds_id"):  # DeepSpeed's, with ZeRO-3
        with importlib.import_module("deepspeed").zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def plain_arguments(folder, **options):
    return DAPOConfig(**training_arguments(folder, **options))


def sharded_arguments(folder, state_dict_type, **options):
    """
    Returns a configuration whose trainer shards the model over CPU processes.

    accelerate turns to FSDP on accelerators only. So its state is told that these processes have one each. The device stays
    the CPU and the backend gloo, and what follows (wrapping, gathering, clipping, saving, loading) is what runs on GPUs.
    """
    config = {"version": 2, "reshard_after_forward": True, "state_dict_type": state_dict_type}
    config |= {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"], "cpu_ram_efficient_loading": True}
    args = DAPOConfig(**training_arguments(folder, fsdp=True, fsdp_config=config, **options))
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return args


def zero_arguments(folder, zero_stage, **options):
    """
    Returns a configuration whose trainer runs on DeepSpeed, over CPU processes.

    accelerate takes DeepSpeed's processes for one where it finds no accelerator, and DeepSpeed compiles an exchange through
    shared memory for CPUs, which gloo does without.
    """
    importlib.import_module("deepspeed.comm")
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    deepspeed = {"zero_optimization": {"stage": zero_stage}, "zero_force_ds_cpu_optimizer": False}
    deepspeed |= dict.fromkeys(names, "auto")
    return DAPOConfig(**training_arguments(folder, **{"use_cpu": False, "deepspeed": deepspeed} | options))


def low_rank():
    """Returns the configuration of an adapter that moves the policy from its first step on."""
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def dict_of(columns):
    return {name: list(values) for name, values in columns.items()}


def main(folder: str, overrides: str) -> None:
    options = json.loads(overrides)
    if options.pop("beside", False):
        finalization.MIN_BYTES_BESIDE = 0
    if options.pop("state_beside", False):
        finalization.MIN_STATE_BYTES_BESIDE = 0
    if options.pop("texts_to_all", False):
        ScriptedTrainer._scoring = lambda self, method: method
    if options.pop("alternate", False):
        ScriptedTrainer.script = staticmethod(alternating_script)
    records_steps, samples = options.pop("record_steps", False), options.pop("samples", False)
    peft_config = low_rank() if options.pop("lora", False) else None
    checkpoint, poisoned_steps = options.pop("resume_from", None), options.pop("poisoned_steps", ())
    state_dict_type, zero_stage = options.pop("state_dict_type", None), options.pop("zero_stage", None)
    make_args = plain_arguments
    if state_dict_type:
        make_args = functools.partial(sharded_arguments, state_dict_type=state_dict_type)
    elif zero_stage:
        make_args = functools.partial(zero_arguments, zero_stage=zero_stage)
    trainer = (BatchRecorder if samples else ScriptedSteps if records_steps else ScriptedTrainer)(
        model=tiny_model(),
        reward_funcs=first_token_reward if samples else correct,
        args=make_args(folder, **options),
        train_dataset=numbered_prompts(61),
        eval_dataset=numbered_prompts(5) if "eval_steps" in options else None,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        poisoned_steps=poisoned_steps,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    result = {
        "trained": trainer.trained,
        "longest": trainer.longest,
        "num_processes": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "num_sharded": sum(isinstance(parameter, DTensor) for parameter in trainer.model.parameters()),
        "trained_parameters": [
            name.split("base_model.model.")[-1] for name, p in trainer.model.named_parameters() if p.requires_grad
        ],
        "logs": trainer.state.log_history,
        "texts": {name: list(trainer._logs[name]) for name in ("prompt", "completion")}
        | dict_of(trainer._logs["extra"]),
        "position": trainer.dynamic_sampler.source.stream.position,
        "parameters": [whole(parameter).flatten().tolist() for parameter in trainer.model.parameters()],
    }
    if records_steps:
        torch.save(trainer.steps, Path(folder, f"steps{trainer.accelerator.process_index}.pt"))
    Path(folder, f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
