"""
Word problems for a model with a calculator: products, a tokenizer with tool calls, and a warm-up. Nothing is downloaded.

The model is the tiny Llama of the quickstart. It is warmed up on the solutions of a student who knows the products of single
digits. For products of two-digit numbers the student sometimes uses the calculator, with typing errors, and otherwise guesses,
nearly always wrong. Reinforcement learning can teach the model to use the calculator each time, and without typing errors.
"""

import random
import re
from pathlib import Path

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_dapo.recipes.word_problems import ITEMS, NAMES, SPECIAL_TOKENS, WORDS, build_model, warm_up


# Share of the problems that need no calculator.
FRAC_EASY = 0.4
# How often the student uses the calculator for a hard problem, has an error in a typed number, and in a copied result.
FRAC_CALLS, FRAC_MISTYPED, FRAC_MISCOPIED = 0.3, 0.1, 0.15
CALL = ['{"name":', '"calculate",', '"arguments":', '{"expression":', '"', '"}}']
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}"
    "{{ '<call> {\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
    "{{ call['function']['arguments'] | tojson }}{{ '} </call>' }}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
# How transformers reads the template's turns back.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<assistant>",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close_pattern": r"</call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<eos>\s*", "content": "text"},
    },
}


def calculate(expression: str) -> str:
    """
    Computes a product.

    Args:
        expression: Two whole numbers with * between them.

    Returns:
        The value, or ? for anything else.
    """
    factors = re.fullmatch(r"\s*(\d+)\s*\*\s*(\d+)\s*", expression)
    # A call that makes no sense is the model's mistake, and no failure of the tool.
    return str(int(factors[1]) * int(factors[2])) if factors else "?"


def make_problems(num_problems, seed):
    """Returns a `Dataset` of problems: `prompt` (a conversation) and `solution` (the integer, as a string)."""
    rng = random.Random(seed)
    rows = [_draw(rng) for _ in range(num_problems)]
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": text}], "solution": str(a * b)} for text, a, b in rows]
    )


def _draw(rng):
    low, high = (2, 9) if rng.random() < FRAC_EASY else (11, 99)
    a, b = rng.randint(low, high), rng.randint(low, high)
    return f"{rng.choice(NAMES)} has {a} boxes of {b} {rng.choice(ITEMS)} .", a, b


def build_tokenizer():
    r"""Returns a tokenizer of whole words, single digits and the pieces of a call."""
    symbols = [*"0123456789*.?", "\\boxed{", "}", *CALL]
    special = [*SPECIAL_TOKENS, "<tool>", "<call>", "</call>"]
    vocabulary = {token: number for number, token in enumerate([*special, *WORDS, *symbols, *NAMES, *ITEMS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    pieces = Regex("|".join([*map(re.escape, [*special[3:], *CALL[:4], '"}}', "\\boxed{"]), "[A-Za-z]+", "[^A-Za-z]"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(pieces, behavior="isolated")]
    )
    joined = decoders.Replace(Regex(r"(?<=[\d{]) (?=[\d}])"), "")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex("$"), " "), decoders.Fuse(), joined, decoders.Replace(Regex(" $"), "")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>", "<tool>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.response_template = RESPONSE_TEMPLATE
    return fast


def worked_examples(tokenizer, num_examples, rng):
    """Returns the token ids of conversations, each up to a turn of the student, and the position at which this turn begins."""
    examples = []
    while len(examples) < num_examples:
        text, a, b = _draw(rng)
        turns = [{"role": "user", "content": text}]
        if b < 10:
            answer = str(a * b)
        elif rng.random() < FRAC_CALLS:
            expression = " * ".join(_slip(number, rng, FRAC_MISTYPED) for number in (a, b))
            call = {"name": "calculate", "arguments": {"expression": expression}}
            turns.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]})
            examples.append(_with_last_turn(tokenizer, turns))
            result = calculate(expression)
            turns.append({"role": "tool", "name": "calculate", "content": result})
            answer = _slip(result, rng, FRAC_MISCOPIED)
        else:
            answer = str(max(100, a * b + rng.randint(-60, 60)))
        turns.append({"role": "assistant", "content": f"\\boxed{{{answer}}}"})
        examples.append(_with_last_turn(tokenizer, turns))
    return examples[:num_examples]


def _slip(number, rng, frac):
    """Returns a number as a text, with another digit in one place in this share of the cases."""
    digits = list(str(number))
    if rng.random() < frac:
        digits[rng.randrange(len(digits))] = rng.choice("123456789")
    return "".join(digits)


def _with_last_turn(tokenizer, turns):
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
    return tokenizer.apply_chat_template(turns, return_dict=False), len(prompt)


def prepare_tool_model(folder, seed, num_steps=450):
    """Builds and warms up the model, and saves it with its tokenizer."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    warm_up(model, tokenizer, seed, worked_examples, num_steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"Built a Llama of {model.num_parameters():,} parameters and warmed it up: {Path(folder)}")
