"""
A trainer of a tiny chat model with a calculator and a real vLLM, and what each of its rounds shows.

Run with a folder as an argument, it trains on one of several ranks and writes what the rounds showed.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import torch
from tiny import training_arguments
from tiny_engine import OPTIONS, exact_logps
from tiny_tools import calculate, chat_model, chat_tokenizer, problems
from transformers import LlamaForCausalLM
from trl.trainer import grpo_trainer

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.sampling.prompt_stream import keyed_hash


def save_chat_model(folder):
    """Saves the smallest chat model that vLLM computes on a CPU."""
    chat_model(hidden_size=64, intermediate_size=64).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)


def calls_by_chance(tokenizer, ids, prefix=None, tools=None):
    """Takes turns apart: one with an even first token calls the calculator, whatever it says, up to three times."""
    message = {"role": "assistant", "content": tokenizer.decode(ids)}
    num_calls = tokenizer.decode(prefix).split("</tools>")[-1].count("<tool_response>")
    if num_calls < 3 and ids[0] % 2 == 0:
        function = {"name": "calculate", "arguments": {"expression": "6*7"}}
        message["tool_calls"] = [{"type": "function", "function": function}]
    return message


class Recording(DAPOTrainer):
    """Keeps what each round sampled, by which policy, and the seeds of each of vLLM's calls."""

    def __init__(self, *args, **kwargs):
        self.rounds, self.seeds = [], []
        super().__init__(*args, **kwargs)
        generate, engine = self.seams.generate, self.vllm_generation.llm
        generate_by_engine = engine.generate

        def generate_and_record(prompts, keys=()):
            policy = LlamaForCausalLM(self.model.config)
            policy.load_state_dict(self.model.state_dict())
            first = len(self.seeds)
            self.rounds.append((policy.double().eval(), keys, generate(prompts, keys), self.seeds[first:]))
            return self.rounds[-1][2]

        def generate_by_engine_and_record(prompts, sampling_params, **options):
            self.seeds.append([params.seed for params in sampling_params])
            return generate_by_engine(prompts, sampling_params, **options)

        self.seams.generate, engine.generate = generate_and_record, generate_by_engine_and_record


def odd_length(completion_ids, **kwargs):
    return [float(len(ids) % 2) for ids in completion_ids]


def train(folder, **overrides):
    """Returns the trainer after its steps. The folder holds the model of `save_chat_model`."""
    arguments = {
        "max_steps": 3,
        "learning_rate": 1e-2,
        "max_completion_length": 120,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": 1024,
        "vllm_engine_kwargs": OPTIONS,
        "vllm_check_interval": 1,
        "max_prompts_per_round": 4,
        "generation_kwargs": {"max_tokens": 12},
    }
    trainer = Recording(
        model=str(Path(folder, "model")),
        reward_funcs=odd_length,
        args=DAPOConfig(**training_arguments(folder, **(arguments | overrides))),
        train_dataset=problems(40),
        tools=[calculate],
    )
    with mock.patch.object(grpo_trainer, "parse_response", calls_by_chance):
        trainer.train()
    return trainer


def turn_starts(mask):
    """Returns where in a completion each of its turns begins: at 0, and behind each answer of the tool."""
    return [0] + [at + 1 for at in range(len(mask) - 1) if not mask[at] and mask[at + 1]]


def what_rounds_show(trainer):
    """
    Returns for each round of this rank: the numbers of turns of its completions, the seeds of its turns beside those that
    the keys of the completions give, and the largest distance of vLLM's log-probabilities of model tokens from the policy's.
    """
    shown = []
    for policy, keys, generated, seeds in trainer.rounds:
        starts = [turn_starts(mask) for mask in generated.tool_mask]
        expected = [[trainer.vllm_generation.request_seed(key) for key in keys]]
        for turn in range(1, max(map(len, starts), default=1)):
            expected.append(
                [
                    keyed_hash(f"{trainer.args.seed}/{key.position}/{key.sample}/{begun[turn]}", num_bytes=7)
                    for key, begun in zip(keys, starts, strict=True)
                    if len(begun) > turn
                ]
            )
        gaps = [0.0]
        for prompt, completion, mask, logps in zip(*generated[:3], generated.logps, strict=True):
            exact = exact_logps(policy, prompt, completion)
            own = torch.tensor(mask, dtype=torch.bool)
            gaps.append((torch.tensor(logps, dtype=torch.float64) - exact)[own].abs().max().item())
        shown.append(
            {"num_turns": list(map(len, starts)), "seeds": seeds, "expected_seeds": expected, "gap": max(gaps)}
        )
    return shown


def main(folder: str) -> None:
    trainer = train(folder)
    result = {
        "num_processes": trainer.accelerator.num_processes,
        "rounds": what_rounds_show(trainer),
        "canary": [entry["dapo/vllm/logp_gap"] for entry in trainer.state.log_history if "loss" in entry],
    }
    Path(folder, f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
