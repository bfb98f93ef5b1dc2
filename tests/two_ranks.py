"""
Trains the tiny model on scripted completions and writes, for each rank, what it trained.

Run by `test_distributed.py`, once alone and once on two ranks. Completions are a function of the prompt, the number of
the completion in its group and how often the prompt was asked before, so that runs of any world size can be compared.
"""

import json
import sys
from pathlib import Path

import torch
from paper import StepRecorder
from tiny import SPECIAL_TOKENS, WORDS, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer


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


class ScriptedTrainer(DAPOTrainer):
    """Replaces sampling by the script; everything else is real."""

    trained = None
    script = staticmethod(script)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        first = self.accelerator.process_index * len(prompt_ids)
        return [self.script(ids, (first + row) % num_generations) for row, ids in enumerate(prompt_ids)], None

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


class ScriptedSteps(StepRecorder, ScriptedTrainer):
    """Records every optimizer step, too."""


def correct(completion_ids, log_extra, **kwargs):
    log_extra("ids_seen", [str(ids) for ids in completion_ids])
    return [float(ids[0] == 4) for ids in completion_ids]


def main(folder: str, overrides: str) -> None:
    options = json.loads(overrides)
    if options.pop("alternate", False):
        ScriptedTrainer.script = staticmethod(alternating_script)
    records_steps = options.pop("record_steps", False)
    trainer = (ScriptedSteps if records_steps else ScriptedTrainer)(
        model=tiny_model(),
        reward_funcs=correct,
        args=DAPOConfig(**training_arguments(folder, **options)),
        train_dataset=numbered_prompts(61),
        processing_class=tiny_tokenizer(),
    )
    trainer.trained = []
    trainer.train()
    result = {
        "trained": trainer.trained,
        "num_processes": trainer.accelerator.num_processes,
        "logs": trainer.state.log_history,
        "position": trainer.dynamic_sampler.stream.position,
        "parameters": [parameter.flatten().tolist() for parameter in trainer.model.parameters()],
    }
    if records_steps:
        torch.save(trainer.steps, Path(folder, f"steps{trainer.accelerator.process_index}.pt"))
    Path(folder, f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
