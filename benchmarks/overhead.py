"""
What `DAPOTrainer` costs beside `GRPOTrainer` for the same work: step time and peak memory, in pairs.

    python benchmarks/overhead.py --pairs 20     # about half an hour on one core; writes benchmarks/overhead.json

Both trainers take turns on the same warmed-up model of the quickstart, with the same seed, on batches of 32 groups of 8
completions and 4 optimizer steps on each. Seconds are CPU seconds of one thread.

- `off`: dynamic sampling, length penalty and exact normalization off, so that both do the same work bit for bit. Ratio of
  whole training time, and of peak memory (each pair member in a process of its own).
- `on`: everything on. Generation and grading are timed and taken out on both sides, and both train equally many completions
  of equal lengths, since a script in place of `generate` writes them: what is left is TRL's scoring and loss on one side,
  and on the other the same with stream, planner, filter, assembly, normalization and diagnostics.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

RESULTS = Path(__file__).with_name("overhead.json")
NUM_STEPS = 12


def work(trainer_name: str, mode: str, model: str, folder: str) -> None:
    """Trains once and prints CPU seconds, those outside of generation and grading, and peak memory, as JSON."""
    from trl import GRPOConfig, GRPOTrainer
    from word_problems import make_problems

    from trl_dapo import DAPOConfig, DAPOTrainer
    from trl_dapo.rewards import accuracy_reward

    outside = [0.0]

    def timed(function):
        def wrapper(*args, **kwargs):
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                outside[0] += time.process_time() - start

        return wrapper

    is_ours = trainer_name == "DAPO"
    options = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "num_generations": 8,
        "per_device_train_batch_size": 64,
        "steps_per_generation": 4,
        "max_steps": NUM_STEPS,
        "max_completion_length": 80,
        "learning_rate": 1e-5,
        "gradient_checkpointing": False,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    if is_ours and mode == "off":
        options |= {"dynamic_sampling": False, "soft_punish_cache": 0, "loss_normalization": "generation_batch"}
    options["epsilon_high"] = 0.28

    # On both sides alike: our trainer comes here for what it samples, not for what it hands back.
    GRPOTrainer._generate = timed(GRPOTrainer._generate)
    GRPOTrainer._calculate_rewards = timed(GRPOTrainer._calculate_rewards)
    trainer = (DAPOTrainer if is_ours else GRPOTrainer)(
        model=model,
        reward_funcs=accuracy_reward,
        args=(DAPOConfig if is_ours else GRPOConfig)(**options),
        train_dataset=make_problems(4000, seed=0),
    )
    if mode == "on":
        script(trainer)
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("RESULT " + json.dumps({"seconds": seconds, "rest": seconds - outside[0], "peak_kib": peak}))


def script(trainer) -> None:
    """
    Replaces generation: of each 8 completions, 40 tokens long, the first four end in the answer and the others do not.

    So every group is informative, and both trainers train completions of one length.
    """
    tokenizer = trainer.processing_class
    filler = tokenizer.convert_tokens_to_ids(["1", "+"])
    box = tokenizer.convert_tokens_to_ids("\\boxed{")
    digits, brace, eos = [*tokenizer.convert_tokens_to_ids(["7", "}"]), tokenizer.eos_token_id]
    seen = {"next": 0}

    def generate(prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs):
        completions = []
        for _ in prompt_ids:
            sample = seen["next"] % num_generations
            seen["next"] += 1
            end = [box, digits, brace, eos] if sample < num_generations // 2 else [digits, digits, digits, eos]
            completions.append((filler * 18) + end)
        return completions, None

    trainer._generate_single_turn = generate

    # Whether a box holds the right answer does not matter here: who boxed anything is right.
    def grade_boxes(completions, **kwargs):
        return [float("boxed" in completion[0]["content"]) for completion in completions]

    trainer.reward_funcs[0] = grade_boxes


def run(trainer_name: str, mode: str, model: str) -> dict[str, float]:
    """Runs one training in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", trainer_name, mode, model, folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"CI": "1"})
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def main() -> None:
    """Runs the pairs and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--worker", nargs=4, metavar=("TRAINER", "MODE", "MODEL", "FOLDER"))
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    from word_problems import prepare_tiny_model

    ratios: dict[str, list[float]] = {"off: CPU seconds": [], "off: peak memory": [], "on: all but sampling": []}
    rest_seconds: dict[str, list[float]] = {"GRPO": [], "DAPO": []}
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder, "tiny-model"))
        prepare_tiny_model(model, seed=0)
        for pair in range(args.pairs):
            order = ("GRPO", "DAPO") if pair % 2 else ("DAPO", "GRPO")
            off = {name: run(name, "off", model) for name in order}
            on = {name: run(name, "on", model) for name in order}
            ratios["off: CPU seconds"].append(off["DAPO"]["seconds"] / off["GRPO"]["seconds"])
            ratios["off: peak memory"].append(off["DAPO"]["peak_kib"] / off["GRPO"]["peak_kib"])
            ratios["on: all but sampling"].append(on["DAPO"]["rest"] / on["GRPO"]["rest"])
            for name in order:
                rest_seconds[name].append(on[name]["rest"] / NUM_STEPS)
    print("| ratio DAPOTrainer / GRPOTrainer | min | median | max |\n|---|---|---|---|")
    for name, values in ratios.items():
        print(f"| {name} | {min(values):.3f} | {statistics.median(values):.3f} | {max(values):.3f} |")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "accelerate")}
    record = {"commit": commit, "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}", "versions": versions}
    record |= {"pairs": args.pairs, "ratios": ratios, "on_rest_seconds_per_step": rest_seconds}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
