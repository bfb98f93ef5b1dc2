"""Reads the files of a run from a folder or a Hub repository."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


ROLLOUTS_FOLDER = "rollouts"
_SHARD_NAME = re.compile(r"groups-\d{3,}-\d{6,}\.parquet", re.ASCII)
_HISTORY_NAMES = ("log_history.jsonl", "trainer_state.json")
_RESULTS_NAME = "results.json"
_FACTS_NAME = "run_facts.json"
_CHECKPOINT_NAME = re.compile(r"checkpoint-\d+", re.ASCII)
# Anybody may have made the files, so larger ones are not read.
_MAX_JSON_BYTES = 200 * 2**20
MAX_DOWNLOAD_BYTES = 4 * 2**30


def shard_paths(folder: Path) -> list[Path]:
    """Returns the files of the record in the order in which they were written. Files with other names are ignored."""
    rollouts = folder / ROLLOUTS_FOLDER
    if not rollouts.is_dir():
        return []
    return sorted(path for path in rollouts.iterdir() if _SHARD_NAME.fullmatch(path.name) and path.is_file())


def read_history(folder: Path) -> list[dict[str, Any]]:
    """
    Returns the log of a run in the order of its steps. Each entry has a `step` (`int`) and finite numbers.

    There are four sources: `log_history.jsonl`, which grows during a run, `trainer_state.json` of the finished run and of its last
    checkpoint, and `run_facts.json`, which is on the Hub beside the model. The one with the latest step is returned.

    Args:
        folder (`Path`):
            The run's folder.
    """
    checkpoints = [path for path in folder.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name)]
    checkpoints.sort(key=lambda path: int(path.name.split("-")[1]))
    histories = [_from_lines(folder / _HISTORY_NAMES[0])]
    states = [place / _HISTORY_NAMES[1] for place in (folder, *checkpoints[-1:])]
    for path in (*states, folder / _FACTS_NAME):
        entries = _read_dict(path).get("log_history")
        histories.append(_clean(entries if isinstance(entries, list) else []))
    return max(histories, key=lambda history: history[-1]["step"] if history else -1)


def read_results(folder: Path) -> dict[str, float]:
    """Returns the numbers of `results.json`, or nothing if there is no such file."""
    return _numbers(_read_dict(folder / _RESULTS_NAME))


def read_reliability(folder: Path) -> list[dict[str, float]]:
    """Returns the table of `results.json` that compares the predictions of selective rollout with what was found."""
    table = _read_dict(folder / _RESULTS_NAME).get("reliability")
    rows = [_numbers(row) for row in (table if isinstance(table, list) else [])[:100] if isinstance(row, dict)]
    return [row for row in rows if all(0 <= row.get(name, -1) <= 1 for name in ("predicted", "found"))]


def read_facts(folder: Path) -> dict[str, Any]:
    """Returns the facts in `run_facts.json`, of any type, or nothing if there is no such file."""
    return _read_dict(folder / _FACTS_NAME)


def wanted_files(names: Iterable[str]) -> list[str]:
    """
    Returns those files of a repository that the Space reads.

    >>> wanted_files(["model.safetensors", "rollouts/groups-000-000001.parquet", "rollouts/../x.parquet", "results.json"])
    ['results.json', 'rollouts/groups-000-000001.parquet']
    """
    plain = {*_HISTORY_NAMES, _RESULTS_NAME, _FACTS_NAME}

    def is_wanted(name: str) -> bool:
        folder, _, file = name.rpartition("/")
        return name in plain or (folder == ROLLOUTS_FOLDER and _SHARD_NAME.fullmatch(file) is not None)

    return sorted(filter(is_wanted, names))


def download_run(repo_id: str, token: str | bool | None = None) -> Path:
    """
    Downloads the record of a run from the Hub into its cache.

    Args:
        repo_id (`str`):
            `<owner>/<name>` of a model repository, or else of a dataset repository.
        token (`str` or `bool`, *optional*):
            As in `huggingface_hub`. `False`: public repositories only.

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError`: when there is no such repository, when it has no record, or when the record is too large.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    api = HfApi(token=token)
    for repo_type in ("model", "dataset"):
        try:
            info = api.repo_info(repo_id, repo_type=repo_type, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
            names = _checked_names(repo_id, sizes)
            return Path(
                snapshot_download(repo_id, repo_type=repo_type, revision=info.sha, allow_patterns=names, token=token)
            )
        except HFValidationError:
            break
        except RepositoryNotFoundError:
            continue
        except ValueError:
            raise
        except Exception as error:  # the class depends on the client's HTTP library
            raise ValueError(
                f"The Hub cannot be reached ({type(error).__name__}). Try again, or open a folder."
            ) from error
    raise ValueError(
        f"{repo_id[:100]!r} is not a model or dataset repository on the Hub that can be read here. It must be "
        "<owner>/<name>."
    )


def _checked_names(repo_id: str, sizes: Mapping[str, int]) -> list[str]:
    names = wanted_files(sizes)
    if not names:
        raise ValueError(
            f"{repo_id} has no record of rollout groups and no log. A run writes them with `num_groups_to_log` or "
            "`log_completions=True`."
        )
    size = sum(sizes[name] for name in names)
    if size > MAX_DOWNLOAD_BYTES:
        raise ValueError(
            f"The record in {repo_id} has {size / 2**30:.1f} GiB, but must have at most "
            f"{MAX_DOWNLOAD_BYTES / 2**30:.0f} GiB. Download it and open the folder."
        )
    return names


def _from_lines(path: Path) -> list[dict[str, Any]]:
    """Joins the logs of all starts of a run. A later start replaces earlier entries from its first step on."""
    by_start: dict[int, list[dict[str, Any]]] = {}
    for line in _read_bytes(path).split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue  # empty, or cut off when the run was killed
        if isinstance(entry, dict) and isinstance(entry.get("start"), int):
            by_start.setdefault(entry["start"], []).append(entry)
    joined: list[dict[str, Any]] = []
    for start in sorted(by_start):
        entries = _clean(by_start[start])
        if entries:
            joined = [entry for entry in joined if entry["step"] < entries[0]["step"]] + entries
    return joined


def _clean(entries: Iterable[Any]) -> list[dict[str, Any]]:
    kept = []
    for entry in entries:
        step = entry.get("step") if isinstance(entry, dict) else None
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**31:
            kept.append({**_numbers(entry), "step": step})
    return sorted(kept, key=lambda entry: entry["step"])


def _numbers(values: Mapping[Any, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e300
        and math.isfinite(value)
    }


def _read_dict(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(path) or b"null")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_bytes(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > _MAX_JSON_BYTES:
        return b""
    return path.read_bytes()
