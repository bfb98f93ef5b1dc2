r"""Problems for training: from the Hub or from local files, as `prompt` and `solution`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk

from .hub_access import require_local_or_hub


_CALCULATOR_NOTE = re.compile(r"<<.*?>>")  # GSM8K's rationales carry them: 48/2 = <<48/2=24>>24

_LOADERS: dict[str, Callable[[str], Dataset]] = {
    ".jsonl": Dataset.from_json,
    ".json": Dataset.from_json,
    ".parquet": Dataset.from_parquet,
}


def load_rows(name: str, split: str, config: str | None = None) -> Dataset:
    """
    Loads one split of a dataset.

    Args:
        name (`str`):
            A `.jsonl`, `.json` or `.parquet` file; a folder that holds `<split>.jsonl` (or `.json`, `.parquet`), Hub-style
            `<split>-*.parquet` parts or what `Dataset.save_to_disk` wrote; or a Hub id. A single file has no splits: it
            is returned for every split.
        split (`str`):
            Name of the split.
        config (`str`, *optional*):
            Configuration of a Hub dataset.

    Raises:
        `FileNotFoundError`: when a local path does not exist or holds no such split.
        [`HubUnreachableError`]: when `name` is no local path and the Hub does not answer.
    """
    require_local_or_hub(name, "dataset", "--dataset_name")
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix not in _LOADERS:
            raise FileNotFoundError(
                f"{path} has the suffix {path.suffix!r}, but must be one of {', '.join(_LOADERS)}."
            )
        return _LOADERS[path.suffix](str(path))
    if path.is_dir():
        return _load_folder(path, split)
    return load_dataset(name, name=config, split=split)


def _load_folder(folder: Path, split: str) -> Dataset:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        loaded = load_from_disk(str(folder))
        return loaded if isinstance(loaded, Dataset) else loaded[split]
    for suffix, loader in _LOADERS.items():
        if (folder / f"{split}{suffix}").exists():
            return loader(str(folder / f"{split}{suffix}"))
    parts = sorted(str(part) for part in folder.rglob(f"{split}-*.parquet"))
    if parts:
        return Dataset.from_parquet(parts)
    names = sorted(path.name for path in folder.iterdir())[:10]
    raise FileNotFoundError(
        f"{folder} holds no split {split!r}: looked for {split}.jsonl, {split}.json, {split}.parquet and "
        f"{split}-*.parquet, found {names}."
    )


def as_problems(
    rows: Dataset, template: str = "{question}", system_prompt: str | None = None, shots: Dataset | None = None
) -> Dataset:
    r"""
    Turns rows into problems: a conversational `prompt`, and a `solution` that `accuracy_reward` reads.

    Three shapes are understood: `prompt` + `solution`; GSM8K's `question` + `answer`, whose rationale ends in `#### n`;
    and DAPO-Math-17k's `prompt` + `reward_model["ground_truth"]`. A prompt that is a conversation already is kept as it
    is. Other columns stay.

    Args:
        rows (`Dataset`):
            The rows.
        template (`str`, *optional*, defaults to `"{question}"`):
            Text of the user's turn.
        system_prompt (`str`, *optional*):
            Text of a system turn before it.
        shots (`Dataset`, *optional*):
            Rows to show as worked examples before the question.

    Raises:
        `ValueError`: when the rows have none of the three shapes, when there are none, or when `template` has no
        `{question}`.
    """
    if len(rows) == 0:
        raise ValueError("The dataset has no rows. Check the file, the split and any filter.")
    if "{question}" not in template:
        raise ValueError(
            f"The prompt template {template!r} has no place for the question. Write {{question}} into it."
        )
    columns = set(rows.column_names)
    if not ({"prompt", "solution"} <= columns or {"question", "answer"} <= columns or _is_dapo_math(columns)):
        raise ValueError(
            f"The dataset has the columns {sorted(columns)}, but needs 'prompt' and 'solution' (or 'question' and "
            "'answer' as GSM8K, or 'prompt' and 'reward_model' as DAPO-Math-17k). Rename them: "
            "dataset.rename_column(old, new)."
        )

    def user_turn(question: str) -> dict[str, str]:
        # Not str.format: a template with \boxed{} has braces of its own.
        return {"role": "user", "content": template.replace("{question}", question)}

    before = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for shot in shots or []:
        question, rationale = _question_and_gold(shot)
        before += [user_turn(question), {"role": "assistant", "content": _CALCULATOR_NOTE.sub("", rationale)}]

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        question, gold = _question_and_gold(row)
        prompt = question if isinstance(question, list) else [*before, user_turn(question)]
        return {"new_prompt": prompt, "new_solution": gold}

    # Under new names first: `map` would cast to the type that a column of the old name had.
    problems = rows.map(convert, desc="Reading problems").remove_columns(sorted(columns & {"prompt", "solution"}))
    return problems.rename_columns({"new_prompt": "prompt", "new_solution": "solution"})


def _is_dapo_math(columns: set[str]) -> bool:
    return {"prompt", "reward_model"} <= columns


def _question_and_gold(row: dict[str, Any]) -> tuple[Any, str]:
    if "solution" in row and "prompt" in row:
        return row["prompt"], str(row["solution"])
    if "question" in row:
        return row["question"], str(row["answer"])
    return row["prompt"], str(row["reward_model"]["ground_truth"])
