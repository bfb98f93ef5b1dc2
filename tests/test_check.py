"""`trl-dapo check`: its arithmetic, its verdicts, and what it leaves alone."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from checkout import ROOT
from datasets import Dataset
from test_readme import write_counting_model
from transformers import Qwen2Config

from trl_dapo.command_line import check, main, option_check
from trl_dapo.command_line.launcher import TRIAL_MARK
from trl_dapo.command_line.preflight import arithmetic, machine, outcome
from trl_dapo.command_line.preflight.arithmetic import KNOWN_SIZES, BatchPlan, run_hours
from trl_dapo.command_line.preflight.lines import (
    Line,
    Verdict,
    batch_lines,
    exit_status,
    fault,
    find_secrets,
    public_text,
)
from trl_dapo.command_line.preflight.trial import Notes, checksum


GB = 10**9
QWEN_7B = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", TRIAL_MARK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(option_check, "_has_vllm", lambda: True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_counting_model(tmp_path_factory.mktemp("counting") / "model")


@pytest.fixture
def options(model, tmp_path):
    """A model that says one of five numbers or three other words, on 40 problems; the answer is a number it may say."""
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data", [{"question": "4 5", "answer": f"#### {number % 3 + 1}"} for number in range(40)])
    options = {"model_name_or_path": model, "dataset_name": tmp_path / "data", "use_cpu": "true", "bf16": "false"}
    options |= {
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "steps_per_generation": 2,
        "max_steps": 100,
        "overlap": False,
    }
    options |= {"max_completion_length": 1, "soft_punish_cache": 1, "prompt_template": "plain"}
    return options | {"gradient_checkpointing": "false", "output_dir": tmp_path / "mine"}


def write_rows(folder, rows):
    Dataset.from_list(rows).to_json(folder / "train.jsonl")
    Dataset.from_list([{"question": "5 4", "answer": "#### 1"}]).to_json(folder / "test.jsonl")


def as_arguments(options):
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def run_check(monkeypatch, capsys):
    """Runs the command, with the processes of its short run in this process. Returns status and what it printed."""

    def start(self, trial):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(TRIAL_MARK, json.dumps(asdict(trial)))
            try:
                main(["check", *self.arguments])
            except (Exception, SystemExit):
                return 1
        return 0

    def run(options):
        monkeypatch.setattr(check._Check, "_start", start)
        with pytest.raises(SystemExit) as ended:
            main(["check", *as_arguments(options)])
        return ended.value.code, capsys.readouterr().out

    return run


def verdicts(printed):
    """Returns the verdict of each line of a printed table."""
    words = [verdict.value for verdict in Verdict]
    rows = [(line[:16].strip(), line[17:30].strip()) for line in printed.splitlines()]
    return {point: verdict for point, verdict in rows if point and verdict in words}


# Arithmetic


def write_qwen(folder):
    Qwen2Config(**QWEN_7B).save_pretrained(folder)
    return str(folder)


def test_parameters_are_counted_from_the_configuration_alone(tmp_path):
    values = {"model_name_or_path": write_qwen(tmp_path), "use_peft": None}
    found = machine.measure_model(values)
    attention = 2 * 3584 * 3584 + 3584 + 2 * (3584 * 512 + 512)
    of_layer = attention + 3 * 3584 * 18_944 + 2 * 3584
    by_hand = 2 * 152_064 * 3584 + 28 * of_layer + 3584
    assert found.size.num_parameters == found.num_trained == by_hand == 7_615_616_512
    # 2 x 28 layers x 4 heads x 128 x 2 bytes.
    assert found.size.cache_bytes() == KNOWN_SIZES["Qwen/Qwen2.5-7B"].cache_bytes() == 56 * 1024
    lora = machine.measure_model(values | {"use_peft": "true", "lora_r": 32})
    # On queries and values: 32 x (in + out) of each.
    assert lora.num_trained == 28 * 32 * (3584 + 3584 + 3584 + 512)
    assert machine._lora_share({"lora_r": 32}, KNOWN_SIZES["Qwen/Qwen2.5-7B"]) == lora.num_trained


def plan_of(world=1, device=80 * GB, **changes):
    values = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "steps_per_generation": None,
        "generation_batch_size": 2048, "max_completion_length": 8192, "num_generations": 16, "num_iterations": 1,
        "dtype": "bfloat16", "optim": None, "load_in_4bit": None, "load_in_8bit": None, "use_vllm": True,
        "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4, "vllm_tensor_parallel_size": 1,
        "vllm_engine_kwargs": None, "vllm_enable_sleep_mode": True, "bf16": True, "fp16": False,
        "gradient_checkpointing": True,
    } | changes  # fmt: skip
    size = KNOWN_SIZES["Qwen/Qwen2.5-7B"]
    trained = values.pop("num_trained", size.num_parameters)
    return arithmetic.memory_plan(values, BatchPlan.of(values, world), size, trained, world, device)


def test_memory_of_a_gpu_by_hand():
    sharded = plan_of(world=8)
    assert sharded.state_bytes == 16 * 7.616e9 / 8
    assert sharded.activation_bytes == 2 * 8492 * 3584 * (2 * 28 + 34)
    # vLLM sleeps while activations are held, and its share is the larger one: the 47 GB of docs/recipes.md.
    assert sharded.peak_bytes == 16 * 7.616e9 / 8 + 32 * GB
    # In bfloat16 on one GPU: 2 bytes each for weights, gradients and two moments.
    assert plan_of().state_bytes == 8 * 7.616e9
    assert plan_of(dtype="float32").state_bytes == 16 * 7.616e9
    assert plan_of(dtype="float32", optim="adamw_bnb_8bit").state_bytes == 10 * 7.616e9
    # LoRA: weights in 4 bits, and 16 bytes for each of the adapter's own.
    assert plan_of(num_trained=1e8, load_in_4bit=True).state_bytes == 0.5 * 7.616e9 + 16e8
    awake = plan_of(vllm_enable_sleep_mode=False)
    assert awake.peak_bytes == awake.state_bytes + awake.activation_bytes + 32 * GB
    # transformers: the cache of 1,024 micro-batches of 2 rows, in float32.
    cached = plan_of(use_vllm=False, dtype="float32", bf16=False)
    assert cached.sampler_bytes == 2048 * 8492 * 2 * 28 * 4 * 128 * 4
    assert cached.activation_bytes == 2 * sharded.activation_bytes
    # (0.4 x 80e9 - weights) / cache of a token.
    assert sharded.cached_tokens == (32 * GB - 2 * 7.616e9) / 57_344


def test_proposals_fit_and_sharding_names_the_fewest_gpus():
    found = arithmetic.proposals(plan_of(), 80 * GB, has_gpu=True)
    # 16 bytes a parameter over 2 GPUs and 32 GB of vLLM are 93 GB, over 4 they are 62.
    assert "--accelerate_config fsdp2 --num_processes 4, on so many GPUs" in found
    assert any(change.startswith("--use_peft true") for change in found)
    assert arithmetic.proposals(plan_of(), 20 * GB, has_gpu=False) == ["a smaller model, or a machine with GPUs"]
    deep = plan_of(gradient_checkpointing=False, vllm_enable_sleep_mode=False, dtype="float32", world=8)
    # 15 + 58 + 32 GB: activations are the largest part.
    assert "--gradient_checkpointing true" in arithmetic.proposals(deep, 80 * GB, has_gpu=True)


def test_batch_of_a_short_run_is_legal_and_keeps_the_micro_batch():
    full = BatchPlan(16, rows=2, accumulation=8, slices=128, world=8, length=8192)
    assert (full.num_completions, full.num_updates) == (2048, 16)
    small = full.smallest()
    assert (small.rows, small.slices, small.accumulation, small.num_updates) == (2, 2, 2, 1)
    for rows, world, generations in [(16, 1, 8), (3, 1, 8), (128, 1, 8), (5, 3, 6), (1, 1, 16)]:
        plan = BatchPlan(generations, rows, 4, 1000, world, 64).smallest()
        assert plan.num_completions % generations == 0
        assert plan.num_completions >= 2 * generations
        fewer = [rows * world * slices for slices in range(1, plan.slices)]
        assert not [count for count in fewer if count % generations == 0 and count >= 2 * generations]
    assert replace(full, slices=2).smallest() == replace(full, slices=2)


def test_hours_are_scaled_by_completions_and_by_optimizer_steps():
    full = BatchPlan(16, rows=2, accumulation=8, slices=128, world=8, length=8192)
    # 200 batches of 64 x 10 s, and 3,200 optimizer steps of 4 x 2 s.
    assert run_hours(full, full.smallest(), 3200, 10, 2) == pytest.approx((200 * 640 + 3200 * 8) / 3600)


# Verdicts


LOG = {
    "loss": 0.1,
    "grad_norm": 0.3,
    "dapo/acceptance_rate": 0.5,
    "dapo/frac_all_wrong": 0.25,
    "dapo/prompts_drawn": 16,
}
LOG |= {"dapo/frac_all_correct": 0.25, "completions/clipped_ratio": 0.1, "completions/mean_length": 80.0}


@pytest.mark.parametrize(
    ("changes", "point", "verdict", "advice"),
    [
        ({}, "acceptance", Verdict.OK, "50% of 16 groups"),
        ({"loss": float("nan")}, "optimizer steps", Verdict.BROKEN, "step 1 is not finite"),
        ({"grad_norm": float("inf")}, "optimizer steps", Verdict.BROKEN, "step 1 is not finite"),
        ({"dapo/frac_non_finite_steps": 1.0}, "optimizer steps", Verdict.BROKEN, "Lower learning_rate"),
        ({"dapo/acceptance_rate": 0, "dapo/frac_all_wrong": 1}, "acceptance", Verdict.BROKEN, "too hard, or answers are"),
        ({"dapo/acceptance_rate": 0, "dapo/frac_all_correct": 1}, "acceptance", Verdict.BROKEN, "too easy"),
        ({"dapo/acceptance_rate": 0.1, "dapo/frac_unscorable": 0.9}, "acceptance", Verdict.SLOW, "trl-dapo grade"),
        ({"dapo/acceptance_rate": 0, "dapo/prompts_drawn": 4}, "acceptance", Verdict.SLOW, "too hard"),
        ({"completions/clipped_ratio": 0.8}, "truncation", Verdict.SLOW, "Raise max_completion_length"),
    ],
)  # fmt: skip
def test_batch_is_judged_by_its_log_line(changes, point, verdict, advice):
    (line,) = (line for line in batch_lines([LOG | changes]) if line.point == point)
    assert line.verdict == verdict
    assert advice in line.text


@pytest.mark.parametrize(
    ("error", "code", "verdict", "advice"),
    [
        (("OutOfMemoryError", "CUDA out of memory. Tried"), 1, Verdict.WILL_NOT_FIT, "Lower per_device_train_batch_size"),
        (("", ""), -9, Verdict.WILL_NOT_FIT, "the host's memory ran out"),
        (("", ""), -11, Verdict.BROKEN, "status -11"),
        (("StaleEngineError", "The vLLM engine does not"), 1, Verdict.BROKEN, "StaleEngineError: The vLLM engine"),
        (("NonFiniteGradientError", "NaN."), 1, Verdict.BROKEN, "Lower learning_rate"),
    ],
)  # fmt: skip
def test_error_of_a_short_run_is_judged(error, code, verdict, advice):
    line = fault("step 1", *error, code)
    assert line.verdict == verdict
    assert advice in line.text
    assert exit_status([Line("devices", Verdict.SLOW, ""), line]) == 1


VALUES = {"use_vllm": False, "vllm_mode": "server", "refill": "rounds", "vllm_enable_sleep_mode": False}
VALUES |= {"vllm_engine_kwargs": None, "vllm_max_logp_gap": 0.5, "max_steps": 100, "overlap": False}


def test_run_that_is_ended_says_where_it_was():
    notes = Notes(stage="step 1", loaded=3.0)
    lines = outcome.run_lines([notes], None, VALUES, 5, 5.0)
    assert lines[-1].verdict == Verdict.SLOW
    assert "ended after 5 minutes at: step 1 (5 steps were to be taken)" in lines[-1].text
    assert exit_status(lines) == 0


def test_process_that_failed_first_is_named_and_not_those_that_waited_for_it():
    waiting = Notes(0, 2, error={"kind": "RankFailedError", "message": "rank 1 failed"})
    broken = Notes(1, 2, stage="step 2", error={"kind": "KeyError", "message": "'gold'"})
    line = outcome.run_lines([waiting, broken], 1, VALUES, 5, 5.0)[-1]
    assert (line.point, line.text) == ("process 1, step 2", "KeyError: 'gold'")


def test_weights_that_stay_as_they_are_at_a_learning_rate_are_a_fault():
    same = {"begin": "a", "end": "a"}
    logs = [LOG | {"learning_rate": 1e-6}]
    found = outcome.run_lines([Notes(loaded=1.0, logs=logs, seconds=[1.0], checksums=same)], 0, VALUES, 2, 5.0)
    assert "--dtype float32" in next(line.text for line in found if line.point == "weights")
    warming = [LOG | {"learning_rate": 0.0}]
    found = outcome.run_lines([Notes(loaded=1.0, logs=warming, seconds=[1.0], checksums=same)], 0, VALUES, 2, 5.0)
    assert "weights" not in [line.point for line in found]


def test_weight_sync_is_shown_with_the_options_of_the_engine():
    values = VALUES | {"use_vllm": True, "vllm_mode": "colocate", "vllm_engine_kwargs": '{"kv_cache_dtype": "fp8"}'}
    logs = [LOG | {"dapo/vllm/logp_gap": 0.01}, LOG | {"dapo/vllm/logp_gap": 0.0234}]
    (line,) = (
        line for line in outcome.run_lines([Notes(loaded=1.0, logs=logs)], 0, values, 2, 5.0) if "sync" in line.point
    )
    assert "0.0234 nats a token from the trainer's in 2 comparisons" in line.text
    assert "kv_cache_dtype" in line.text


def notes_of(end, **log):
    return [Notes(logs=[LOG | log], checksums={"begin": "a", "end": end})]


def test_restart_is_compared_to_the_bit():
    run = notes_of("b", step_time=1.0)
    assert "to the bit" in outcome.restart_line(run, notes_of("b", step_time=2.0), VALUES, False).text
    other = outcome.restart_line(run, notes_of("c", loss=0.1000001), VALUES, False)
    assert other.verdict == Verdict.BROKEN
    assert "differs in loss" in other.text
    engine = outcome.restart_line(
        notes_of("b", num_tokens=9), notes_of("c", num_tokens=8), VALUES | {"use_vllm": True}, False
    )
    assert engine.verdict == Verdict.OK
    assert "not to the bit: engine. vLLM sampled other completions" in engine.text


def test_speed_and_hours_by_hand():
    batch = BatchPlan(8, rows=16, accumulation=1, slices=2, world=1, length=64)
    first, last = ({"dapo/seconds_sampling": seconds, "loss": 0.1} for seconds in (9.0, 4.0))
    tokens = {"dapo/tokens/trained": 600.0, "dapo/rollout_efficiency": 0.75}
    # The second step trains alone, the third one samples for 4 s and trains for 2: 3 s on average.
    notes = Notes(seconds=[15.0, 4.0, 6.0], logs=[first | tokens, {"loss": 0.1}, last | tokens])
    speed, hours = outcome.speed_lines(notes, batch, batch, VALUES)
    # 600 / 0.75 tokens in 4 s; 600 tokens in 2 steps of 3 s.
    assert speed.text.startswith(
        "200 tokens sampled a second, 100 trained; 4.00 s to sample a batch of 32 completions, 3.00 s"
    )
    # 50 batches of 4 s and 100 steps of 3 s.
    assert hours.text.startswith("8.3 minutes: max_steps 100, of it 50 batches of 32 completions")
    epochs = outcome.speed_lines(
        replace(notes, num_rows=40), batch, batch, VALUES | {"max_steps": -1, "num_train_epochs": 2}
    )
    # 80 prompts, 4 a batch, 2 optimizer steps on each.
    assert "2 epochs of 40 prompts, 40 optimizer steps, of it 20 batches" in epochs[1].text


def test_overlap_is_the_longer_part_and_says_what_it_is_worth_by_hand():
    servers = VALUES | {"use_vllm": True, "overlap": True}
    # A batch takes 8 s of sampling, of which 2 s are waited for, and 2 steps of 3 s. 50 batches: 400 s instead of 700 s.
    batch = BatchPlan(8, rows=16, accumulation=1, slices=2, world=1, length=64)
    entry = {"dapo/seconds_sampling": 8.0, "dapo/overlap/wait_seconds": 2.0, "loss": 0.1}
    notes = Notes(seconds=[9.0, 5.0, 3.0], logs=[entry, entry, {"loss": 0.1}])
    _, hours, worth = outcome.speed_lines(notes, batch, batch, servers)
    assert hours.text.startswith("6.7 minutes")
    assert worth.verdict == Verdict.OK
    assert "at most 1.75 times faster, and each batch is 2 optimizer steps old" in worth.text
    # Without it the same parts come one after another.
    late = Notes(seconds=[9.0, 11.0, 3.0], logs=[{**entry, "dapo/overlap/wait_seconds": 8.0}] * 2 + [{"loss": 0.1}])
    _, hours, worth = outcome.speed_lines(late, batch, batch, servers | {"overlap": False})
    assert hours.text.startswith("11.7 minutes")
    assert (
        "overlap=False. Sampling the next batch while one trains makes the run at most 1.75 times faster" in worth.text
    )
    # 16 steps on a batch.
    old = BatchPlan(8, rows=16, accumulation=1, slices=16, world=1, length=64)
    worth = outcome.speed_lines(notes, old, old, servers)[-1]
    assert worth.verdict == Verdict.SLOW
    assert "lower steps_per_generation so that a batch has at most 4, or set overlap=False" in worth.text


def test_secrets_and_paths_are_not_in_a_text_for_an_issue():
    text = "hf_abcdefghijk at /home/me/runs/x.yaml and /data/secret/place/model http://me:pw@host/v1, w0secret; rel/path.yaml a/b"
    secrets = find_secrets({"WANDB_API_KEY": "w0secret", "HF_TOKEN": "1"}, {"eos_token": "never mind"})
    assert secrets == ["w0secret"]
    public = public_text(text, secrets, home="/home/me")
    assert public == "*** at ~/runs/x.yaml and model http://host/v1, ***; rel/path.yaml a/b"


def test_checksum_sees_every_bit_and_every_type():
    import torch

    layer = torch.nn.Linear(3, 3, dtype=torch.bfloat16)
    before = checksum(layer)
    assert checksum(layer) == before
    with torch.no_grad():
        for parameter in layer.parameters():
            bits = parameter.view(torch.int16)
            for number in range(bits.numel()):
                bits.view(-1)[number] += 1
                assert checksum(layer) != before
                bits.view(-1)[number] -= 1


# The command


def test_check_of_a_run_that_works_and_touches_nothing(options, tmp_path, run_check, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "wandb0secret")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    risky = {"push_to_hub": "true", "hub_model_id": "me/x", "report_to": "wandb", "hub_token": "hf_0123456789abc"}
    risky |= {
        "model_init_kwargs": '{"token": "init-0-secret"}',
        "vllm_engine_kwargs": '{"hf_token": "engine-0-secret"}',
    }
    risky |= {"eval_on_start": "true", "save_strategy": "best", "load_best_model_at_end": "true"}
    code, printed = run_check(options | risky)
    found = verdicts(printed)
    assert {"loading", "optimizer steps", "acceptance", "peak memory", "restart", "speed", "time"} <= found.keys(), (
        printed
    )
    assert code == 0
    assert set(found.values()) <= {"ok", "slow"}
    assert "the same in a new process: weights and log line, to the bit" in " ".join(printed.split())
    assert "per_device_train_batch_size=16" in printed
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    for secret in (str(tmp_path), "hf_0123", "wandb0secret", "me/x", "init-0-secret", "engine-0-secret"):
        assert secret not in printed


def test_recipe_that_will_not_fit_is_refused_with_the_arithmetic_and_nothing_is_started(
    run_check, monkeypatch, capsys
):
    monkeypatch.setattr(machine, "_host_memory", lambda: 24 * GB)
    monkeypatch.setattr(check._Check, "_short_run", lambda *_: pytest.fail("it was started"))
    monkeypatch.setattr(machine, "require_local_or_hub", _unreachable)
    code, printed = run_check({"config": "dapo_math_qwen2.5_7b", "use_cpu": "true"})
    assert code == 1
    assert verdicts(printed)["memory"] == "will not fit"
    flat = " ".join(printed.split())
    assert "15.2 GB weights: 7.616e+09 parameters x 2 bytes" in flat
    assert "30.5 GB optimizer: 7.616e+09 x 4 bytes" in flat
    assert "What fits:" in flat
    gpu = [("NVIDIA H100", 80 * GB)]
    monkeypatch.setattr(machine.Machine, "here", classmethod(lambda cls, on_cpu: cls(gpu, 8, 512 * GB)))
    code, printed = run_check({"config": "dapo_math_qwen2.5_7b"})
    # 8 bytes a parameter, and vLLM's 32 GB.
    assert f"{8 * 7.616 + 32:.1f} GB of 80.0 GB by arithmetic" in printed
    assert (code, verdicts(printed)["GPU memory"]) == (1, "will not fit")
    assert "--accelerate_config fsdp2 --num_processes 4" in " ".join(printed.split())
    code, printed = run_check({"config": "dapo_math_qwen2.5_7b", "accelerate_config": "fsdp2"})
    assert verdicts(printed)["devices"] == "broken"
    assert "47.2 GB of 80.0 GB" in printed


def _unreachable(*args):
    raise OSError("the Hub did not answer")


def test_model_whose_configuration_cannot_be_read_is_a_line(options, run_check, monkeypatch):
    monkeypatch.setattr(machine, "require_local_or_hub", _unreachable)
    monkeypatch.setattr(check._Check, "_short_run", lambda *_: [])
    code, printed = run_check(options | {"model_name_or_path": "someone/some-model"})
    assert (code, verdicts(printed)["memory"]) == (0, "slow")
    assert "not computed: the model's configuration cannot be read. the Hub did not answer" in " ".join(
        printed.split()
    )


@pytest.mark.parametrize("name", ["model_name_or_path", "dataset_name"])
def test_missing_path_is_a_line(options, run_check, name):
    code, printed = run_check(options | {name: "./nowhere"})
    assert (code, verdicts(printed)["options"]) == (1, "broken")
    assert f"--{name} is './nowhere', which looks like a local path" in " ".join(printed.split())


def test_missing_vllm_is_a_line(options, run_check, monkeypatch):
    monkeypatch.setattr(option_check, "_has_vllm", lambda: False)
    code, printed = run_check(options | {"use_vllm": "true"})
    assert (code, verdicts(printed)["options"]) == (1, "broken")
    assert "vLLM is not installed" in printed


def test_bad_row_is_a_line(options, tmp_path, run_check):
    write_rows(tmp_path / "data", [{"question": "4 5", "answer": "#### 1"}] * 39 + [{"question": " ", "answer": "1"}])
    code, printed = run_check(options)
    assert (code, verdicts(printed)["loading"]) == (1, "broken")
    assert "The training dataset has 1 unusable rows" in " ".join(printed.split())


def test_prompts_beyond_the_positions_of_the_model_are_a_line(options, tmp_path, run_check):
    rows = [{"question": "4 5", "answer": f"#### {number % 3 + 1}"} for number in range(39)]
    write_rows(tmp_path / "data", [*rows, {"question": " ".join("4" * 70), "answer": "#### 1"}])
    _, printed = run_check(options)
    assert verdicts(printed)["prompts"] == "slow"
    assert "a prompt of 70 tokens" in " ".join(printed.split())


def test_run_that_learns_nothing_is_broken(options, tmp_path, run_check):
    write_rows(tmp_path / "data", [{"question": "4 5", "answer": "#### 9"}] * 40)
    code, printed = run_check(options)
    assert (code, verdicts(printed)["acceptance"]) == (1, "broken")
    flat = " ".join(printed.split())
    assert "all wrong 100%. The problems are too hard, or answers are not found" in flat


def test_gradients_that_are_not_finite_are_broken(options, run_check):
    code, printed = run_check(options | {"learning_rate": 1e30})
    assert (code, verdicts(printed)["optimizer steps"]) == (1, "broken")
    assert "Lower learning_rate" in " ".join(printed.split())
    assert "speed" not in verdicts(printed)


def test_wrong_numbers_of_its_own_options_are_refused(options):
    for own, message in ({"steps": 1}, "--steps is 1, but must be 2"), ({"max_minutes": 0}, "must be above 0"):
        with pytest.raises(SystemExit, match=message):
            main(["check", *as_arguments(options | own)])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["itself", "accelerate"])
def test_check_on_two_processes(options, tmp_path, launcher):
    if launcher == "itself":
        command = [sys.executable, "-m", "trl_dapo", "check", "--num_processes", "2"]
    else:
        command = [shutil.which("accelerate", path=os.path.dirname(sys.executable)), "launch", "--multi_gpu"]
        command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", "-m", "trl_dapo", "check"]
    few = options | {"per_device_train_batch_size": 8}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run([*command, *as_arguments(few)], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-3000:]
    assert verdicts(finished.stdout)["processes"] == "ok"
    assert "2 of 2 sampled and took optimizer steps" in finished.stdout
    assert verdicts(finished.stdout)["restart"] == "ok"
    assert not (tmp_path / "mine").exists()
