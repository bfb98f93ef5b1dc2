"""
Is the step that is taken the gradient of the paper's loss, whatever the batch is cut into? Ours, and TRL's as it is.

    python benchmarks/split_invariance.py        # about 5 minutes on 2 cores; writes benchmarks/split_invariance.json
    python benchmarks/split_invariance.py --short --output FILE     # two of the shapes, a minute

The tiny model of the tests trains on scripted completions with SGD, 16 completions an optimizer step, cut into ranks x
micro-batch x accumulation, one to four optimizer steps a generation batch. The gradient of every step is compared with
that of DAPO Eq. 8 over the rows of that step, computed in float64 by loops over tokens (`tests/paper.py`). Printed is the
largest deviation of any parameter in any step, relative to the largest entry of the gradient. TRL's `loss_type="dapo"` and
`loss_normalization="batch"` are compared with Eq. 12's denominator, `"group"` with a mean over groups.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from paper import StepRecorder, gradient_error, paper_gradient  # noqa: E402
from provenance import provenance  # noqa: E402
from tiny import numbered_prompts, tiny_model, tiny_tokenizer, training_arguments  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from two_ranks import ScriptedTrainer, correct  # noqa: E402

from trl_dapo import DAPOConfig, DAPOTrainer  # noqa: E402


RESULTS = Path(__file__).with_name("split_invariance.json")
# Ranks, micro-batch, accumulation, optimizer steps per generation batch.
SHAPES = [
    (1, 16, 1, 1),
    (1, 8, 2, 1),
    (1, 4, 4, 1),
    (1, 1, 16, 1),
    (2, 8, 1, 1),
    (2, 2, 4, 1),
    (1, 16, 1, 2),
    (1, 4, 4, 2),
    (2, 4, 2, 2),
    (1, 16, 1, 4),
    (1, 4, 4, 4),
    (2, 2, 4, 4),
]
SHORT = [(2, 2, 4, 1), (1, 4, 4, 4)]
ARMS = {
    "batch": (DAPOTrainer, {"loss_normalization": "batch"}),
    "group": (DAPOTrainer, {"loss_normalization": "group"}),
    "TRL": (GRPOTrainer, {}),
}


def work(arm: str, shape: list[int], folder: str) -> None:
    """Trains one arm in one shape on this rank and writes its steps."""
    trainer_class, overrides = ARMS[arm]
    _, micro_batch, accumulation, num_updates = shape
    is_ours = trainer_class is DAPOTrainer
    # Without dynamic sampling, so that all arms train the same batches.
    overrides = overrides | ({"dynamic_sampling": False, "soft_punish_cache": 0} if is_ours else {})
    generate = {"script": staticmethod(ScriptedTrainer.script)}
    generate["_generate_single_turn"] = ScriptedTrainer._generate_single_turn
    scripted = type("Scripted", (StepRecorder, trainer_class), generate)
    options = training_arguments(
        folder,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation * num_updates,
        max_steps=2 * num_updates,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        epsilon_high=0.28,
    )
    trainer = scripted(
        model=tiny_model(),
        reward_funcs=correct,
        args=(DAPOConfig if is_ours else GRPOConfig)(**options, **overrides),
        train_dataset=numbered_prompts(61),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    torch.save(trainer.steps, Path(folder, f"rank{trainer.accelerator.process_index}.pt"))


def measure(arm: str, shape: tuple[int, ...]) -> float:
    """Returns the largest deviation over the steps of one run."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(shape[0])]
        command = [*launcher, __file__, "--worker", arm, json.dumps(shape), folder]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CI": "1"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        ranks = [torch.load(path, weights_only=True) for path in sorted(Path(folder).glob("rank*.pt"))]
    deviations = []
    for parts in zip(*ranks, strict=True):
        before, _, gradient = parts[0]
        rows = [row for _, rank_rows, _ in parts for row in rank_rows]
        deviations.append(gradient_error(gradient, paper_gradient(before, rows, by_group=arm == "group")))
    return max(deviations)


def main() -> None:
    """Measures every arm in every shape and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--worker", nargs=3, metavar=("ARM", "SHAPE", "FOLDER"))
    parser.add_argument("--short", action="store_true", help="two of the shapes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.worker:
        arm, shape, folder = args.worker
        work(arm, json.loads(shape), folder)
        return
    print(f"| ranks x micro-batch x accumulation, steps | {' | '.join(ARMS)} |\n|---|{'---|' * len(ARMS)}")
    rows = []
    for shape in SHORT if args.short else SHAPES:
        deviations = {arm: measure(arm, shape) for arm in ARMS}
        rows.append({"shape": shape} | deviations)
        ranks, micro_batch, accumulation, num_updates = shape
        cells = " | ".join(f"{deviation:.1e}" for deviation in deviations.values())
        print(f"| {ranks} x {micro_batch} x {accumulation}, {num_updates} | {cells} |", flush=True)
    args.output.write_text(json.dumps(provenance() | {"largest_relative_deviation": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
