"""The quickstart itself, as a newcomer runs it. Minutes long, so only `make test-slow` runs it."""

import json
import os
import subprocess
import sys

import pytest
from checkout import ROOT


pytestmark = pytest.mark.slow


def launch(output_dir, num_ranks, *overrides):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    launcher += ["--dynamo_backend", "no", "--num_processes", str(num_ranks)]
    # `accelerate launch --cpu --num_processes 2` would start one process.
    launcher += ["--multi_gpu"] if num_ranks > 1 else ["--cpu"]
    recipe = ROOT / "examples" / "recipes" / "quickstart.yaml"
    script = [str(ROOT / "examples" / "dapo_gsm8k.py"), "--config", str(recipe), "--output_dir", str(output_dir)]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "CI": "1",
        "PYTHONPATH": str(ROOT),
    }
    finished = subprocess.run(
        [*launcher, *script, *overrides], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((output_dir / "results.json").read_text()), finished.stdout


def test_quickstart_raises_accuracy_by_25_points_and_leaves_what_it_says(tmp_path):
    results, printed = launch(tmp_path, 1)
    assert results["accuracy_after"] - results["accuracy_before"] >= 0.25
    assert 0.2 < results["rollout_efficiency"] < 1
    for name in ("model.safetensors", "tokenizer.json", "README.md", "curves.png", "run_facts.json"):
        assert (tmp_path / name).exists()
    assert "trained with [DAPO]" in (tmp_path / "README.md").read_text()
    assert str(tmp_path / "curves.png") in printed


def test_quickstart_runs_on_two_ranks(tmp_path):
    results, printed = launch(tmp_path, 2, "--per_device_train_batch_size", "64", "--max_steps", "5")
    assert results["accuracy_after"] > 0
    assert "'dapo/moved_bytes'" in printed
