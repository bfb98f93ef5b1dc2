"""Finds the rows of a dataset whose prompts cannot be sampled, before a run comes to them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset


# Rows of a stream, or of a transform, that are read when the trainer is built.
_NUM_SAMPLED = 8
_NUM_SHOWN = 5


def prompt_fault(prompt: Any) -> str | None:
    """
    Returns why a prompt cannot be sampled; `None`: it can, as far as its structure goes.

    >>> prompt_fault("2 + 2"), prompt_fault([{"role": "user", "content": "2 + 2"}])
    (None, None)
    >>> prompt_fault(4)
    'the prompt is 4, but must be a text or a conversation'
    """
    if isinstance(prompt, str):
        return None
    if not isinstance(prompt, list | tuple):
        return f"the prompt is {repr(prompt)[:60]}, but must be a text or a conversation"
    if not prompt:
        return "the prompt is a conversation with no turns"
    for turn in prompt:
        if not isinstance(turn, Mapping):
            return f"the prompt has a turn {repr(turn)[:60]}, but must be a text, or a list of turns with 'role' and 'content'"
        if not isinstance(turn.get("role"), str):
            return f"the prompt has a turn with no role: {repr(turn)[:60]}"
        if not isinstance(turn.get("content"), str | list | tuple) and not turn.get("tool_calls"):
            return f"the prompt has a turn with no content: {repr(turn)[:60]}"
    return None


def find_bad_rows(dataset: Dataset) -> Iterator[tuple[int, str]]:
    """
    Yields the number of each row that cannot be sampled, and why. Images are counted, not read.

    Args:
        dataset (`Dataset`):
            With a column `prompt`, and `image` or `images` if there are any.
    """
    columns = [name for name in ("prompt", "images", "image") if name in dataset.column_names][:2]
    first = 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        yield from ((first + row, fault) for row, fault in _bad_rows_of(table))
        first += len(table)


def _bad_rows_of(table: pa.Table) -> Iterator[tuple[int, str]]:
    prompts = table["prompt"]
    has_images = len(table.column_names) > 1
    is_text = pa.types.is_string(prompts.type) or pa.types.is_large_string(prompts.type)
    if is_text and not has_images and prompts.null_count == 0:
        return
    num_images = _num_images(table) if has_images else itertools.repeat(0)
    for row, (prompt, images) in enumerate(zip(prompts.to_pylist(), num_images, strict=False)):
        fault = prompt_fault(prompt)
        if fault is None and has_images:
            fault = _image_fault(prompt, images)
        if fault is not None:
            yield row, fault


def _num_images(table: pa.Table) -> list[int]:
    """Returns the images of each row; -1: what is there is no list of images."""
    name = table.column_names[1]
    if name == "image":
        return [int(is_there) for is_there in table[name].is_valid().to_pylist()]
    kind = table[name].type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return [-1 if is_there else 0 for is_there in table[name].is_valid().to_pylist()]
    return [length or 0 for length in pc.list_value_length(table[name]).to_pylist()]


def _image_fault(prompt: Any, num_images: int) -> str | None:
    if num_images < 0:
        return "images is no list of images"
    if isinstance(prompt, str):
        return "the row has images, so the prompt must be a conversation" if num_images else None
    parts = [part for turn in prompt if isinstance(turn["content"], list | tuple) for part in turn["content"]]
    num_places = sum(part.get("type") == "image" and "image" not in part for part in parts)
    # The first text of a user gets a place for each image.
    takes_all = any(turn["role"] == "user" and isinstance(turn["content"], str) for turn in prompt)
    if num_places != (0 if takes_all else num_images):
        return f"the prompt has {num_places} places for images, but the row has {num_images} images"
    return None


def datasets_by_name(name: str, datasets: Any) -> dict[str, Any]:
    """
    Returns one dataset or several by the names that messages use.

    >>> datasets_by_name("eval_dataset", {"small": 1, "large": 2})
    {"eval_dataset['small']": 1, "eval_dataset['large']": 2}
    """
    if isinstance(datasets, dict):
        return {f"{name}[{key!r}]": dataset for key, dataset in datasets.items()}
    return {} if datasets is None else {name: datasets}


def check_rows(name: str, dataset: Any) -> None:
    """
    Checks the prompts of a dataset: of all rows, or of the first ones of a stream.

    Args:
        name (`str`):
            How messages call it.
        dataset (`Dataset` or `IterableDataset`):
            The dataset. Anything else, and one without a column `prompt`, is for others to judge.

    Raises:
        `ValueError`: with the numbers of the rows that cannot be sampled, and why.
    """
    if is_read_ahead(dataset):
        refuse_rows(name, list(find_bad_rows(dataset)))
        return
    rows = sampled_rows(dataset)
    faults = [(number, prompt_fault(row["prompt"])) for number, row in enumerate(rows) if "prompt" in row]
    refuse_rows(name, [(number, fault) for number, fault in faults if fault is not None])


def is_read_ahead(dataset: Any) -> bool:
    """Returns whether all prompts of a dataset are read when the trainer is built: not those of a stream or a transform."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom" and "prompt" in dataset.column_names


def sampled_rows(dataset: Any) -> list[dict[str, Any]]:
    """Returns the first rows of a dataset that is not read ahead."""
    if isinstance(dataset, IterableDataset):
        return list(dataset.take(_NUM_SAMPLED))
    if isinstance(dataset, Dataset):
        return [dataset[number] for number in range(min(_NUM_SAMPLED, len(dataset)))]
    return []


def describe_template(dataset: Any, tokenizer: Any) -> str | None:
    """
    Says that the chat template of a model is not applied to the prompts; `None`: it is, or there is none.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            The dataset, whose first rows are looked at.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    prompts = [row["prompt"] for row in sampled_rows(dataset) if "prompt" in row]
    # A text with tokens of the template in it has it applied.
    marks = {str(token) for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())}
    if not prompts or not all(isinstance(text, str) and not any(mark in text for mark in marks) for text in prompts):
        return None
    return (
        "The prompts are texts, so the chat template of the model is not applied: a chat model answers much worse without it. "
        'Pass conversations, [{"role": "user", "content": "..."}]; a base model can take texts.'
    )


def refuse_rows(name: str, bad_rows: Sequence[tuple[int, str]], fix: str = "Correct these rows, or drop them") -> None:
    """
    Raises an error that names the first of some rows.

    Args:
        name (`str`):
            The dataset.
        bad_rows (`Sequence[tuple[int, str]]`):
            Number and fault of each row. Empty: nothing happens.
        fix (`str`, *optional*):
            What to do.

    Raises:
        `ValueError`: there are such rows.
    """
    if not bad_rows:
        return
    shown = "".join(f"\n  row {number}: {fault}" for number, fault in bad_rows[:_NUM_SHOWN])
    others = f"\n  and {len(bad_rows) - _NUM_SHOWN} more" if len(bad_rows) > _NUM_SHOWN else ""
    numbers = [str(number) for number, _ in bad_rows[:_NUM_SHOWN]] + ["..."] * bool(others)
    raise ValueError(
        f"{name} has {len(bad_rows)} row{'s' * (len(bad_rows) != 1)} that cannot be sampled:{shown}{others}\n{fix}: "
        f"bad = {{{', '.join(numbers)}}}; "
        "dataset.select([row for row in range(len(dataset)) if row not in bad])."
    )


class PromptCheck:
    """
    Tells of the rows that are not read ahead, as they are drawn, which cannot be sampled.

    Args:
        tokenize (`Callable`):
            Turns prompts into tokens.
        most_tokens (`int`, *optional*):
            Most tokens of a prompt. `None`: no limit.
        limits (`str`, *optional*):
            What the limit is made of, for the message.
    """

    def __init__(
        self,
        tokenize: Callable[[list[Any]], Sequence[Sequence[int]]],
        most_tokens: int | None = None,
        limits: str = "",
    ):
        self.tokenize = tokenize
        self.most_tokens = most_tokens
        self.limits = limits

    def __call__(self, row: Mapping[str, Any]) -> str | None:
        """Returns why a row cannot be sampled; `None`: it can."""
        prompt = row.get("prompt")
        fault = prompt_fault(prompt)
        if fault is None and isinstance(prompt, str) and not prompt.strip() and not len(self.tokenize([prompt])[0]):
            fault = f"the prompt is {prompt!r}, which is no tokens"
        if fault is None and self.most_tokens is not None:
            length = len(self.tokenize([prompt])[0])
            if length > self.most_tokens:
                fault = self.too_long(length)
        return fault

    def too_long(self, num_tokens: int) -> str:
        """Returns the fault of a prompt with too many tokens."""
        return f"the prompt has {num_tokens} tokens, and {self.limits}"


def find_empty_texts(dataset: Any, tokenize: Callable[[list[str]], Sequence[Sequence[int]]]) -> list[tuple[int, str]]:
    """
    Returns the rows whose prompt is a blank text of which the tokenizer makes no tokens.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            The dataset.
        tokenize (`Callable`):
            Turns texts into tokens.
    """
    blank: list[tuple[int, str]] = []
    if is_read_ahead(dataset):
        first = 0
        for table in dataset.select_columns(["prompt"]).with_format("arrow").iter(batch_size=10_000):
            prompts = table["prompt"]
            if not (pa.types.is_string(prompts.type) or pa.types.is_large_string(prompts.type)):
                return []
            is_blank = pc.equal(pc.utf8_trim_whitespace(prompts), "")
            blank += [(first + row, prompts[row].as_py()) for row in pc.indices_nonzero(is_blank).to_pylist()]
            first += len(table)
    else:
        texts = ((number, row.get("prompt")) for number, row in enumerate(sampled_rows(dataset)))
        blank = [(number, text) for number, text in texts if isinstance(text, str) and not text.strip()]
    empty = {text for text in {text for _, text in blank} if not len(tokenize([text])[0])}
    return [(number, f"the prompt is {text!r}, which is no tokens") for number, text in blank if text in empty]
