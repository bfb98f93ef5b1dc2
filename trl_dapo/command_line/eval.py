"""`trl-dapo eval`: evaluates a model on a dataset and prints a table."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig

from trl_dapo.data.hub_access import require_local_or_hub
from trl_dapo.data.problems import as_problems, load_rows
from trl_dapo.data.source import DataSource
from trl_dapo.evaluation.completion_sampler import CompletionSampler, load_sampler
from trl_dapo.evaluation.evaluator import evaluate

from .option_parser import parse_options


@dataclass
class EvaluationArguments:
    """Options of `trl-dapo eval` that are not in TRL's `ModelConfig`."""

    output_dir: str = field(metadata={"help": "Folder of the evaluation. Started again, an evaluation continues."})
    dataset_name: str = field(metadata={"help": "A .jsonl, .json or .parquet file, a folder, or a Hub id."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="test", metadata={"help": "Split of a folder or Hub dataset."})
    num_problems: int | None = field(
        default=None, metadata={"help": "Number of problems to evaluate, from the first. Unset: all."}
    )
    keep_duplicates: bool = field(
        default=False,
        metadata={"help": "Keep rows with the same question and gold (AIME 2024 repeats each 32 times)."},
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "plain, dapo, boxed, or a text around {question}. Unset: conversations stay as they are."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "A system turn before the question."})
    k: int = field(default=32, metadata={"help": "Completions per problem."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature; 0 takes the most likely token."})
    top_p: float = field(
        default=0.7, metadata={"help": "Sample from the most likely tokens with this total probability."}
    )
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Maximum tokens of a completion. Unset: 20,480, or what the context leaves."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of sampling and of the intervals."})
    batch_size: int = field(default=32, metadata={"help": "Completions per batch."})
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM."})
    vllm_engine_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Options of the vLLM engine, as JSON (vLLM's EngineArgs)."}
    )


def run(arguments: Sequence[str]) -> None:
    """
    Evaluates a model, and prints a table of the metrics.

    Args:
        arguments (`Sequence[str]`):
            The options, such as `["--model_name_or_path", "DIR", ...]`.
    """
    args, model_args = parse_options("eval", (EvaluationArguments, ModelConfig), arguments)
    if model_args.model_name_or_path is None:
        raise ValueError("--model_name_or_path is not set. Give a local folder or a Hub id.")
    require_local_or_hub(model_args.model_name_or_path, "model", "--model_name_or_path")
    rows = load_rows(args.dataset_name, args.dataset_split, args.dataset_config)
    problems = as_problems(rows, args.prompt_template, args.system_prompt, drop_duplicates=not args.keep_duplicates)
    if len(problems) < len(rows):
        print(f"{len(rows)} rows with {len(problems)} different problems.")
    if args.num_problems is not None:
        if not 1 <= args.num_problems <= len(problems):
            raise ValueError(f"--num_problems is {args.num_problems}, but must be between 1 and {len(problems)}.")
        problems = problems.select(range(args.num_problems))
    sampler = _load_sampler(args, model_args)
    start = time.monotonic()

    def report(num_done: int, num_all: int) -> None:
        print(f"{num_done} of {num_all} completions, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    result = evaluate(
        sampler,
        problems,
        args.k,
        output_dir=args.output_dir,
        temperature=args.temperature,
        top_p=args.top_p,
        max_completion_length=args.max_completion_length,
        seed=args.seed,
        batch_size=args.batch_size,
        on_batch=report,
        source=DataSource.named(args.dataset_name, args.dataset_config, args.dataset_split),
    )
    total = result.k * result.num_problems
    print(f"Sampled {result.num_sampled} completions, {total - result.num_sampled} were already there.\n")
    print(result.table())
    print(f"\nWritten to {args.output_dir}: results.json, problems.parquet, completions.parquet")


def _load_sampler(args: EvaluationArguments, model_args: ModelConfig) -> CompletionSampler:
    name: Any = model_args.model_name_or_path
    if not args.use_vllm:
        return load_sampler(
            name,
            dtype=model_args.dtype,
            revision=model_args.model_revision,
            attn_implementation=model_args.attn_implementation,
        )
    from trl_dapo.evaluation.vllm_sampler import VLLMSampler

    options = args.vllm_engine_kwargs
    if isinstance(options, str):
        options = json.loads(options)
    return VLLMSampler(
        name, dtype=model_args.dtype or "auto", revision=model_args.model_revision, engine_kwargs=options
    )
