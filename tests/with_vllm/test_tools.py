"""Tools with a real vLLM: its log-probabilities of what the model wrote, in every turn, and the seeds of the turns."""

import pytest
import torch
from tiny import training_arguments
from tiny_engine import OPTIONS, exact_logps
from tiny_tools import calculate, chat_model, chat_tokenizer, problems
from transformers import LlamaForCausalLM
from trl.trainer import grpo_trainer

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.sampling.prompt_stream import keyed_hash


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ROUNDING = 1e-4


def one_call(tokenizer, ids, prefix=None, tools=None):
    """Takes turns apart: a first turn with an even token calls the calculator, whatever it says."""
    text = tokenizer.decode(ids)
    message = {"role": "assistant", "content": text}
    is_later = "<tool_response>" in tokenizer.decode(prefix).split("</tools>")[-1]
    if not is_later and ids[0] % 2 == 0:
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


def test_each_turn_of_a_real_engine_is_seeded_and_its_log_probabilities_are_those_of_the_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_trainer, "parse_response", one_call)
    folder = tmp_path / "model"
    chat_model(hidden_size=64, intermediate_size=64).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    arguments = training_arguments(tmp_path, max_steps=3, learning_rate=1e-2, max_completion_length=120)
    trainer = Recording(
        model=str(folder),
        reward_funcs=odd_length,
        args=DAPOConfig(
            **arguments,
            use_vllm=True,
            vllm_mode="colocate",
            vllm_max_model_length=1024,
            vllm_engine_kwargs=OPTIONS,
            vllm_check_interval=1,
            max_prompts_per_round=4,
            generation_kwargs={"max_tokens": 12},
        ),
        train_dataset=problems(40),
        tools=[calculate],
    )
    trainer.train()
    assert {1, 2, 3} <= {entry["step"] for entry in trainer.state.log_history}
    gaps, num_later = [], 0
    for policy, keys, generated, seeds in trainer.rounds:
        assert len(seeds) == 2
        assert seeds[0] == [trainer.vllm_generation.request_seed(key) for key in keys]
        # A later turn begins behind the first one and the answer of the tool.
        begun = []
        for key, mask in zip(keys, generated.tool_mask, strict=True):
            if 0 in mask:
                last_tool = max(at for at, own in enumerate(mask) if not own)
                begun.append(
                    keyed_hash(f"{trainer.args.seed}/{key.position}/{key.sample}/{last_tool + 1}", num_bytes=7)
                )
        assert seeds[1] == begun
        num_later += len(begun)
        rows = zip(*generated[:3], generated.logps, strict=True)
        for prompt, completion, mask, logps in rows:
            exact = exact_logps(policy, prompt, completion)
            own = torch.tensor(mask, dtype=torch.bool)
            gaps.append((torch.tensor(logps, dtype=torch.float64) - exact)[own].abs().max().item())
    assert num_later > 10
    assert max(gaps) < ROUNDING
    assert all(entry["dapo/vllm/logp_gap"] < ROUNDING for entry in trainer.state.log_history if "loss" in entry)
