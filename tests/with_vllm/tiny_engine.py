"""A trainer on a tiny model whose completions a real vLLM samples, and what its log-probabilities should be."""

import copy
import os
from contextlib import contextmanager

import pytest
import torch
from tiny import SPECIAL_TOKENS, WORDS, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from transformers import LlamaForCausalLM

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.trl_seams import as_list
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration


# What `make test-vllm` sets: one core, 1 GiB of cache, no compiler.
CPU_ENGINE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
os.environ.update({name: os.environ.get(name, value) for name, value in CPU_ENGINE.items()})

VOCABULARY = len(SPECIAL_TOKENS) + len(WORDS)
OPTIONS = {"enforce_eager": True, "dtype": "float32"}


def save_model(folder, tied):
    """Saves a Llama of about 50,000 parameters with heads of 32, the smallest that vLLM computes on a CPU."""
    tiny_model(seed=3, hidden_size=64, intermediate_size=64, tie_word_embeddings=tied).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_models(tmp_path_factory):
    """Saves a model with a tied head and one with a head of its own, and returns their folders by whether it is tied."""
    folders = {tied: tmp_path_factory.mktemp("tied" if tied else "untied") for tied in (True, False)}
    for tied, folder in folders.items():
        save_model(folder, tied)
    return folders


@contextmanager
def engines_by(key):
    """
    Inside it, trainers take turns with an engine for each `key`, of a trainer's backend and the options that TRL passes.

    Yields the engines by their keys.
    """
    started = {}
    build = DAPOVLLMGeneration._build_engine

    def build_once(self, **options):
        of_engine = key(self, options)
        if of_engine not in started:
            started[of_engine] = build(self, **options)
        return started[of_engine]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DAPOVLLMGeneration, "_build_engine", build_once)
        yield started


class RecordingTrainer(DAPOTrainer):
    """Keeps each round: the optimizer steps taken, a copy of the policy, and what TRL's `_generate` returned."""

    def __init__(self, *args, **kwargs):
        self.rounds = []
        self.outputs = []
        super().__init__(*args, **kwargs)
        generate = self.seams.generate

        def generate_and_record(prompts, keys=()):
            self.rounds.append([self.state.global_step, merged_copy(self.model), None])
            generated = generate(prompts, keys)
            self.rounds[-1][2] = generated._replace(completion_ids=[as_list(ids) for ids in generated.completion_ids])
            return generated

        self.seams.generate = generate_and_record

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.outputs.append(output)
        return output


def multiple_of_ten_reward(completion_ids, **kwargs):
    """1 for about one completion in ten: groups of four are mostly all wrong, so that a batch takes several rounds."""
    return [float(ids[0] % 10 == 0) for ids in completion_ids]


def make_trainer(folder, model_folder, cls=RecordingTrainer, **overrides):
    extras = {name: overrides.pop(name) for name in ("peft_config", "callbacks") if name in overrides}
    reward = overrides.pop("reward", multiple_of_ten_reward)
    arguments = {
        "max_steps": 4,
        "steps_per_generation": 2,
        "per_device_train_batch_size": 8,
        "max_prompts_per_round": 6,
        "max_generation_rounds": 20,
        "learning_rate": 3e-2,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": 64,
        "vllm_engine_kwargs": OPTIONS,
        "vllm_check_interval": 1,
    }
    return cls(
        model=str(model_folder),
        reward_funcs=reward,
        args=DAPOConfig(**training_arguments(folder, **(arguments | overrides))),
        train_dataset=numbered_prompts(50),
        **extras,
    )


def merged_copy(model):
    """Returns a copy of the policy in float64, its adapter merged by PEFT."""
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    # A new model: accelerate binds `forward` to the one under training.
    policy = LlamaForCausalLM(model.config)
    policy.load_state_dict(model.state_dict())
    return policy.double().eval()


def exact_logps(policy, prompt, completion, temperature=1.0):
    """Returns the log-probabilities of a completion, in float64, one sequence at a time and without padding."""
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    logps = (logits[len(prompt) - 1 : -1].double() / temperature).log_softmax(-1)
    return logps.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


def largest_gap(generated, policy, temperature=1.0):
    """Returns the largest absolute difference of the engine's log-probabilities from the exact ones of a policy."""
    prompts, completions, _, _, logps, *_ = generated
    gaps = [
        (torch.tensor(engine, dtype=torch.float64) - exact_logps(policy, prompt, completion, temperature)).abs().max()
        for prompt, completion, engine in zip(prompts, completions, logps, strict=True)
    ]
    return max(gap.item() for gap in gaps)
