"""Real vLLM servers on the CPU, started by `trl-dapo serve`: they train the groups of a colocated engine, token by token."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from launched import environment, run_two_ranks
from test_streaming import CollectingTrainer, trained_groups
from tiny_engine import OPTIONS, exact_logps, make_trainer, merged_copy, save_model

from trl_dapo.config.server_address import TOKEN_VARIABLE
from trl_dapo.sampling.prompt_stream import SequenceKey


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

# Of each comparison. 20 take minutes more: NUM_BATCHES=20.
NUM_BATCHES = int(os.environ.get("NUM_BATCHES", "6"))
TOKEN = "a long random text"


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, tied=True)
    return folder


@pytest.fixture(scope="module")
def addresses(model_folder, tmp_path_factory):
    """Two servers with different numbers of slots. The first use waits for them."""
    ports, started = free_ports(2), []
    log = tmp_path_factory.mktemp("logs")
    for port, slots in zip(ports, ("32", "7"), strict=True):
        command = [sys.executable, "-m", "trl_dapo", "serve", str(model_folder), "--port", str(port)]
        command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "64", "--max-num-seqs", slots]
        with open(log / f"{port}.log", "w") as output:
            started.append(
                subprocess.Popen(
                    command,
                    env=environment() | {TOKEN_VARIABLE: TOKEN},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN_VARIABLE, TOKEN)
        try:
            yield [f"http://127.0.0.1:{port}" for port in ports]
        finally:
            for process in started:
                os.killpg(process.pid, signal.SIGTERM)
            for process in started:
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


SHORT = {
    "dynamic_sampling": True,
    "max_steps": NUM_BATCHES,
    "per_device_train_batch_size": 16,
    "steps_per_generation": 1,
    "max_prompts_per_round": 12,
    "max_completion_length": 10,
    "soft_punish_cache": 2,
    "learning_rate": 2e-3,
    "refill": "stream",
    # It holds the engine's rounding, which hangs on what else is decoded.
    "vllm_importance_sampling_correction": False,
}


def train_on(addresses, folder, model_folder, cls=CollectingTrainer, **overrides):
    """Trains on servers, or with an engine in this process where there are none."""
    options = {"vllm_engine_kwargs": OPTIONS}
    if addresses:
        options = {"vllm_mode": "server", "vllm_server_base_url": ",".join(addresses), "vllm_engine_kwargs": None}
    trainer = make_trainer(folder, model_folder, cls=cls, **(SHORT | options | overrides))
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def colocated(addresses, model_folder, tmp_path_factory):
    """Batches with vLLM in the same process, sampled while the servers start."""
    trainer = train_on([], tmp_path_factory.mktemp("colocated"), model_folder)
    assert len(trainer.collected) == NUM_BATCHES
    assert all(batch.ledger.num_missing == 0 for _, batch in trainer.collected)
    return trainer


def assert_same_groups(trainer, other):
    assert len(trainer.collected) == len(other.collected)
    for (_, batch), (_, its) in zip(trainer.collected, other.collected, strict=True):
        assert trained_groups(batch) == trained_groups(its)
        torch.testing.assert_close(batch.rewards, its.rewards, equal_nan=True)


@pytest.mark.supports("vllm_server", "stream")
@pytest.mark.parametrize("refill", ["stream", "rounds"])
def test_server_trains_the_groups_of_a_colocated_engine_with_exact_log_probabilities(
    addresses, colocated, model_folder, tmp_path, refill
):
    trainer = train_on(addresses[:1], tmp_path, model_folder, refill=refill)
    assert_same_groups(trainer, colocated)
    for policy, batch in trainer.collected:
        for rollout in batch.rollouts:
            exact = exact_logps(policy, rollout.prompt_ids.tolist(), rollout.completion_ids.tolist())
            assert (rollout.sampling_logps - exact).abs().max() < 1e-4
    # The weights moved, and each server was asked for them.
    first = trainer.collected[0][0]
    assert (exact_logps(first, [3], [4, 5]) - exact_logps(trainer.collected[-1][0], [3], [4, 5])).abs().max() > 0.01
    for name in ("dapo/vllm/server_logp_gap", "dapo/vllm/logp_gap"):
        gaps = [entry[name] for entry in trainer.state.log_history if name in entry]
        assert len(gaps) == NUM_BATCHES
        assert max(gaps) < 1e-4


@pytest.mark.supports("vllm_server", "stream")
def test_two_servers_train_the_groups_of_a_colocated_engine(addresses, colocated, model_folder, tmp_path):
    before = [completions_of(address) for address in addresses]
    trainer = train_on(addresses, tmp_path, model_folder)
    assert_same_groups(trainer, colocated)
    assert all(completions_of(address) > count for address, count in zip(addresses, before, strict=True))


@pytest.mark.supports("vllm_server", "stream")
@pytest.mark.distributed
def test_two_ranks_on_one_server_and_two_train_the_groups_of_a_colocated_engine(
    addresses, colocated, model_folder, tmp_path
):
    run_two_ranks("two_ranks_on_servers.py", tmp_path, model_folder, ",".join(addresses), max_seconds=50 * NUM_BATCHES)
    for count in (1, 2):
        results = [json.loads((tmp_path / f"{count}-servers-rank{rank}.json").read_text()) for rank in (0, 1)]
        assert [len(result) for result in results] == [NUM_BATCHES] * 2
        for number, (_, batch) in enumerate(colocated.collected):
            rows = [row for result in results for row in result[number]]
            expected = [[rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()] for rollout in batch.rollouts]
            assert sorted(rows) == sorted(expected)


def test_completions_of_groups_that_go_on_keep_the_policies_of_their_tokens(addresses, model_folder, tmp_path):
    trainer = train_on(
        addresses[1:],
        tmp_path,
        model_folder,
        surplus="carry",
        max_completion_length=24,
        soft_punish_cache=8,
        learning_rate=5e-3,
        max_steps=8,
        vllm_importance_sampling_correction=True,
    )
    num_old = 0
    for number, (policy, batch) in enumerate(trainer.collected):
        for rollout, is_filler in zip(batch.rollouts, batch.is_filler, strict=True):
            if is_filler:
                continue
            exact = exact_logps(policy, rollout.prompt_ids.tolist(), rollout.completion_ids.tolist())
            if rollout.old_logps is not None and len(rollout.old_logps):
                length = len(rollout.old_logps)
                num_old += length
                earlier = trainer.collected[number - 1][0]
                ids = rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()
                exact[:length] = exact_logps(earlier, *ids)[:length]
            assert (rollout.sampling_logps - exact).abs().max() < 1e-4
    assert num_old > 0


class BeginningTrainer(CollectingTrainer):
    """Keeps the weights with which each batch begins to be sampled, and where in the stream."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.begun = []
        sampler = self.dynamic_sampler
        begin = sampler._begin

        def begin_and_keep(policy_step, trains_at):
            self.begun.append((merged_copy(self.model), sampler.source.position, trains_at - policy_step))
            begin(policy_step, trains_at)

        sampler._begin = begin_and_keep


@pytest.mark.supports("overlap")
def test_batch_sampled_ahead_is_what_a_run_that_waits_samples_with_its_weights(addresses, model_folder, tmp_path):
    options = {"vllm_importance_sampling_correction": True, "vllm_importance_sampling_mode": "token_truncate"}
    options |= {"per_device_train_batch_size": 8, "steps_per_generation": 2, "learning_rate": 5e-3}
    options |= {"max_steps": 2 * NUM_BATCHES}
    trainer = train_on(addresses[:1], tmp_path, model_folder, cls=BeginningTrainer, overlap=True, **options)
    assert [age for _, _, age in trainer.begun] == [0, *[2] * (NUM_BATCHES - 1)]
    assert len(trainer.collected) == NUM_BATCHES
    options |= {"vllm_mode": "server", "vllm_server_base_url": addresses[0], "vllm_engine_kwargs": None}
    waiting = make_trainer(tmp_path, model_folder, cls=CollectingTrainer, **(SHORT | options))
    for (policy, position, _), (_, batch) in zip(trainer.begun, trainer.collected, strict=True):
        waiting.model.load_state_dict(policy.state_dict())
        waiting._last_loaded_step = None
        waiting.dynamic_sampler.source.seek(position)
        assert trained_groups(waiting.dynamic_sampler.collect(0)) == trained_groups(batch)
        for rollout in batch.rollouts:
            text = rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()
            assert (rollout.sampling_logps - exact_logps(policy, *text)).abs().max() < 1e-4
    # The weights that train the last batch would have said something else of it.
    last, _ = trainer.collected[-1]
    assert (rollout.sampling_logps - exact_logps(last, *text)).abs().max() > 1e-2
    ratios = [entry.get("sampling/importance_sampling_ratio/max", 1.0) for entry in trainer.state.log_history]
    assert max(ratios) > 1.01


def test_withdrawn_requests_end_on_the_server(addresses, model_folder, tmp_path, colocated):
    trainer = train_on(addresses[:1], tmp_path, model_folder, max_steps=1)
    engine = trainer.vllm_generation.requests
    trainer.vllm_generation.generation_kwargs = {"ignore_eos": True, "max_tokens": 50}
    for number in range(8):
        engine.submit(SequenceKey(1000 + number, 0), [3, 4], [])
    deadline = time.monotonic() + 60
    while not all(one.token_ids for one in engine._completions.values()):
        assert time.monotonic() < deadline
        engine.step()
    withdrawn = engine.withdraw(list(engine._completions))
    assert len(withdrawn) == 8
    while metric_of(addresses[0], "vllm:num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert metric_of(addresses[0], "vllm:num_requests_waiting") == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/collective_rpc", "/pause", "/abort_requests", "/metrics"])
def test_server_answers_nobody_without_the_token(addresses, colocated, path):
    request = urllib.request.Request(addresses[0] + path, data=b"{}")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)


def metric_of(address, name):
    request = urllib.request.Request(f"{address}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    text = urllib.request.urlopen(request, timeout=10).read().decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}\S* (\S+)$", text, flags=re.M))


def completions_of(address):
    return metric_of(address, "vllm:request_success_total")
