"""Evaluates a model: samples k completions of each problem, grades them, and returns metrics with confidence intervals."""

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trl_dapo.data.checks import check_problems
from trl_dapo.data.hub_access import require_local_or_hub
from trl_dapo.data.source import DataSource
from trl_dapo.grading.equivalence import grade
from trl_dapo.sampling.judge import TruncationRule

from .completion_log import CompletionLog, CompletionRecord
from .completion_sampler import CompletionSampler, SamplingSettings, TransformersSampler, load_sampler
from .result import EvaluationResult, summarize, write_result


logger = logging.getLogger(__name__)

# Maximum length of a completion in the paper's evaluation, in tokens.
PAPER_MAX_COMPLETION_LENGTH = 20_480


def evaluate(
    model: str | Path | torch.nn.Module | CompletionSampler,
    dataset: Dataset,
    k: int = 32,
    *,
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    temperature: float = 1.0,
    top_p: float = 0.7,
    max_completion_length: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    on_batch: Callable[[int, int], None] | None = None,
    source: DataSource | None = None,
) -> EvaluationResult:
    """
    Samples k completions of every problem, grades them, and writes metrics and completions into a folder.

    Each batch of completions is written when it is graded. After a kill, call it again with the same arguments: it samples
    only the missing completions. The random numbers of a completion depend only on `seed`, the problem and the number of
    the sample. They do not depend on `batch_size`, on interruptions, or on the other problems of the dataset. Whether the
    same random numbers give the same completion depends on the engine: see [`TransformersSampler`].

    Args:
        model (`str`, `Path`, `PreTrainedModel`, `PeftModel` or `CompletionSampler`):
            Local folder or Hub id (a folder may hold a LoRA adapter), a loaded model, or your own engine.
        dataset (`Dataset`):
            Problems with the columns `prompt` and `solution`: see `trl_dapo.data.as_problems`.
        k (`int`, *optional*, defaults to 32):
            Completions per problem.
        output_dir (`str` or `Path`):
            The folder of this evaluation: one model, one dataset, one set of settings.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer of a loaded model. `None`: the one saved under the model's `name_or_path`.
        temperature, top_p, max_completion_length, seed (*optional*):
            See [`SamplingSettings`]. The defaults are those of the paper: 1.0, 0.7 and 20,480 tokens.
        batch_size (`int`, *optional*, defaults to 32):
            Completions sampled together. A killed process loses at most one batch.
        on_batch (`Callable[[int, int], None]`, *optional*):
            Called after every batch with the number of completions so far and the number at the end.
        source (`DataSource`, *optional*):
            Where the problems come from, for the results. `None`: what the dataset itself recorded.

    Returns:
        `EvaluationResult`: The metrics.

    Raises:
        `ValueError`: when a setting is out of its range, a prompt is empty or leaves no room for a completion, no gold answer
            is readable, or `output_dir` holds an evaluation with other settings.
        `BlockingIOError`: when another process is evaluating into `output_dir`.
    """
    settings = SamplingSettings(k, temperature, top_p, max_completion_length, seed)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1. It only changes memory and speed.")
    check_problems(dataset).refuse_unusable("dataset")
    sampler = _as_sampler(model, tokenizer)
    problems = dataset.select_columns(["prompt", "solution"]).to_list()
    golds = ["" if problem["solution"] is None else str(problem["solution"]) for problem in problems]
    prompt_ids = sampler.encode([problem["prompt"] for problem in problems])
    settings = _with_length(settings, max(map(len, prompt_ids)), sampler.context_length)
    rule = TruncationRule(sampler.end_token_ids, settings.max_completion_length)
    keys = _problem_keys(problems)
    run_settings = dataclasses.asdict(settings) | sampler.identity()
    run_settings |= {"num_problems": len(problems), "problems": _digest([prompt_ids, golds])}

    with CompletionLog(Path(output_dir), run_settings) as log:
        done = {(record["problem"], record["sample"]) for record in log.records}
        missing = [(problem, sample) for problem in range(len(problems)) for sample in range(k)]
        missing = [place for place in missing if place not in done]
        if done:
            logger.info(f"{output_dir} holds {len(done)} completions; {len(missing)} are missing.")
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            completion_ids = sampler.sample(
                [prompt_ids[problem] for problem, _ in batch],
                [f"{keys[problem]}/{sample}" for problem, sample in batch],
                settings,
            )
            completions = [sampler.decode(ids) for ids in completion_ids]
            graded = grade([golds[problem] for problem, _ in batch], completions)
            log.add(
                [
                    {
                        "problem": problem,
                        "sample": sample,
                        "grade": result.grade.value,
                        "answer": result.extracted,
                        "num_tokens": len(ids),
                        "is_truncated": rule.is_truncated(len(prompt_ids[problem]), ids),
                        "completion": completion,
                    }
                    for (problem, sample), ids, completion, result in zip(
                        batch, completion_ids, completions, graded, strict=True
                    )
                ]
            )
            if on_batch is not None:
                on_batch(len(log.records), len(problems) * k)
        records = _by_problem(log.records, len(problems), k)
    source = source or DataSource.of_dataset(dataset)
    result = summarize(records, run_settings, len(missing), Path(output_dir), source)
    write_result(result, problems, records)
    return result


def _as_sampler(
    model: str | Path | torch.nn.Module | CompletionSampler, tokenizer: PreTrainedTokenizerBase | None
) -> CompletionSampler:
    if isinstance(model, str | Path):
        require_local_or_hub(str(model), "model", "model")
        return load_sampler(str(model), tokenizer=tokenizer)
    if not isinstance(model, torch.nn.Module):
        return model
    loaded: Any = model
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(loaded.config.name_or_path, trust_remote_code=False)
    return TransformersSampler(loaded, tokenizer)


def _with_length(settings: SamplingSettings, longest_prompt: int, context_length: int | None) -> SamplingSettings:
    """Returns the settings with a `max_completion_length` that fits behind the longest prompt."""
    requested = settings.max_completion_length
    if context_length is None:
        return dataclasses.replace(settings, max_completion_length=requested or PAPER_MAX_COMPLETION_LENGTH)
    room = context_length - longest_prompt
    if room < max(requested or 1, 1):
        raise ValueError(
            f"max_completion_length is {requested}, but the longest prompt has {longest_prompt} tokens and the model's "
            f"context {context_length}, so it must be at most {room}. Lower it, or drop the long prompts."
        )
    return dataclasses.replace(settings, max_completion_length=requested or min(PAPER_MAX_COMPLETION_LENGTH, room))


def _problem_keys(problems: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the key of each problem's random numbers: a hash of its prompt, and the number of equal prompts before it."""
    seen: Counter[str] = Counter()
    keys = []
    for problem in problems:
        digest = _digest(problem["prompt"])
        keys.append(f"{digest}/{seen[digest]}")
        seen[digest] += 1
    return keys


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _by_problem(records: Sequence[CompletionRecord], num_problems: int, k: int) -> list[list[CompletionRecord]]:
    by_place = {(record["problem"], record["sample"]): record for record in records}
    return [[by_place[problem, sample] for sample in range(k)] for problem in range(num_problems)]
