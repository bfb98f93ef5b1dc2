"""A language model that exists nowhere but here: random weights, twenty tokens, no download."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>"]
WORDS = [f"w{number}" for number in range(17)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer that splits at spaces."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL_TOKENS + WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def tiny_model(seed: int = 0, **overrides) -> LlamaForCausalLM:
    """Returns a Llama in float32, of about 5,000 parameters unless its configuration is overridden."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": len(SPECIAL_TOKENS) + len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**options | overrides))


def numbered_prompts(num_rows: int) -> Dataset:
    """Returns a dataset whose row `i` carries its own number as `row`."""
    return Dataset.from_dict(
        {
            "prompt": [f"w{row % 17} w{row // 17 % 17}" for row in range(num_rows)],
            "row": list(range(num_rows)),
        }
    )


def prompts_with_gold(num_rows: int) -> Dataset:
    """Returns `numbered_prompts` with a gold text in each row."""
    return numbered_prompts(num_rows).add_column("solution", [f"gold of row {row}" for row in range(num_rows)])


def gold_logging_reward(completion_ids, solution, log_extra, **kwargs) -> list[float]:
    """`first_token_reward`, which logs the gold as `accuracy_reward` does, and a text of its own."""
    log_extra("solution", solution)
    log_extra("said", [f"{len(ids)} tokens" for ids in completion_ids])
    return first_token_reward(completion_ids)


def texts_in(folder, texts) -> list[str]:
    """Returns those of the texts whose bytes are in files of a folder."""
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return [text for text in texts if any(text.encode() in content for content in contents)]


def training_arguments(output_dir, **overrides) -> dict:
    """Returns arguments that train the tiny model on a CPU in well under a second a step."""
    return {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 7,
    } | overrides


def first_token_reward(completion_ids, **kwargs):
    """1 when the first generated token is even: the tiny model does that about half of the time."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]
