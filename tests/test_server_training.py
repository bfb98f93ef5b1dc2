"""Training with completions from servers: batches, weights, failures, resume. The servers are scripted, all else is real."""

import json

import pytest
import server_training
import torch
from forked import run_ranks
from peft import LoraConfig
from scripted_server import ModelEngine, ScriptedServer
from server_training import make_trainer, save_model
from tiny import numbered_prompts

from trl_dapo import DAPOConfig
from trl_dapo.errors import StaleEngineError, VLLMServerError


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def served_by(model_folder, **options):
    return ScriptedServer(ModelEngine(model_folder), **options)


def weights_of(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.fixture(scope="module")
def straight(model_folder, tmp_path_factory):
    """Six batches from one server, group by group, in one go."""
    with served_by(model_folder) as served:
        trainer = make_trainer(tmp_path_factory.mktemp("run"), model_folder, [served.address], max_steps=6)
        trainer.train()
        assert len(trainer.batches) == 6
        # The first weights too: the server may have been started with others.
        assert len(served.loaded) == len(set(served.loaded)) == 6
        trainer.asked = served.asked
    return trainer


def test_batches_are_those_of_rounds_and_each_token_has_the_log_probability_of_the_trained_model(
    model_folder, straight, tmp_path
):
    gaps = [entry["dapo/vllm/logp_gap"] for entry in straight.state.log_history if "dapo/vllm/logp_gap" in entry]
    assert len(gaps) == 6
    assert max(gaps) < 1e-5
    gaps = [
        entry["dapo/vllm/server_logp_gap"] for entry in straight.state.log_history if "dapo/vllm/logp_gap" in entry
    ]
    assert max(gaps) < 1e-5
    with served_by(model_folder) as served:
        rounds = make_trainer(tmp_path, model_folder, [served.address], refill="rounds", max_steps=6)
        rounds.train()
        # Each completion of a group is asked for by itself, with its own seed.
        assert len({one["seed"] for one in served.asked[:28]}) == 28
    assert rounds.batches == straight.batches
    assert all(torch.equal(weight, weights_of(rounds)[name]) for name, weight in weights_of(straight).items())


def test_two_servers_train_the_batches_of_one(model_folder, straight, tmp_path):
    with served_by(model_folder) as one, served_by(model_folder, num_slots=3) as other:
        trainer = make_trainer(tmp_path, model_folder, [one.address, other.address], max_steps=6)
        trainer.train()
        assert one.asked
        assert other.asked
        assert one.loaded == other.loaded
    assert trainer.batches == straight.batches


@pytest.mark.fault(
    "a vLLM server restarts with old weights",
    "sampling",
    "noticed; it loads the new ones, and the batches are the same",
)
def test_server_that_restarts_with_old_weights_in_a_batch_loads_the_new_ones(model_folder, straight, tmp_path, caplog):
    with served_by(model_folder, seconds=0.01) as served:
        load = served.engine.load

        def load_and_plan(files):
            load(files)
            if len(served.loaded) == 2:
                served.faults += [None, None, None, "restart"]

        served.engine.load = load_and_plan
        trainer = make_trainer(tmp_path, model_folder, [served.address], max_steps=6)
        trainer.train()
        # The third weights, twice.
        assert [version.split("/")[1] for version in served.loaded] == ["1", "2", "3", "3", "4", "5", "6"]
    assert trainer.batches == straight.batches
    assert "it was started again" in caplog.text


@pytest.mark.fault("the only vLLM server dies", "sampling", "a checkpoint, then `VLLMServerError`; resumes exactly")
def test_run_whose_server_dies_is_saved_and_resumes_as_if_it_had_not(model_folder, straight, tmp_path):
    with served_by(model_folder) as served:
        options = {"vllm_server_timeout": 3.0, "save_strategy": "steps", "save_steps": 100, "max_steps": 6}

        trainer = make_trainer(tmp_path, model_folder, [served.address], **options)
        keep_tokens_at_each_batch(trainer, dies=served, when=lambda held: len(held) == 4)
        with pytest.raises(VLLMServerError, match="has not answered for vllm_server_timeout=3 seconds") as raised:
            trainer.train()
        assert raised.value.__notes__ == [f"The run can be resumed from {tmp_path / 'checkpoint-3'}."]
        served.restart()
        resumed = make_trainer(tmp_path, model_folder, [served.address], **options)
        resumed.train(resume_from_checkpoint=True)
    assert trainer.batches + resumed.batches == straight.batches
    assert all(torch.equal(weight, weights_of(resumed)[name]) for name, weight in weights_of(straight).items())


@pytest.mark.fault(
    "the only vLLM server dies",
    "sampling, with groups that go on",
    "a checkpoint, then `VLLMServerError`; none of the groups is lost",
)
def test_run_with_carried_groups_whose_server_dies_loses_none(model_folder, tmp_path):
    options = {
        "surplus": "carry",
        "vllm_server_timeout": 3.0,
        "save_strategy": "steps",
        "save_steps": 100,
        "max_steps": 12,
        "vllm_importance_sampling_correction": True,
    }
    with served_by(model_folder, seconds=0.05, num_slots=12) as served:
        trainer = make_trainer(tmp_path, model_folder, [served.address], **options)
        held = keep_tokens_at_each_batch(
            trainer, dies=served, when=lambda held: any(any(tokens) for tokens in held[-1].values())
        )
        with pytest.raises(VLLMServerError):
            trainer.train()
        served.restart()
        resumed = make_trainer(tmp_path, model_folder, [served.address], **options)
        found = keep_tokens_at_each_batch(resumed)
        resumed.train(resume_from_checkpoint=True)
    # The batch that failed begins anew with what had been decoded before it.
    assert any(any(tokens) for tokens in held[-1].values())
    assert found[0] == held[-1]
    positions = [position for batch, _ in trainer.batches + resumed.batches for position in batch]
    assert positions == sorted(set(positions))


def keep_tokens_at_each_batch(trainer, dies=None, when=None):
    """Keeps what goes on with each batch; a server dies in the first one that is to be hit."""
    groups = trainer.dynamic_sampler.refill.groups
    begin, held = groups.begin, []

    def begin_and_keep():
        held.append({position: list(map(list, group.token_ids)) for position, group in groups.by_position.items()})
        begin()
        if dies is not None and not dies.is_closed and when(held):
            dies.close()

    groups.begin = begin_and_keep
    return held


@pytest.mark.fault(
    "a vLLM server says that it has loaded weights, and has not", "weight sync", "`StaleEngineError` that names it"
)
def test_server_with_other_weights_stops_the_run_and_is_named(model_folder, tmp_path):
    with served_by(model_folder) as honest, served_by(model_folder) as liar:
        # It says that it has loaded them.
        liar.engine.load = lambda files: None
        trainer = make_trainer(
            tmp_path,
            model_folder,
            [honest.address, liar.address],
            learning_rate=1.0,
            max_steps=6,
            vllm_max_logp_gap=0.25,
        )
        with pytest.raises(StaleEngineError, match=f"vLLM server at {liar.address} does not sample from the weights"):
            trainer.train()
        assert trainer.state.global_step >= 1


def test_evaluation_samples_from_the_servers_too(model_folder, tmp_path):
    with served_by(model_folder) as served:
        trainer = make_trainer(tmp_path, model_folder, [served.address], max_steps=2)
        trainer.eval_dataset = numbered_prompts(8)
        trainer.train()
        before = len(served.asked)
        metrics = trainer.evaluate()
        asked = served.asked[before:]
    # Their places in the stream, of which seeds are made, are those of training alone.
    assert len(asked) == 8 * 4
    assert all("seed" not in one for one in asked)
    assert 0 <= metrics["eval_rewards/first_token_reward/mean"] <= 1


def test_folder_of_the_weights_goes_with_the_trainer(model_folder, tmp_path):
    with served_by(model_folder) as served:
        shared = tmp_path / "weights"
        trainer = make_trainer(tmp_path, model_folder, [served.address], max_steps=2, vllm_weight_folder=str(shared))
        trainer.train()
        (folder,) = shared.iterdir()
        # Those of the last sync, for a server that is started again.
        assert [path.name for path in folder.iterdir() if path.is_dir()] == ["2"]
        trainer.vllm_generation.vllm_client.folder.close()
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "is no address of a server"),
        ("http://a:8000,,http://b:8000", "is no address of a server"),
        ("http://a:8000,http://a:8000/", "has http://a:8000 twice"),
        ("http://user:pass@a:8000", "has a user or a password in it"),
    ],
)
def test_bad_addresses_are_refused_with_the_configuration(url, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        DAPOConfig(
            str(tmp_path), use_cpu=True, bf16=False, use_vllm=True, vllm_mode="server", vllm_server_base_url=url
        )
    assert "pass" not in str(raised.value).replace("password", "")


def test_adapter_reaches_the_server_merged(model_folder, tmp_path):
    with served_by(model_folder) as served:
        adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        trainer = make_trainer(tmp_path, model_folder, [served.address], peft_config=adapter, max_steps=3)
        trainer.train()
        assert len(served.loaded) == 3
    gaps = [
        entry["dapo/vllm/server_logp_gap"]
        for entry in trainer.state.log_history
        if "dapo/vllm/server_logp_gap" in entry
    ]
    assert len(gaps) == 3
    assert max(gaps) < 1e-5


@pytest.mark.distributed
def test_sharded_model_reaches_the_server_whole(model_folder, straight, tmp_path):
    with served_by(model_folder) as served:
        results = train_two_ranks(tmp_path, model_folder, [served], fsdp=True, max_steps=4)
        assert len(served.loaded) == 4
    assert all(result["num_sharded"] > 0 for result in results)
    assert [batch[0] for batch in results[0]["batches"]] == [batch[0] for batch in straight.batches[:4]]


@pytest.mark.distributed
@pytest.mark.parametrize("refill", ["stream", "rounds"])
def test_two_ranks_train_the_batches_of_one(model_folder, straight, tmp_path, refill):
    with served_by(model_folder) as one, served_by(model_folder) as other:
        results = train_two_ranks(tmp_path, model_folder, [one, other], refill=refill, max_steps=6)
        assert one.asked
        assert other.asked
        assert one.loaded == other.loaded
    for number, (positions, rows) in enumerate(straight.batches):
        assert [result["batches"][number][0] for result in results] == [positions] * 2
        trained = [row for result in results for row in result["batches"][number][1]]
        assert sorted(map(str, trained)) == sorted(map(str, map(list, rows)))


@pytest.mark.fault(
    "the vLLM server of two ranks hangs",
    "sampling",
    "both save and end, `VLLMServerError` or `RankFailedError` with the cause",
)
@pytest.mark.distributed
@pytest.mark.parametrize("refill", ["stream", "rounds"])
def test_two_ranks_whose_server_dies_save_and_end_together(model_folder, tmp_path, refill):
    with served_by(model_folder) as served:
        load = served.engine.load

        def load_and_die(files):
            load(files)
            if len(served.loaded) == 2:
                served.faults += ["hang"] * 100

        served.engine.load = load_and_die
        results = train_two_ranks(
            tmp_path, model_folder, [served], refill=refill, max_steps=6, vllm_server_timeout=4.0
        )
    for name, message, notes in (result["error"] for result in results):
        assert name in ("VLLMServerError", "RankFailedError")
        assert f"The vLLM server at {served.address} has not answered for vllm_server_timeout=4 seconds" in message
        assert notes == [f"The run can be resumed from {tmp_path / 'checkpoint-2'}."]
    assert [len(result["batches"]) for result in results] == [2, 2]


def train_two_ranks(folder, model_folder, served, **overrides):
    options = {"per_device_train_batch_size": 4} | overrides
    addresses = ",".join(one.address for one in served)
    run_ranks(server_training.main, (str(folder), str(model_folder), addresses, json.dumps(options)), 2, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
