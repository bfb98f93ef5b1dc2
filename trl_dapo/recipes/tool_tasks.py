"""
Two tasks with tools for a tiny model, on which it is warmed up: a calculator, and a guessing game. Nothing is downloaded.

The model is the tiny Llama of the quickstart.

- *Products*: the student of the warm-up knows the products of single digits. For products of two-digit numbers the student
  sometimes uses the calculator, with typing errors, and otherwise guesses, nearly always wrong.
- *Numbers*: the student finds a number from 1 to 7 by guesses. The answers are "higher", "lower" and "right". The guesses are
  random, half of them between the bounds known so far. Whoever halves the interval needs 3 at most.
"""

import random
import re
from pathlib import Path

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_dapo.recipes.word_problems import ITEMS, NAMES, SPECIAL_TOKENS, WORDS, build_model, warm_up


# Share of the products that need no calculator. How often the student uses it for the others, has an error in a typed number,
# and in a copied result.
FRAC_EASY = 0.4
FRAC_CALLS, FRAC_MISTYPED, FRAC_MISCOPIED = 0.3, 0.1, 0.15
LARGEST_NUMBER, MAX_GUESSES = 7, 3
# How often the student forgets the bounds.
FRAC_FORGOTTEN = 0.5

CALL = ['{"name":', '"calculate",', '"guess",', '"arguments":', '{"expression":', '{"number":', '"}}', "}}"]
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


def build_tokenizer():
    """Returns a tokenizer of whole words, single digits and the pieces of a call, with a chat template that has tools."""
    symbols = [*'0123456789*.?"', "\\boxed{", "}", *CALL]
    special = [*SPECIAL_TOKENS, "<tool>", "<call>", "</call>"]
    words = [*WORDS, "thinks", "a", "number", "higher", "lower", "right", *NAMES, *ITEMS]
    vocabulary = {token: number for number, token in enumerate([*special, *words, *symbols])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    pieces = "|".join([*map(re.escape, [*special, *CALL, "\\boxed{"]), "[A-Za-z]+", "[^A-Za-z]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(pieces), behavior="isolated")]
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


def prepare_tool_model(folder, seed, make_examples, num_steps=450):
    """Builds a model, warms it up on `product_turns` or `guess_turns`, and saves it with its tokenizer."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    warm_up(model, tokenizer, seed, make_examples, num_steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"Built a Llama of {model.num_parameters():,} parameters and warmed it up: {Path(folder)}")


def make_products(num_problems, seed):
    """Returns a `Dataset` of products: `prompt` (a conversation) and `solution` (the integer, as a string)."""
    rng = random.Random(seed)
    rows = [_draw_product(rng) for _ in range(num_problems)]
    return Dataset.from_list([{"prompt": _says(text), "solution": str(a * b)} for text, a, b in rows])


def product_turns(tokenizer, num_examples, rng):
    """Returns the token ids of conversations, each up to a turn of the student, and where this turn begins."""
    examples = []
    while len(examples) < num_examples:
        text, a, b = _draw_product(rng)
        turns, answer = _says(text), str(a * b)
        if b > 9 and rng.random() < FRAC_CALLS:
            typed = [_with_slip(number, rng, FRAC_MISTYPED) for number in (a, b)]
            turns.append(_calls("calculate", expression=" * ".join(typed)))
            examples.append(_last_turn(tokenizer, turns))
            result = str(int(typed[0]) * int(typed[1]))
            turns.append({"role": "tool", "name": "calculate", "content": result})
            answer = _with_slip(result, rng, FRAC_MISCOPIED)
        elif b > 9:
            answer = str(max(100, a * b + rng.randint(-60, 60)))
        turns.append({"role": "assistant", "content": f"\\boxed{{{answer}}}"})
        examples.append(_last_turn(tokenizer, turns))
    return examples[:num_examples]


def make_numbers(num_games, seed):
    """Returns a `Dataset` of games: `prompt` (a conversation) and `number`, which the model does not see."""
    rng = random.Random(seed)
    rows = [{"prompt": _game(rng), "number": rng.randint(1, LARGEST_NUMBER)} for _ in range(num_games)]
    return Dataset.from_list(rows)


def guess_turns(tokenizer, num_examples, rng):
    """Returns the token ids of games, each up to a guess of the student, and where this guess begins."""
    examples = []
    while len(examples) < num_examples:
        turns, number, low, high = _game(rng), rng.randint(1, LARGEST_NUMBER), 1, LARGEST_NUMBER
        for _ in range(MAX_GUESSES):
            guess = rng.randint(1, LARGEST_NUMBER) if rng.random() < FRAC_FORGOTTEN else rng.randint(low, high)
            turns.append(_calls("guess", number=guess))
            examples.append(_last_turn(tokenizer, turns))
            if guess == number:
                turns.append({"role": "tool", "name": "guess", "content": "right"})
                turns.append({"role": "assistant", "content": "right ."})
                examples.append(_last_turn(tokenizer, turns))
                break
            low, high = (max(low, guess + 1), high) if guess < number else (low, min(high, guess - 1))
            turns.append({"role": "tool", "name": "guess", "content": "higher" if guess < number else "lower"})
    return examples[:num_examples]


def _says(text):
    return [{"role": "user", "content": text}]


def _calls(name, **arguments):
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def _draw_product(rng):
    low, high = (2, 9) if rng.random() < FRAC_EASY else (11, 99)
    a, b = rng.randint(low, high), rng.randint(low, high)
    return f"{rng.choice(NAMES)} has {a} boxes of {b} {rng.choice(ITEMS)} .", a, b


def _game(rng):
    return _says(f"{rng.choice(NAMES)} thinks of a number of {rng.choice(ITEMS)} .")


def _with_slip(number, rng, frac):
    """Returns a number as a text, with another digit in one place in this share of the cases."""
    digits = list(str(number))
    if rng.random() < frac:
        digits[rng.randrange(len(digits))] = rng.choice("123456789")
    return "".join(digits)


def _last_turn(tokenizer, turns):
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
    return tokenizer.apply_chat_template(turns, return_dict=False), len(prompt)
