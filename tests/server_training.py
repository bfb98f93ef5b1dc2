"""Trainers on a tiny model whose completions come from a scripted server that has the weights of the trainer."""

import functools
import json
from pathlib import Path

from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer
from torch.distributed.tensor import DTensor
from two_ranks import plain_arguments, sharded_arguments

from trl_dapo import DAPOTrainer


class CollectingTrainer(DAPOTrainer):
    """Keeps what each batch trained: position, tokens and log-probabilities of each row."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = []
        collect = self.dynamic_sampler.collect

        def collect_and_keep(*args):
            batch = collect(*args)
            rows = [(row.prompt_ids.tolist(), row.completion_ids.tolist()) for row in batch.rollouts]
            self.batches.append([[group.draw.position for group in batch.ledger.accepted], rows])
            return batch

        self.dynamic_sampler.collect = collect_and_keep


def make_trainer(
    folder,
    model_folder,
    addresses,
    cls=CollectingTrainer,
    reward=first_token_reward,
    make_args=plain_arguments,
    peft_config=None,
    dataset=None,
    **overrides,
):
    arguments = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "steps_per_generation": 1,
        "max_completion_length": 5,
        "soft_punish_cache": 2,
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": ",".join(addresses),
        "vllm_server_timeout": 20.0,
        "refill": "stream",
        "vllm_check_interval": 1,
        "vllm_importance_sampling_correction": False,
    }
    return cls(
        model=str(model_folder),
        reward_funcs=reward,
        args=make_args(folder, **(arguments | overrides)),
        peft_config=peft_config,
        train_dataset=dataset or numbered_prompts(50),
        processing_class=tiny_tokenizer(),
    )


def save_model(folder):
    tiny_model(seed=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def main(folder: str, model_folder: str, addresses: str, overrides: str) -> None:
    """Trains on a rank of several, and writes what it trained, or what ended it."""
    options = json.loads(overrides)
    if options.pop("fsdp", False):
        options["make_args"] = functools.partial(sharded_arguments, state_dict_type="FULL_STATE_DICT")
    trainer = make_trainer(folder, model_folder, addresses.split(","), **options)
    result = {}
    try:
        trainer.train()
    except Exception as error:
        result["error"] = [type(error).__name__, str(error), getattr(error, "__notes__", [])]
    result["batches"] = trainer.batches
    result["num_sharded"] = sum(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    Path(folder, f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
