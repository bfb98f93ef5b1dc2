"""
The task of the quickstart: word problems, a tokenizer, a tiny Llama and its warm-up. Nothing is downloaded.

`prepare_tiny_model` builds a Llama of 0.2 million parameters and warms it up on worked solutions with errors: some steps have
a wrong result, and the solution goes on from it. So the model knows how to solve a problem, but makes the same kind of
errors, and more of them in longer problems. Reinforcement learning can remove these errors. The model solves one family of
problems nearly always and another one never: their groups have no learning signal, and dynamic sampling rejects them.

    python -m trl_dapo.recipes.word_problems out/tiny-model
"""

import functools
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_dapo.data.held_out import prompt_key, without_prompts


# Share of each family: two easy ones, four of growing length, and one too hard (products of two-digit numbers).
FAMILIES = {
    "sum": 0.18,
    "multiply": 0.15,
    "add": 0.18,
    "subtract": 0.15,
    "two_step": 0.16,
    "three_step": 0.12,
    "product": 0.06,
}
NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo"]
ITEMS = ["apples", "books", "cards", "coins", "pens", "shells", "stamps", "toys"]
WORDS = ["has", "gets", "more", "and", "gives", "away", "boxes", "of", "wait", "again"]
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@dataclass(frozen=True)
class Student:
    """
    Says how often the worked solutions, on which a model is warmed up, have errors ("slips").

    Args:
        families (`dict[str, float]`):
            Share of each family among the solved problems.
        frac_slips (`float`):
            Share of the steps with a wrong result.
        frac_slips_in (`dict[str, float]`):
            The same for some families.
        misconceptions (`frozenset[str]`):
            Families in which the error is always the same, one too many. In the others it is a random number nearby.
        frac_repeats (`float`):
            Share of the solutions that start again after the end. These may reach the length limit.
    """

    families: dict[str, float]
    frac_slips: float = 0.22
    frac_slips_in: dict[str, float] = field(default_factory=dict)
    misconceptions: frozenset[str] = frozenset()
    frac_repeats: float = 0.1


# The warm-up has more examples of the families that take longest to learn.
CARELESS_STUDENT = Student(
    families=FAMILIES | {"sum": 0.08, "multiply": 0.2, "subtract": 0.2, "product": 0.02},
    frac_slips_in={"sum": 0.02, "product": 0.9},
)


def draw_problem(family, rng):
    """Returns the text of a problem and its terms: a first number, then pairs of an operator and a number."""
    name, items = rng.choice(NAMES), rng.choice(ITEMS)
    if family == "sum":
        a = rng.randint(1, 8)
        b = rng.randint(1, 9 - a)
        return f"{name} has {a} {items} and gets {b} more .", [a, ("+", b)]
    if family == "product":
        a, b = rng.randint(11, 99), rng.randint(11, 99)
        return f"{name} has {a} boxes of {b} {items} .", [a, ("*", b)]
    if family in ("add", "subtract"):
        total = rng.randint(12, 88)
        text, terms = f"{name} has {total} {items}", [total]
    else:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        total = a * b
        text, terms = f"{name} has {a} boxes of {b} {items}", [a, ("*", b)]
    # Digits are chosen so that no column carries or borrows.
    if family in ("add", "two_step", "three_step"):
        more = 10 * rng.randint(0, 9 - total // 10) + rng.randint(0, 9 - total % 10)
        total += more
        text, terms = f"{text} and gets {more} more", [*terms, ("+", more)]
    if family in ("subtract", "three_step"):
        away = 10 * rng.randint(0, total // 10) + rng.randint(0, total % 10)
        text, terms = f"{text} and gives {away} away", [*terms, ("-", away)]
    return f"{text} .", terms


def solve(terms, rng, frac_slips=0.0, is_misconception=False):
    """Returns a worked solution and its answer. After a wrong step, the solution goes on from the wrong result."""

    def step(a, sign, b):
        result = max(0, {"+": a + b, "-": a - b, "*": a * b}[sign])  # negative only after an error
        slips = rng.random() < frac_slips
        if slips and is_misconception:
            result += 1
        elif slips:
            result = rng.choice([value for value in range(max(0, result - 5), result + 6) if value != result])
        return result, f"{a} {sign} {b} = {result}"

    total, steps = terms[0], []
    for sign, value in terms[1:]:
        if sign == "*" or (total < 10 and value < 10):
            total, line = step(total, sign, value)
            steps.append(line)
        else:
            (ones, first), (tens, second) = step(total % 10, sign, value % 10), step(total // 10, sign, value // 10)
            before, total = total, 10 * tens + ones
            steps += [first, second, f"{before} {sign} {value} = {total}"]
    return " , ".join(steps), total


def make_problems(num_problems, seed, families=FAMILIES):
    """Returns a `Dataset` of problems: `prompt` (a conversation), `solution` (the integer, as a string) and `family`."""
    rng = random.Random(seed)
    rows = []
    for family in rng.choices(list(families), weights=list(families.values()), k=num_problems):
        text, terms = draw_problem(family, rng)
        solution = str(solve(terms, rng)[1])
        rows.append({"prompt": [{"role": "user", "content": text}], "solution": solution, "family": family})
    return Dataset.from_list(rows)


def build_tokenizer():
    r"""Returns a tokenizer of whole words and single digits that decodes numbers joined: `\boxed{42}`."""
    symbols = [*"0123456789+-*=,.", "\\boxed{", "}"]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *WORDS, *symbols, *NAMES, *ITEMS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    pieces = pre_tokenizers.Split(Regex(r"\\boxed\{|[A-Za-z]+|[^A-Za-z]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    joined = decoders.Replace(Regex(r"(?<=[\d{]) (?=[\d}])"), "")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex("$"), " "), decoders.Fuse(), joined, decoders.Replace(Regex(" $"), "")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer, seed, num_heads=4):
    """Returns a two-layer Llama of about 0.2 million random parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=num_heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def worked_examples(tokenizer, num_examples, rng, student=CARELESS_STUDENT):
    """Returns the token ids of problems with their worked solutions, and the position at which each solution begins."""
    examples = []
    for family in rng.choices(list(student.families), weights=list(student.families.values()), k=num_examples):
        text, terms = draw_problem(family, rng)
        habit = student.frac_slips_in.get(family, student.frac_slips), family in student.misconceptions
        steps, answer = solve(terms, rng, *habit)
        while rng.random() < student.frac_repeats:
            repeated, answer = solve(terms, rng, *habit)
            steps += f" , wait again {repeated}"
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"{steps} , \\boxed{{{answer}}}"}]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        examples.append((tokenizer.apply_chat_template(turns, return_dict=False)[:110], len(prompt)))
    return examples


def warm_up(model, tokenizer, seed, make_examples=worked_examples, num_steps=450, batch_size=64, learning_rate=3e-3):
    """Trains the model on examples of `make_examples`. Only the tokens from the position of each have a loss."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps, pct_start=0.1)
    for _ in range(num_steps):
        # Parts of similar length need half the padding, and so half the time.
        examples = sorted(make_examples(tokenizer, batch_size, rng), key=lambda example: len(example[0]))
        num_tokens = sum(len(ids) - start for ids, start in examples)

        for part in (
            examples[: batch_size // 2],
            examples[batch_size // 2 : -batch_size // 8],
            examples[-batch_size // 8 :],
        ):
            width = max(len(ids) for ids, _ in part)
            input_ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in part])
            positions = torch.arange(width)
            is_solution = torch.stack([(positions >= start) & (positions < len(ids)) for ids, start in part])
            logits = model(input_ids).logits[:, :-1]
            labels = input_ids.masked_fill(~is_solution, -100)[:, 1:]
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / num_tokens
            loss.backward()

        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def prepare_tiny_model(folder, seed, num_heads=4, student=CARELESS_STUDENT):
    """Builds and warms up the model, and saves it with its tokenizer. vLLM on a CPU needs 3 heads (of size 32)."""
    start = time.perf_counter()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed, num_heads)
    warm_up(model, tokenizer, seed, functools.partial(worked_examples, student=student))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seconds = time.perf_counter() - start
    print(
        f"Built a Llama of {model.num_parameters():,} parameters and warmed it up in {seconds:.0f} s: {Path(folder)}"
    )


@dataclass
class TinyTaskArguments:
    """Options of the task of this file."""

    tiny_task: bool = field(
        default=False, metadata={"help": "Build a tiny model and its word problems instead of loading any."}
    )
    tiny_num_heads: int | None = field(
        default=None,
        metadata={
            "help": "Attention heads of the tiny model. Unset: 4, or 3 with vLLM (its CPU kernels need size 32)."
        },
    )


def prepare_tiny_task(script_args, args, keeps_model=False):
    """Returns the folder of the warmed-up model, problems to train on, and held-out problems."""
    train_dataset = make_problems(4000, seed=args.seed)
    eval_dataset = make_problems(script_args.num_eval_problems, seed=args.seed + 1)
    held_out = {prompt_key(prompt) for prompt in eval_dataset["prompt"]}
    train_dataset = without_prompts(train_dataset, train_dataset["prompt"], held_out)
    folder = str(Path(args.output_dir) / "tiny-model")
    with args.main_process_first(desc="warming up the tiny model"):
        if args.process_index == 0 and not (keeps_model and Path(folder, "tokenizer_config.json").exists()):
            num_heads = script_args.tiny_num_heads or (3 if args.use_vllm else 4)
            prepare_tiny_model(folder, seed=args.seed, num_heads=num_heads)
    return folder, train_dataset, eval_dataset


if __name__ == "__main__":
    folder, *heads = sys.argv[1:]
    prepare_tiny_model(folder, 0, *map(int, heads))
