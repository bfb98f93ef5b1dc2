"""
What sampling beside training saves, by how long sampling takes against training.

    python benchmarks/overlap.py                          # some seven minutes, hardly any CPU
    python benchmarks/overlap.py --short --output FILE    # one ratio, seconds
    python benchmarks/overlap.py --markdown               # prints the table of the JSON

Everything of the trainer is real: requests over HTTP, weights, grading, losses, optimizer steps, and the threads between them. What
takes time on other hardware is a wait of a set time: a server in a process of its own answers each completion after as many
seconds as its tokens would take, and each optimizer step sleeps. So the machine that runs this adds only its overhead. For each
ratio a run that waits for each batch and one with `overlap=True` train as many batches.

Per batch, without the first and the last: the seconds of the run that waits, split into sampling and everything else, and those of
the run that overlaps, which cannot be less than the longer part.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


# Before torch is imported: two threads on busy cores are slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CI", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from provenance import provenance
from scripted_server import ScriptedServer
from server_training import save_model
from tiny import first_token_reward, numbered_prompts, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer


RESULTS = Path(__file__).with_name("overlap.json")
# Seconds of sampling over those of training.
RATIOS = (0.3, 0.5, 1.0, 2.0, 3.0)
SECONDS_SAMPLING = 3.0
NUM_BATCHES, STEPS_PER_BATCH = 7, 4


class TimedTrainer(DAPOTrainer):
    """Takes a set time for each optimizer step, and notes when each batch begins to train."""

    def __init__(self, *args: Any, seconds_per_step: float, **kwargs: Any):
        self.seconds_per_step = seconds_per_step
        self.collected_at: list[float] = []
        super().__init__(*args, **kwargs)

    def _collect_batch(self, sampler: Any) -> Any:
        batch = super()._collect_batch(sampler)
        self.collected_at.append(time.perf_counter())
        return batch

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        end = time.perf_counter() + self.seconds_per_step
        loss = super()._compute_loss(*args, **kwargs)
        time.sleep(max(0.0, end - time.perf_counter()))
        return loss


def serve(seconds: float) -> None:
    """Serves until the input ends."""
    with ScriptedServer(seconds=seconds, num_slots=256) as served:
        print(served.address, flush=True)
        sys.stdin.read()


def train(address: str, model: str, seconds_training: float, overlap: bool, num_batches: int) -> dict[str, float]:
    """Returns seconds a batch, in all and of sampling, and what of it was hidden."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": address, "refill": "stream",
            "vllm_check_interval": 0, "vllm_importance_sampling_mode": "token_truncate", "overlap": overlap,
            "num_generations": 8, "per_device_train_batch_size": 16, "steps_per_generation": STEPS_PER_BATCH,
            "max_steps": num_batches * STEPS_PER_BATCH, "learning_rate": 1e-3, "num_groups_to_log": 0,
        }  # fmt: skip
        trainer = TimedTrainer(
            model=model,
            reward_funcs=first_token_reward,
            args=DAPOConfig(**training_arguments(folder, **settings)),
            train_dataset=numbered_prompts(280),
            processing_class=tiny_tokenizer(),
            seconds_per_step=seconds_training / STEPS_PER_BATCH,
        )
        trainer.train()
    at, log = trainer.collected_at, trainer.state.log_history

    def logged(name: str) -> float:
        return statistics.mean([line[name] for line in log if name in line][1:] or [0.0])

    return {
        # From the second batch on: the first has nothing to be hidden behind.
        "seconds": (at[-1] - at[1]) / (len(at) - 2),
        "sampling": logged("dapo/seconds_sampling"),
        "hidden": logged("dapo/overlap/hidden"),
        "waited": logged("dapo/overlap/wait_seconds"),
        "idle": logged("dapo/overlap/idle_seconds"),
    }


def compare(address: str, model: str, ratio: float, seconds: float, num_batches: int) -> dict[str, Any]:
    """Trains with and without overlap, with one ratio of sampling to training."""
    waiting, overlapped = (train(address, model, seconds / ratio, overlap, num_batches) for overlap in (False, True))
    longer = max(waiting["sampling"], waiting["seconds"] - waiting["sampling"])
    return {
        "ratio": ratio,
        "waiting": {name: round(waiting[name], 3) for name in ("seconds", "sampling")},
        "overlapped": {name: round(value, 3) for name, value in overlapped.items()},
        "times_faster": round(waiting["seconds"] / overlapped["seconds"], 3),
        "over_longer_part": round(overlapped["seconds"] / longer, 3),
    }


def markdown(record: dict[str, Any]) -> str:
    """Returns the table of the JSON."""
    lines = [
        "| sampling : training | waits, s a batch | of it sampling | overlaps, s a batch | times faster | over the longer part | hidden |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["results"]:
        waiting, overlapped = row["waiting"], row["overlapped"]
        cells = [f"{row['ratio']:g}", f"{waiting['seconds']:.2f}", f"{waiting['sampling']:.2f}"]
        cells += [f"{overlapped['seconds']:.2f}", f"{row['times_faster']:.2f}", f"{row['over_longer_part']:.2f}"]
        cells.append(f"{overlapped['hidden']:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Starts a server, runs each ratio, and stores the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--short", action="store_true", help="one ratio, few and short batches")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--markdown", action="store_true", help="print the table of the JSON and run nothing")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return
    if not args.markdown:
        ratios, seconds, num_batches = ((1.0,), 0.5, 4) if args.short else (RATIOS, SECONDS_SAMPLING, NUM_BATCHES)
        command = [sys.executable, __file__, "--serve", str(seconds)]
        with (
            tempfile.TemporaryDirectory() as folder,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
        ):
            assert server.stdin is not None
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            model = str(save_model(Path(folder)))
            results = [compare(address, model, ratio, seconds, num_batches) for ratio in ratios]
            server.stdin.close()
        facts = {"short": args.short, "batches": num_batches, "steps_per_batch": STEPS_PER_BATCH, "results": results}
        args.output.write_text(json.dumps(facts | provenance(), indent=2) + "\n")
    print(markdown(json.loads(args.output.read_text())))


if __name__ == "__main__":
    main()
