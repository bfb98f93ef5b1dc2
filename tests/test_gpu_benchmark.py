"""The benchmark for GPUs, run on the CPU: it counts what is sampled and trained, and stores nothing that no GPU measured."""

import json
import sys

import pytest
from checkout import ROOT
from datasets import Dataset
from test_readme import write_counting_model


sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu


@pytest.fixture
def options(tmp_path):
    """A model that says one of five numbers or three other words, and 2 optimizer steps on 4 groups of 8 such words."""
    model = write_counting_model(tmp_path / "model")
    rows = [{"question": "4 5", "answer": f"#### {number % 3 + 1}"} for number in range(40)]
    Dataset.from_list(rows).to_json(tmp_path / "train.jsonl")
    held_out = [row | {"question": "5 4"} for row in rows[:4]]
    Dataset.from_list(held_out).to_json(tmp_path / "test.jsonl")
    options = {"model_name_or_path": model, "dataset_name": tmp_path, "use_vllm": "false", "use_cpu": "true"}
    options |= {"bf16": "false", "num_generations": 8, "per_device_train_batch_size": 16, "steps_per_generation": 2}
    options |= {"gradient_accumulation_steps": 1, "max_completion_length": 1, "soft_punish_cache": 1}
    options |= {"prompt_template": "plain", "disable_tqdm": "true"}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


@pytest.mark.bench
def test_both_trainers_are_measured_on_a_tiny_model(options):
    measured = {name: gpu.measure(name, 2, options) for name in gpu.TRAINERS}
    # GRPO samples what it trains; DAPO at least that, in whole groups.
    for step in measured["GRPO"]["steps"]:
        assert (step["sampled_tokens"], step["trained_tokens"]) == (32, 32)
    for step in measured["DAPO"]["steps"]:
        assert step["trained_tokens"] <= 32 <= step["sampled_tokens"]
        assert step["sampled_tokens"] % 8 == 0
    for of in measured.values():
        assert len(of["steps"]) == 2
        assert all(0 < step["sampling"] + step["grading"] < step["seconds"] for step in of["steps"])
        assert of["peak_bytes"] > 10**8


@pytest.mark.slow
def test_program_stores_what_its_two_processes_measured(options, tmp_path, monkeypatch, capsys):
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(output), "--num_rollout_steps", "1", *options])
    gpu.main()
    entry = json.loads(output.read_text())["model"]
    assert [len(entry["trainers"][name]["steps"]) for name in ("GRPO", "DAPO")] == [1, 1]
    assert str(tmp_path) not in output.read_text()
    assert "| model | DAPO |" in capsys.readouterr().out


@pytest.mark.bench
def test_table_by_hand():
    steps = [{"seconds": 10.0, "sampling": 4.0, "grading": 1.0, "sampled_tokens": 400, "trained_tokens": 100}]
    steps.append({"seconds": 12.0, "sampling": 4.0, "grading": 1.0, "sampled_tokens": 800, "trained_tokens": 260})
    record = {"m": {"trainers": {"DAPO": {"steps": steps, "peak_bytes": 5 * 10**9}}}}
    # 1,200 tokens in 8 s; 360 tokens in the 12 s that are neither sampling nor grading.
    assert gpu.table(record).splitlines()[2] == "| m | DAPO | 11.00 | 150 | 30 | 0.30 | 5.00 |"


@pytest.mark.bench
def test_a_cpu_does_not_fill_the_table_of_gpus(monkeypatch):
    if gpu.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="There is no GPU"):
        gpu.main()


def test_documentation_shows_what_a_gpu_measured_or_says_that_none_did():
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    if gpu.RESULTS.exists():
        assert gpu.table(json.loads(gpu.RESULTS.read_text())) in readme
        assert "No GPU was available" not in readme
    else:
        assert "No GPU was available; nothing here was measured on one." in readme
