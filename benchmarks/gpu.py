"""
Tokens a second, peak memory and the time of a rollout step on a GPU: TRL's `GRPOTrainer` and `DAPOTrainer` on one recipe.

    python benchmarks/gpu.py                                    # the GSM8K recipe, vLLM in the same process; writes gpu.json
    python benchmarks/gpu.py --model_name_or_path HuggingFaceTB/SmolLM2-360M-Instruct
    python benchmarks/gpu.py --markdown                         # prints the tables of gpu.json; runs nothing

Every other option is one of `examples/dapo_gsm8k.py`: a local model and data, another recipe, `--use_vllm false`. Each trainer
has a process of its own. GRPO is TRL's as it is, with symmetric clipping, on batches of the same size. The first rollout step
is not counted: kernels are compiled in it. Results are stored by model, beside those that are there.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import torch  # noqa: E402
from dapo_gsm8k import DEFAULT_RECIPE  # noqa: E402
from provenance import provenance  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from trl import GRPOTrainer, ModelConfig, TrlParser, get_peft_config  # noqa: E402

from trl_dapo import DAPOConfig, DAPOTrainer  # noqa: E402
from trl_dapo.command_line.training_run import TrainingScriptArguments, load_problems  # noqa: E402
from trl_dapo.rewards import get_reward  # noqa: E402
from trl_dapo.trl_seams import TrainerSeams, replaced  # noqa: E402


RESULTS = Path(__file__).with_name("gpu.json")
TRAINERS = {"GRPO": GRPOTrainer, "DAPO": DAPOTrainer}


class Meter(TrainerCallback):
    """Seconds and tokens of each rollout step. Work that was queued on the accelerator is waited for."""

    def __init__(self, num_updates: int):
        self.num_updates = num_updates
        self.steps: list[dict[str, float]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside it sampling and grading are timed, and tokens counted."""
        with ExitStack() as stack:
            for owner, name, part in (
                (GRPOTrainer, "_generate", "sampling"),
                (GRPOTrainer, "_calculate_rewards", "grading"),
                # Ours computes rewards with a copy of TRL's function.
                (TrainerSeams, "compute_rewards", "grading"),
            ):
                stack.enter_context(replaced(owner, name, self._timed(owner, name, part)))
            yield

    def _timed(self, owner: type, name: str, part: str) -> Callable[..., Any]:
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            output = method(*args, **kwargs)
            spent = {part: self.now() - start}
            if part == "sampling":
                spent["sampled_tokens"] = sum(map(len, output[1]))
            for figure, value in spent.items():
                self.current[figure] = self.current.get(figure, 0) + value
            return output

        return timed

    @staticmethod
    def now() -> float:
        """Seconds, when all work on the accelerator is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins the first rollout step."""
        self.current: dict[str, float] = {}
        self.start = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends a rollout step with its last optimizer step."""
        if state.global_step % self.num_updates == 0:
            now = self.now()
            self.steps.append({"seconds": now - self.start} | self.current)
            self.current, self.start = {}, now


def peak_bytes() -> int:
    """Returns the peak memory of this process: of the accelerator, with vLLM's share of it, or of the process."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return max(torch.cuda.max_memory_reserved(), total - free)
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def measure(name: str, num_steps: int, options: list[str]) -> dict[str, Any]:
    """Trains some rollout steps, and returns what each took."""
    if "--config" not in options:
        options = ["--config", str(DEFAULT_RECIPE), *options]
    parser = TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig))
    with tempfile.TemporaryDirectory() as folder:
        forced = ["--output_dir", folder, "--save_strategy", "no", "--eval_on_start", "false"]
        script_args, args, model_args = parser.parse_args_and_config([*options, *forced])
        args.max_steps = (1 + num_steps) * args.num_updates_per_batch
        if name == "GRPO":
            args.epsilon_high = None
        args.model_init_kwargs = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
        train_dataset = load_problems(script_args).train
        meter = Meter(args.num_updates_per_batch)
        trainer = TRAINERS[name](
            model=model_args.model_name_or_path,
            args=args,
            reward_funcs=[get_reward(reward) for reward in script_args.reward_names],
            train_dataset=train_dataset,
            peft_config=get_peft_config(model_args),
            callbacks=[meter],
        )
        trained: list[int] = []
        finish = trainer._generate_and_score_completions

        def count(inputs: Any) -> Any:
            output = finish(inputs)
            trained.append(int(output["completion_mask"].sum()))
            return output

        trainer._generate_and_score_completions = count
        with meter.watching():
            trainer.train()
    steps = [step | {"trained_tokens": tokens} for step, tokens in zip(meter.steps, trained, strict=True)]
    return {"peak_bytes": peak_bytes(), "bf16": bool(args.bf16), "steps": steps[1:]}


def table(record: dict[str, Any]) -> str:
    """Returns what each model and trainer took: medians over rollout steps."""
    lines = [
        "| model | trainer | rollout step, s | sampling, tokens/s | training, tokens/s | trained / sampled tokens | peak, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, entry in record.items():
        for name, of in entry["trainers"].items():
            sums = {key: sum(step[key] for step in of["steps"]) for key in of["steps"][0]}
            training = sums["seconds"] - sums["sampling"] - sums["grading"]
            lines.append(
                f"| {model} | {name} | {statistics.median(step['seconds'] for step in of['steps']):.2f} | "
                f"{sums['sampled_tokens'] / sums['sampling']:,.0f} | {sums['trained_tokens'] / training:,.0f} | "
                f"{sums['trained_tokens'] / sums['sampled_tokens']:.2f} | {of['peak_bytes'] / 1e9:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measures both trainers, or prints the stored table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--num_rollout_steps", type=int, default=8, help="rollout steps that count")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--markdown", action="store_true", help="print the table of the JSON and run nothing")
    parser.add_argument("--worker", choices=TRAINERS, help=argparse.SUPPRESS)
    args, options = parser.parse_known_args()
    if args.worker:
        args.output.write_text(json.dumps(measure(args.worker, args.num_rollout_steps, options)))
        return
    record = json.loads(args.output.read_text()) if args.output.exists() else {}
    if not args.markdown:
        if not torch.cuda.is_available() and args.output == RESULTS:
            sys.exit("There is no GPU, and gpu.json is for what one measured. Give --output to try it on the CPU.")
        trainers = {}
        for name in TRAINERS:
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder, "figures.json")
                command = [sys.executable, __file__, "--worker", name, "--output", str(output)]
                command += ["--num_rollout_steps", str(args.num_rollout_steps), *options]
                subprocess.run(command, check=True)
                trainers[name] = json.loads(output.read_text())
        script_args, _, model_args = TrlParser(
            (TrainingScriptArguments, DAPOConfig, ModelConfig)
        ).parse_args_and_config(options if "--config" in options else ["--config", str(DEFAULT_RECIPE), *options])
        record[Path(str(model_args.model_name_or_path)).name] = {
            **provenance(),
            **({"hardware": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
            "dataset": Path(str(script_args.dataset_name)).name,
            "options": [option for option in options if not option.startswith("/")],
            "trainers": trainers,
        }
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
