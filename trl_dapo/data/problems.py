r"""Loads datasets from the Hub or from local files, and turns their rows into problems: `prompt` and `solution`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk

from .hub_access import require_local_or_hub


_CALCULATOR_NOTE = re.compile(r"<<.*?>>")  # in the rationales of GSM8K: 48/2 = <<48/2=24>>24

_DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
_DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'

TEMPLATES: dict[str, str] = {
    "plain": "{question}",
    "dapo": _DAPO_BEFORE + "{question}" + _DAPO_AFTER,
    "boxed": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
}
"""Texts of the user's turn: the question alone; the prompt of DAPO's data, word for word; the prompt of Qwen's math models."""

_LOADERS: dict[str, Callable[[str], Dataset]] = {
    ".jsonl": Dataset.from_json,
    ".json": Dataset.from_json,
    ".parquet": Dataset.from_parquet,
}


class SplitNotFoundError(FileNotFoundError):
    """A dataset has no split of this name."""


def load_rows(name: str, split: str, config: str | None = None) -> Dataset:
    """
    Loads one split of a dataset.

    Args:
        name (`str`):
            A `.jsonl`, `.json` or `.parquet` file; a folder that holds `<split>.jsonl` (or `.json`, `.parquet`), Hub-style
            `<split>-*.parquet` files, or the output of `Dataset.save_to_disk`; or a Hub id. A single file has no splits: it
            is returned for every `split`.
        split (`str`):
            Name of the split.
        config (`str`, *optional*):
            Configuration of a Hub dataset.

    Raises:
        `FileNotFoundError`: when a local path does not exist or has an unknown suffix.
        `SplitNotFoundError`: when the dataset has splits, but not this one. It is a `FileNotFoundError`.
        [`HubUnreachableError`]: when `name` is not a local path and the Hub does not answer.
    """
    require_local_or_hub(name, "dataset", "--dataset_name")
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix not in _LOADERS:
            raise FileNotFoundError(
                f"{path} has the suffix {path.suffix!r}, but must have one of {', '.join(_LOADERS)}. Convert the file."
            )
        return _LOADERS[path.suffix](str(path))
    if path.is_dir():
        return _load_folder(path, split)
    try:
        return load_dataset(name, name=config, split=split)
    except ValueError as error:
        if not str(error).startswith("Unknown split"):
            raise
        raise SplitNotFoundError(f"{name} has no split {split!r}: {error}") from error


def has_splits(name: str) -> bool:
    """Returns whether a dataset may have several splits. A single file has none, nor has a saved `Dataset`."""
    path = Path(name).expanduser()
    return not path.is_file() and not (path / "state.json").exists()


def questions_of(rows: Dataset) -> list[Any]:
    """
    Returns the question of each row of a dataset, in any of the shapes of [`as_problems`], without the words of `"dapo"`.

    >>> questions_of(Dataset.from_list([{"question": "1 + 1?", "answer": "2"}]))
    ['1 + 1?']
    """
    used = sorted({"prompt", "solution", "question", "answer", "reward_model"} & set(rows.column_names))
    questions = [_question_and_gold(row)[0] for row in rows.select_columns(used)]
    return [_unwrapped(question) if isinstance(question, list) else question for question in questions]


def _load_folder(folder: Path, split: str) -> Dataset:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        loaded = load_from_disk(str(folder))
        if isinstance(loaded, Dataset):
            return loaded
        if split not in loaded:
            raise SplitNotFoundError(f"{folder} has no split {split!r}, only {', '.join(map(repr, loaded))}.")
        return loaded[split]
    for suffix, loader in _LOADERS.items():
        if (folder / f"{split}{suffix}").exists():
            return loader(str(folder / f"{split}{suffix}"))
    parts = sorted(str(part) for part in folder.rglob(f"{split}-*.parquet"))
    if parts:
        return Dataset.from_parquet(parts)
    names = sorted(path.name for path in folder.iterdir())[:10]
    raise SplitNotFoundError(
        f"{folder} holds no split {split!r}: it must hold {split}.jsonl, {split}.json, {split}.parquet or "
        f"{split}-*.parquet, but the first names found are {names}. Choose another split or folder."
    )


def as_problems(
    rows: Dataset,
    template: str | None = None,
    system_prompt: str | None = None,
    shots: Dataset | None = None,
    drop_duplicates: bool = False,
) -> Dataset:
    r"""
    Turns rows into problems: a conversational `prompt`, and a `solution` with the gold answer for `accuracy_reward`.

    Rows can have three shapes: `prompt` + `solution`; `question` + `answer` as in GSM8K, whose rationale ends with
    `#### n`; `prompt` + `reward_model["ground_truth"]` as in DAPO-Math-17k and the AIME files released with it. Other
    columns stay. A missing question becomes an empty prompt, a missing gold answer an empty solution: `check_problems`
    reports both.

    Args:
        rows (`Dataset`):
            The rows.
        template (`str`, *optional*):
            Text of the user's turn with `{question}` in it, or the name of such a text: `"plain"` (the question alone),
            `"dapo"` (asks for the answer on a last line after "Answer:") or `"boxed"` (asks for the answer in
            `\boxed{}`). `None`: a conversation stays as it is, and a question that is a text is asked with `"plain"`. With a
            template, a conversation in the words of `"dapo"` is asked again with the template; other conversations stay.
        system_prompt (`str`, *optional*):
            Text of a system turn before the user's turn. Conversations that stay as they are do not get it.
        shots (`Dataset`, *optional*):
            Rows to show as worked examples before the question. Conversations that stay as they are do not get them.
        drop_duplicates (`bool`, *optional*, defaults to `False`):
            Whether to keep only the first of the rows with exactly the same question and gold answer. DAPO-Math-17k repeats
            each problem about a hundred times, its AIME 2024 each 32 times.

    Returns:
        `Dataset`: The problems, in the order of the rows.

    Raises:
        `ValueError`: when there are no rows, they have none of the three shapes, `template` has no `{question}`, or a
            question is neither a text nor a conversation.
    """
    if len(rows) == 0:
        raise ValueError("The dataset has no rows. Check the file, the split and the filters.")
    text = TEMPLATES["plain"] if template is None else TEMPLATES.get(template, template)
    if "{question}" not in text:
        raise ValueError(
            f"The prompt template is {text!r}, but must contain {{question}} or be one of {', '.join(TEMPLATES)}. Write "
            "{question} where the question belongs."
        )
    columns = set(rows.column_names)
    if not ({"prompt", "solution"} <= columns or {"question", "answer"} <= columns or _is_dapo_math(columns)):
        raise ValueError(
            f"The dataset has the columns {sorted(columns)}, but must have 'prompt' and 'solution', or 'question' and "
            "'answer' (GSM8K), or 'prompt' and 'reward_model' (DAPO-Math-17k). Rename its columns: "
            "dataset.rename_column(old, new)."
        )

    def user_turn(question: str) -> dict[str, str]:
        # Not str.format: a template with \boxed{} has other braces.
        return {"role": "user", "content": text.replace("{question}", question)}

    before = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for shot in shots or []:
        question, rationale = _question_and_gold(shot)
        before += [user_turn(question), {"role": "assistant", "content": _CALCULATOR_NOTE.sub("", rationale)}]

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        question, gold = _question_and_gold(row)
        if isinstance(question, list) and template is not None:
            question = _unwrapped(question)
        if not isinstance(question, str | list):
            raise ValueError(
                f"The question of row {number} is {question!r} ({type(question).__name__}), but must be a text or a "
                "conversation. Cast the column to text, or drop the row."
            )
        if isinstance(question, str):
            question = [*before, user_turn(question)] if question.strip() else []
        return {"new_prompt": question, "new_solution": gold}

    if drop_duplicates:
        rows = rows.select(_first_of_each(rows))
    # New names first: `map` casts a column to the type of an old column with the same name.
    problems = rows.map(convert, with_indices=True, desc="Reading problems")
    problems = problems.remove_columns(sorted(columns & {"prompt", "solution"}))
    return problems.rename_columns({"new_prompt": "prompt", "new_solution": "solution"})


def _first_of_each(rows: Dataset) -> list[int]:
    used = sorted({"prompt", "solution", "question", "answer", "reward_model"} & set(rows.column_names))
    first: dict[str, int] = {}
    for number, row in enumerate(rows.select_columns(used)):
        first.setdefault(json.dumps(_question_and_gold(row), sort_keys=True, default=str), number)
    return list(first.values())


def _unwrapped(conversation: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Returns the question of a conversation in the words of DAPO's data; any other conversation unchanged."""
    if len(conversation) == 1 and conversation[0].get("role") == "user":
        content = conversation[0].get("content")
        if isinstance(content, str) and content.startswith(_DAPO_BEFORE) and content.endswith(_DAPO_AFTER):
            return content[len(_DAPO_BEFORE) : -len(_DAPO_AFTER)]
    return conversation


def _is_dapo_math(columns: set[str]) -> bool:
    return {"prompt", "reward_model"} <= columns


def _question_and_gold(row: dict[str, Any]) -> tuple[Any, str]:
    if "solution" in row and "prompt" in row:
        question, gold = row["prompt"], row["solution"]
    elif "question" in row:
        question, gold = row["question"], row["answer"]
    else:
        question, gold = row["prompt"], (row["reward_model"] or {}).get("ground_truth")
    # str(None) would be the gold answer "None".
    return "" if question is None else question, "" if gold is None else str(gold)
