"""Runs that sample beside training: several ranks, checkpoints, evaluations, ends, and servers that fail."""

import json
import random
import time

import forked
import pytest
import server_training
import torch
from scripted_server import ModelEngine, ScriptedServer
from server_training import CollectingTrainer, make_trainer, save_model
from test_overlap import OVERLAP, TWO_STEPS, WatchedTrainer
from test_server_training import train_two_ranks, weights_of
from tiny import first_token_reward, gold_logging_reward, numbered_prompts, prompts_with_gold, texts_in
from transformers import IntervalStrategy, TrainerCallback

from trl_dapo.checkpoints.files import read_state
from trl_dapo.errors import RewardTimeoutError, StaleEngineError, VLLMServerError


SIX_BATCHES = {"max_steps": 12, "learning_rate": 3e-2, **TWO_STEPS, **OVERLAP}
SIX_STEPS = {"max_steps": 6, "learning_rate": 3e-2, **OVERLAP}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def served_by(model_folder, **options):
    return ScriptedServer(ModelEngine(model_folder), **options)


def same_weights(trainer, other):
    return all(torch.equal(weight, weights_of(other)[name]) for name, weight in weights_of(trainer).items())


class RecordedTrainer(CollectingTrainer):
    """Keeps what goes into the record of groups with each batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.recorded = []
        write = self.recorder.write

        def write_and_keep(*args):
            write(*args)
            self.recorded.append((self.recorder.latest_facts, self.recorder.latest))

        self.recorder.write = write_and_keep


@pytest.fixture(scope="module")
def straight(model_folder, tmp_path_factory):
    """Six batches of two optimizer steps in one go."""
    with served_by(model_folder) as served:
        folder = tmp_path_factory.mktemp("run")
        options = SIX_BATCHES | {"num_groups_to_log": 8}
        trainer = make_trainer(folder, model_folder, [served.address], cls=RecordedTrainer, **options)
        trainer.train()
    assert len(trainer.batches) == 6
    return trainer


@pytest.fixture(scope="module")
def straight_of_one_step(model_folder, tmp_path_factory):
    """Six batches of one optimizer step: which rows a step has depends on ranks and, in TRL, on random numbers otherwise."""
    with served_by(model_folder) as served:
        trainer = make_trainer(tmp_path_factory.mktemp("run"), model_folder, [served.address], **SIX_STEPS)
        trainer.train()
    assert len(trainer.batches) == 6
    return trainer


class Kill(TrainerCallback):
    """Ends a run as a signal would, right after a step: nothing of it is saved or said."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def decided(recorded):
    """Leaves out groups behind the last one that trains: which of them are judged too depends on what is faster."""
    kept = []
    for facts, rows in recorded:
        last = max(row["position"] for row in rows if row["fate"] == "trained")
        kept.append((facts["step"], [row for row in rows if row["position"] <= last]))
    return kept


@pytest.mark.parametrize(("saved_at", "killed_at"), [(3, 4), (4, 7), (10, 11)])
def test_resumed_run_trains_the_batch_that_was_sampled_ahead(model_folder, straight, tmp_path, saved_at, killed_at):
    with served_by(model_folder) as served:
        options = {
            "save_strategy": "steps",
            "save_steps": saved_at,
            "save_total_limit": 1,
            "num_groups_to_log": 8,
            **SIX_BATCHES,
        }
        killed = make_trainer(tmp_path, model_folder, [served.address], **options)
        killed.add_callback(Kill(killed_at))
        with pytest.raises(KeyboardInterrupt):
            killed.train()
        num_loaded = len(served.loaded)
        options["save_strategy"] = "no"
        resumed = make_trainer(tmp_path, model_folder, [served.address], cls=RecordedTrainer, **options)
        resumed.train(resume_from_checkpoint=True)
        first_loaded = len(served.loaded) - num_loaded
    # The batch that trains when it is saved is in the checkpoint too, unless it is done.
    num_done = (saved_at + 1) // 2
    assert resumed.batches == straight.batches[num_done:]
    assert killed.batches == straight.batches[: len(killed.batches)]
    assert same_weights(straight, resumed)
    assert decided(resumed.recorded) == decided(straight.recorded[num_done:])
    # Of the two batches that the checkpoint has at most, none is sampled again.
    assert first_loaded == 6 - num_done - 1
    lines = [
        line["dapo/overlap/staleness_mean"] for line in resumed.state.log_history if "dapo/overlap/hidden" in line
    ]
    assert lines == [0.0, *[2.0] * (len(lines) - 1)]


def test_checkpoint_has_no_text_of_the_dataset_and_the_record_has_all(model_folder, tmp_path):
    dataset = prompts_with_gold(50)
    options = {"save_strategy": "steps", "save_steps": 4, "num_groups_to_log": 8, "save_only_model": False}
    options |= {"dataset": dataset, "reward": gold_logging_reward, "cls": RecordedTrainer, **SIX_BATCHES}
    with served_by(model_folder) as served:
        straight = make_trainer(tmp_path / "a", model_folder, [served.address], **options)
        straight.train()
        folder = tmp_path / "a" / "checkpoint-4"
        resumed = make_trainer(tmp_path / "b", model_folder, [served.address], **options)
        resumed.train(resume_from_checkpoint=str(folder))
    parts = read_state(folder, "rank0")["parts"]
    assert len(parts["record"]["kept"]) > 0
    assert len(parts["carried"]["ahead"]["result"]["kept"]) > 0
    assert texts_in(folder, [*dataset["prompt"], *dataset["solution"]]) == []
    assert decided(resumed.recorded) == decided(straight.recorded[2:])
    for _, rows in resumed.recorded:
        for row in rows:
            assert (row["prompt"], row["solution"]) == (dataset[row["row"]]["prompt"], dataset[row["row"]]["solution"])
            assert json.loads(row["extra"]) == {"solution": row["solution"], "said": f"{row['length']} tokens"}


def test_groups_that_go_on_and_surplus_are_neither_lost_nor_trained_twice_over_a_resume(model_folder, tmp_path):
    options = {"surplus": "carry", "save_strategy": "steps", "save_steps": 5, "save_total_limit": 1, **SIX_BATCHES}
    with served_by(model_folder, seconds=0.05, num_slots=12) as served:
        killed = make_trainer(tmp_path, model_folder, [served.address], **options)
        killed.add_callback(Kill(6))
        with pytest.raises(KeyboardInterrupt):
            killed.train()
        resumed = make_trainer(tmp_path, model_folder, [served.address], **options | {"save_strategy": "no"})
        resumed.train(resume_from_checkpoint=True)
    # Saved in the third batch: the fourth one is ahead, of groups that it found and of such as were carried.
    state = read_state(tmp_path / "checkpoint-5", "rank0")["parts"]["carried"]
    saved = {group["draw"]["position"] for group in state["ahead"]["groups"] + state["groups"]}
    assert set(resumed.batches[0][0]) <= saved
    trained = [position for batch, _ in killed.batches[:3] + resumed.batches for position in batch]
    assert trained == sorted(set(trained))
    assert any(line.get("dapo/carried") for line in killed.state.log_history + resumed.state.log_history)


def test_run_with_another_layout_samples_the_batch_ahead_again(model_folder, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, **SIX_BATCHES}
    with served_by(model_folder) as served:
        first = make_trainer(tmp_path, model_folder, [served.address], **options | {"max_steps": 6})
        first.add_callback(Kill(5))
        with pytest.raises(KeyboardInterrupt):
            first.train()
        options |= {"per_device_train_batch_size": 8, "steps_per_generation": 1, "max_steps": 6}
        second = make_trainer(tmp_path, model_folder, [served.address], cls=WatchedTrainer, **options)
        second.train(resume_from_checkpoint=True)
    # From its first prompt on, and with the weights as they are now: nothing is ahead of it.
    assert second.begun[0][:3] == (4, 4, first.batches[1][0][-1] + 1)


def test_evaluation_waits_for_the_batch_ahead_and_changes_none(model_folder, straight_of_one_step, tmp_path):
    with served_by(model_folder) as served:
        options = {"eval_steps": 2, "per_device_eval_batch_size": 8, **SIX_STEPS}
        trainer = make_trainer(tmp_path, model_folder, [served.address], **options)
        trainer.eval_dataset, trainer.args.eval_strategy = numbered_prompts(4), IntervalStrategy.STEPS
        trainer.train()
        # A request that failed on a loaded machine is sent again, with another number.
        asked = [one for one in served.asked if "seed" not in one and one["request_id"].endswith("-1")]
    assert len(asked) == 3 * 4 * 4
    assert trainer.batches == straight_of_one_step.batches
    for name, weight in weights_of(trainer).items():
        torch.testing.assert_close(weight, weights_of(straight_of_one_step)[name], rtol=0, atol=1e-4)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 5


def test_run_that_stops_early_gives_the_batch_ahead_back(model_folder, straight, tmp_path):
    with served_by(model_folder, seconds=0.5) as served:
        trainer = make_trainer(tmp_path, model_folder, [served.address], **SIX_BATCHES)
        trainer.add_callback(Stop())
        trainer.train()
        assert len(trainer.batches) == 3
        assert trainer.dynamic_sampler.source.position == straight.batches[2][0][-1] + 1
        assert trainer.vllm_generation.requests.num_unfinished == 0
        deadline = time.monotonic() + 10
        while served.running:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_reward_functions_log_beside_training_what_they_log_without(model_folder, tmp_path):
    def logging_reward(completion_ids, log_extra, log_metric, trainer_state, **kwargs):
        log_extra("length", [len(ids) for ids in completion_ids])
        log_metric("mine", float(trainer_state.global_step))
        return first_token_reward(completion_ids)

    with served_by(model_folder) as served:
        trainer = make_trainer(
            tmp_path, model_folder, [served.address], reward=logging_reward, log_completions=True, **SIX_BATCHES
        )
        lengths = []
        collect = trainer._collect_batch

        def collect_and_keep(sampler):
            batch = collect(sampler)
            assert trainer._pending_extra_logs["length"] == [len(row.completion_ids) for row in batch.rollouts]
            lengths.append(batch.logged_columns()["length"])
            return batch

        trainer._collect_batch = collect_and_keep
        trainer.train()
    assert len(lengths) == 6
    # The step of the policy that samples, whatever the trainer does meanwhile.
    steps = [line["mine"] for line in trainer.state.log_history if "dapo/overlap/hidden" in line]
    assert steps == [0, 0, 2, 4, 6, 8]


@pytest.mark.distributed
@pytest.mark.supports("overlap")
@pytest.mark.parametrize("fsdp", [False, True], ids=["whole", "FSDP2"])
def test_two_ranks_train_the_batches_of_one_beside_sampling(model_folder, straight_of_one_step, tmp_path, fsdp):
    with served_by(model_folder) as served, served_by(model_folder) as other:
        options = SIX_STEPS | {"per_device_train_batch_size": 4, "fsdp": fsdp}
        results = train_two_ranks(tmp_path, model_folder, [served, other], **options)
    assert all((result["num_sharded"] > 0) == fsdp for result in results)
    for number, (positions, rows) in enumerate(straight_of_one_step.batches):
        assert [result["batches"][number][0] for result in results] == [positions] * 2
        trained = [row for result in results for row in result["batches"][number][1]]
        assert sorted(map(str, trained)) == sorted(map(str, map(list, rows)))
    assert [len(result["batches"]) for result in results] == [6, 6]


# Servers that fail while a batch is sampled ahead


def fail_in_background(served, loads, fault):
    """Has something happen to a server right after it got its weights for so many times."""
    load = served.engine.load

    def load_and_fail(files):
        load(files)
        if len(served.loaded) == loads:
            fault()

    served.engine.load = load_and_fail


@pytest.mark.fault(
    "a vLLM server restarts with old weights",
    "sampling beside training",
    "noticed; it loads those of the batch, and the batches are the same",
)
def test_server_that_restarts_beside_training_loads_the_weights_of_the_batch_ahead(
    model_folder, straight, tmp_path, caplog
):
    with served_by(model_folder, seconds=0.01) as served:
        fail_in_background(served, 2, lambda: served.faults.extend([None, None, None, "restart"]))
        trainer = make_trainer(tmp_path, model_folder, [served.address], **SIX_BATCHES)
        trainer.train()
    assert "it was started again" in caplog.text
    assert trainer.batches == straight.batches


@pytest.mark.fault(
    "a vLLM server answers 500, breaks off, or says half",
    "sampling beside training",
    "asked again with the same seeds; the batches are the same",
)
def test_requests_that_fail_beside_training_are_sent_again(model_folder, straight, tmp_path):
    with served_by(model_folder) as served:
        fail_in_background(served, 2, lambda: served.faults.extend(["500", "half", "reset", "abort", "500"]))
        trainer = make_trainer(tmp_path, model_folder, [served.address], **SIX_BATCHES)
        trainer.train()
        assert not served.faults
    assert trainer.batches == straight.batches


@pytest.mark.fault(
    "the only vLLM server dies",
    "sampling beside training",
    "the batch in front of it trains to its end; a checkpoint, then `VLLMServerError`",
)
def test_run_whose_server_dies_beside_training_trains_what_it_has_and_is_saved(model_folder, straight, tmp_path):
    with served_by(model_folder) as served:
        options = {"vllm_server_timeout": 3.0, "save_strategy": "steps", "save_steps": 100, **SIX_BATCHES}
        fail_in_background(served, 2, lambda: served.faults.extend(["hang"] * 100))
        trainer = make_trainer(tmp_path, model_folder, [served.address], **options)
        with pytest.raises(VLLMServerError, match="has not answered for vllm_server_timeout=3 seconds") as raised:
            trainer.train()
        # Two optimizer steps on each of the batches that it had.
        assert trainer.state.global_step == 2 * len(trainer.batches) == 6
        assert raised.value.__notes__ == [f"The run can be resumed from {tmp_path / 'checkpoint-6'}."]
        served.faults.clear()
        resumed = make_trainer(tmp_path, model_folder, [served.address], **options | {"vllm_server_timeout": 60.0})
        resumed.train(resume_from_checkpoint=True)
    assert trainer.batches == straight.batches[:3]
    # The batch that was lost begins at the same place, now with the weights of the checkpoint.
    assert resumed.batches[0][0][0] >= straight.batches[3][0][0]
    trained = [position for batch, _ in trainer.batches + resumed.batches for position in batch]
    assert trained == sorted(set(trained))
    assert len(trainer.batches + resumed.batches) == 6


@pytest.mark.fault(
    "a vLLM server says that it has loaded weights, and has not",
    "weight sync before a batch is sampled ahead",
    "`StaleEngineError` that names it, when that batch is due",
)
def test_server_with_other_weights_ends_the_run_before_its_batch_trains(model_folder, tmp_path):
    with served_by(model_folder) as served:
        served.engine.load = lambda files: None
        options = SIX_BATCHES | {"learning_rate": 1.0, "vllm_max_logp_gap": 0.25}
        trainer = make_trainer(tmp_path, model_folder, [served.address], **options)
        with pytest.raises(
            StaleEngineError, match=f"vLLM server at {served.address} does not sample from the weights"
        ):
            trainer.train()
    # The first two were sampled with the weights that it has.
    assert len(trainer.batches) == 2


@pytest.mark.fault(
    "a reward function never returns", "grading beside training", "`RewardTimeoutError` when the batch is due"
)
def test_reward_function_that_hangs_beside_training_ends_the_run(model_folder, tmp_path):
    calls = []

    def hanging_reward(completion_ids, trainer_state, **kwargs):
        calls.append(trainer_state.global_step)
        while calls[-1] == 2:
            time.sleep(0.01)
        return first_token_reward(completion_ids)

    with served_by(model_folder) as served:
        trainer = make_trainer(
            tmp_path, model_folder, [served.address], reward=hanging_reward, reward_timeout=0.5, **SIX_BATCHES
        )
        with pytest.raises(RewardTimeoutError):
            trainer.train()
    # The batch in front of it has trained.
    assert trainer.state.global_step == 4


@pytest.mark.fault(
    "the vLLM server of two ranks hangs",
    "sampling beside training",
    "both train the batch in front of it, save and end, `VLLMServerError` or `RankFailedError` with the cause",
)
@pytest.mark.distributed
def test_two_ranks_whose_server_hangs_beside_training_save_and_end_together(model_folder, tmp_path):
    with served_by(model_folder) as served:
        fail_in_background(served, 1, lambda: served.faults.extend(["hang"] * 100))
        options = SIX_BATCHES | {"per_device_train_batch_size": 2, "vllm_server_timeout": 4.0}
        results = train_two_ranks(tmp_path, model_folder, [served], **options)
    for name, message, notes in (result["error"] for result in results):
        assert name in ("VLLMServerError", "RankFailedError")
        assert f"The vLLM server at {served.address} has not answered for vllm_server_timeout=4 seconds" in message
        assert notes == [f"The run can be resumed from {tmp_path / 'checkpoint-4'}."]
    assert [len(result["batches"]) for result in results] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_run_that_is_killed_at_any_moment_resumes_to_the_bit(model_folder, straight, tmp_path, seed):
    chance = random.Random(seed)
    options = {"save_strategy": "steps", "save_steps": 1, **SIX_BATCHES}
    with served_by(model_folder, seconds=0.02) as served:
        process = forked.start(
            server_training.main, str(tmp_path), str(model_folder), served.address, json.dumps(options)
        )
        first = tmp_path / f"checkpoint-{chance.randrange(1, 9)}"
        deadline = time.monotonic() + 120
        while not first.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.random())
        process.kill()
        process.join()
        resumed = make_trainer(tmp_path, model_folder, [served.address], **options | {"save_strategy": "no"})
        resumed.train(resume_from_checkpoint=True)
    assert resumed.batches == straight.batches[6 - len(resumed.batches) :]
    assert same_weights(straight, resumed)
