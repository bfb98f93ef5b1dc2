"""A tiny chat model whose turns are scripted, with tools and environments: no weights of anyone, no download."""

import copy
import hashlib
import json
import os
import re

from datasets import Dataset
from tiny import tiny_model, training_arguments
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from trl import GRPOTrainer
from trl.chat_template_utils import qwen3_instruct_2507_chat_template

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.refill.assembly import GenerationBatch


# TRL warns of environments and rollout functions, and its warnings are errors in tests.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
NUM_GENERATIONS = 4
# What the chat template says of the tool, but for what it returns: it has 600 bytes, and each would be a token.
OF_TOOLS = [
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures "
    'within <tools></tools> XML tags:\n<tools>\n{"type": "function", "function": {"name": "calculate", "description": "Computes.", '
    '"parameters": {"type": "object", "properties": {"expression": {"type": "string", "description": "What to compute."}}, '
    '"required": ["expression"]}, "return": {"type": "string"',
    "}}\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
]


def chat_tokenizer():
    """Returns a tokenizer of bytes, and of what the chat template says of the tool in two tokens."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        padding_side="left",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in SPECIAL[3:] + OF_TOOLS])
    fast.chat_template = qwen3_instruct_2507_chat_template
    return fast


def chat_model(**overrides):
    """Returns a model for the tokens of `chat_tokenizer`."""
    shape = {"vocab_size": len(SPECIAL) + 256 + len(OF_TOOLS), "max_position_embeddings": 2048, "bos_token_id": None}
    return tiny_model(**shape | overrides)


def problems(num_rows):
    """Returns products to compute; row `i` carries its number as `row`."""
    factors = [(3 + row % 7, 2 + row // 7) for row in range(num_rows)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"{a}*{b}"}] for a, b in factors],
            "solution": [str(a * b) for a, b in factors],
            "row": list(range(num_rows)),
        }
    )


def calculate(expression: str) -> str:
    """
    Computes.

    Args:
        expression: What to compute.

    Returns:
        The value.
    """
    return str(eval(expression, {"__builtins__": {}}))  # of scripted expressions only


def call(expression, name="calculate"):
    """Returns the text of a turn that calls a tool."""
    arguments = {"name": name, "arguments": {"expression": expression}}
    return "<tool_call>\n" + json.dumps(arguments) + "\n</tool_call><|im_end|>"


def digest(*parts):
    """Returns a number that depends on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def question(text):
    """Returns what the user asked."""
    return re.search(r"<\|im_start\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant", text, re.DOTALL).group(1)


def answers(text):
    """Returns what the tools have answered so far."""
    return re.findall(r"<tool_response>\n(.*?)\n</tool_response>", text.split("</tools>")[-1], re.DOTALL)


def asked(text):
    """Returns the expressions of the calls so far."""
    return re.findall(r'"expression": "(.*?)"', text.split("</tools>")[-1])


def reply(text, sample):
    """
    Says what the scripted model says next, given the text so far and, in the first turn, the number of the completion.

    A third of the questions is answered right always, a third never, a third by some; after none to three calls.
    """
    user = question(text)
    problem = user.split()[-1]
    if calls := asked(text):
        sample = int(calls[-1].rsplit("*", 1)[1])
    kind = digest(user) % 3
    is_right = kind == 0 or (kind == 1 and digest(user, sample, "right") % 2 == 0)
    if len(calls) < digest(user, sample) % 4:
        return call(f"{problem}+0*{sample}")
    results = answers(text)
    answer = results[-1] if results else str(eval(problem))
    return (answer if is_right else "no idea") + "<|im_end|>"


def correct(completions, solution, **kwargs):
    """1 if the last turn is the answer."""
    return [
        float(turns[-1].get("content", "").strip() == gold) for turns, gold in zip(completions, solution, strict=True)
    ]


class Counted:
    """An environment that says how often environments were reset, and has the calculator."""

    num_made = num_resets = 0

    def __init__(self):
        Counted.num_made += 1

    def reset(self, **row):
        Counted.num_resets += 1
        self.row, self.num_calls = row["row"], 0
        return f" row{self.row} {row['prompt'][-1]['content']}"

    def calculate(self, expression: str) -> str:
        """
        Computes.

        Args:
            expression: What to compute.
        """
        self.num_calls += 1
        return calculate(expression)

    def get_reward(self):
        return 0.25 * self.num_calls


def solved(completions, solution, environments, row, **kwargs):
    assert [environment.row for environment in environments] == row
    for environment, turns in zip(environments, completions, strict=True):
        assert environment.num_calls == sum(turn["role"] == "tool" for turn in turns)
    return correct(completions, solution)


def rollout_function(prompts, trainer):
    """Two turns of the model, with a note between them that it did not write."""
    tokenizer = trainer._tokenizer
    output = {name: [] for name in ("prompt_ids", "completion_ids", "env_mask", "note")}
    for number, prompt in enumerate(prompts):
        user = prompt[-1]["content"]
        sample = (trainer.accelerator.process_index * len(prompts) + number) % NUM_GENERATIONS
        kind = digest(user) % 3
        is_right = kind == 0 or (kind == 1 and digest(user, sample) % 2 == 0)
        parts = [f"think {sample}<|im_end|>", "[note 7]", ("good" if is_right else "bad") + "<|im_end|>"]
        ids = [tokenizer(part)["input_ids"] for part in parts]
        output["prompt_ids"].append(tokenizer.apply_chat_template(prompt, return_dict=True)["input_ids"])
        output["completion_ids"].append([token for tokens in ids for token in tokens])
        output["env_mask"].append([int(part != 1) for part, tokens in enumerate(ids) for _ in tokens])
        output["note"].append("good" if is_right else "bad")
    return output | {"logprobs": None, "game": "notes"}


def noted(completions, note, game, **kwargs):
    assert set(game) == {"notes"}
    return [float(text == "good") for text in note]


class Scripted:
    """
    Mixin of a trainer: its turns are scripted below what the trainer makes of TRL's generation.

    `script(text, sample)` is the turn; the sample is the number of the completion in its group, `None` in later turns.
    `engine_logp`, if it is not `None`, is what the engine says of each token.
    """

    script = staticmethod(reply)
    engine_logp = None

    def __init__(self, *args, **kwargs):
        self.turn_sizes, self._next_row = [], 0
        super().__init__(*args, **kwargs)

    def begin_rows(self, prompts):
        """Says of which rows the next first turns are."""
        self._next_row = self.accelerator.process_index * len(prompts)

    def _generate(self, prompts):
        self.begin_rows(prompts)
        return super()._generate(prompts)


def scripted_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
    """Stands in for `GRPOTrainer._generate_single_turn`."""
    self.turn_sizes.append(len(prompt_ids))
    turns = []
    for ids in prompt_ids:
        text, sample = self._tokenizer.decode(ids), None
        if not answers(text):
            sample, self._next_row = self._next_row % num_generations, self._next_row + 1
        turns.append(self._tokenizer(self.script(text, sample))["input_ids"][: self.max_completion_length])
    return turns, None if self.engine_logp is None else [[self.engine_logp] * len(ids) for ids in turns]


class ScriptedGRPO(Scripted, GRPOTrainer):
    """TRL's trainer on scripted turns."""

    def _generate_single_turn(self, *args, **kwargs):
        return scripted_turn(self, *args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        self.output = super()._generate_and_score_completions(inputs)
        return self.output


def scripted_dapo(monkeypatch):
    """From here on, our trainer of these tests runs on scripted turns: they replace those of TRL below it."""
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", scripted_turn)


class ScriptedDAPO(Scripted, DAPOTrainer):
    """Our trainer on scripted turns; it keeps what was sampled and what was trained."""

    def __init__(self, *args, **kwargs):
        # By batch: rows, rewards and what TRL generated of each round, the batch, and what TRL trains.
        self.rounds, self.batches, self.generated = [], [], []
        super().__init__(*args, **kwargs)
        compute, generate = self.reward_calls.compute, self.seams.generate

        def generate_and_record(prompts, *rest):
            self.begin_rows(prompts)
            generated = generate(prompts, *rest)
            self.generated.append(copy.deepcopy(generated))
            return generated

        def compute_and_record(inputs, prompts, completions, completion_ids, *rest):
            rewards = compute(inputs, prompts, completions, completion_ids, *rest)
            self.rounds.append((inputs, prompts, completions, rewards.tolist(), self.generated[-1:]))
            return rewards

        self.reward_calls.compute, self.seams.generate = compute_and_record, generate_and_record

    def _collect_batch(self, sampler):
        self.rounds = []
        self.collected = super()._collect_batch(sampler)
        return self.collected

    def _generate_and_score_completions(self, inputs):
        self.output = output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.batches.append((self.rounds, getattr(self, "collected", None), output))
        return output

    @property
    def is_replaying(self):
        return isinstance(self._batch, GenerationBatch)


def chat_arguments(folder, **overrides):
    """Returns arguments that train `chat_model` for a few steps."""
    return training_arguments(folder, **{"max_completion_length": 400} | overrides)


def make_chat_trainer(folder, cls=ScriptedDAPO, rewards=correct, dataset=None, config=DAPOConfig, **options):
    """Returns a trainer of the tiny chat model, with options of the trainer among those of its configuration."""
    names = ("tools", "environment_factory", "rollout_func", "eval_dataset", "callbacks")
    extras = {name: options.pop(name) for name in names if name in options}
    if config is DAPOConfig:
        options = {"soft_punish_cache": 0, "max_generation_rounds": 30} | options
    return cls(
        model=chat_model(),
        reward_funcs=rewards,
        args=config(**chat_arguments(folder, **options)),
        train_dataset=problems(40) if dataset is None else dataset,
        processing_class=chat_tokenizer(),
        **extras,
    )
