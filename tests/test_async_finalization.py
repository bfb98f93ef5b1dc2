"""Checkpoints that are finished in a thread, beside the next step: whole or not, whatever happens to run and thread."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import thread_ranks
import torch
from forked import run_ranks, start, start_ranks
from test_distributed import run
from test_resume import assert_same_run, make_trainer
from tiny import numbered_prompts
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import MLflowCallback, WandbCallback

from trl_dapo.checkpoints import files, finalization, resumable_trainer
from trl_dapo.checkpoints.files import CUT_OFF, find_fault, last_whole_checkpoint
from trl_dapo.checkpoints.finalization import AsyncFinalization, WrittenCheckpoint, finish_together, read_checkpoints


SHAPE = {"steps_per_generation": 4, "max_steps": 6, "save_total_limit": 1}
# A step may take long on a busy machine; what waits so long waits for nothing.
MAX_SECONDS = 300


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("trl_dapo.publishing.card.plot_curves", lambda *args, **kwargs: None)


@pytest.fixture
def beside(monkeypatch):
    """Has checkpoints of any size finished beside the next step."""
    monkeypatch.setattr(finalization, "MIN_BYTES_BESIDE", 0)


class NextStep(TrainerCallback):
    """Says when the step after a given one has begun."""

    def __init__(self, step):
        self.step, self.has_begun = step, threading.Event()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.has_begun.set()

    def wait(self):
        assert self.has_begun.wait(MAX_SECONDS), "the training waits for the checkpoint"


# Where the functions of the last part of a checkpoint are looked up.
MODULES = {"mark_whole": finalization, "flushed_records": resumable_trainer}


def before(monkeypatch, name, act):
    """Has `act` called with the folder before a function of the last part of a checkpoint."""
    module, function = MODULES[name], getattr(MODULES[name], name)
    monkeypatch.setattr(module, name, lambda path, *args, **kwargs: act(path) or function(path, *args, **kwargs))


def faults(folder):
    return {path.name: find_fault(path) for path in sorted(Path(folder).glob("checkpoint-*"))}


# The thread


def test_one_is_finished_before_the_next_begins():
    events, goes_on = [], threading.Event()

    def first():
        goes_on.wait(MAX_SECONDS)
        events.append("first")

    finalization = AsyncFinalization()
    finalization.begin(first)
    assert events == []
    goes_on.set()
    finalization.begin(lambda: events.append("second"))
    finalization.wait()
    finalization.wait()
    assert events == ["first", "second"]


def test_error_is_raised_once_by_who_waits():
    finalization = AsyncFinalization()
    finalization.begin(lambda: divmod(1, 0))
    with pytest.raises(ZeroDivisionError):
        finalization.begin(lambda: None)
    finalization.wait()


# The training goes on beside it


def test_manifest_is_written_beside_the_next_step_and_after_all_other_files(tmp_path, monkeypatch, beside):
    next_step, seen = NextStep(2), []

    def look(folder):
        if folder == str(tmp_path / "checkpoint-2"):
            next_step.wait()
        seen.append((Path(folder).name, threading.current_thread().name, faults(tmp_path), listed(folder)))

    def listed(folder):
        return {path.relative_to(folder) for path in Path(folder).rglob("*")}

    before(monkeypatch, "mark_whole", look)
    trainer = make_trainer(tmp_path, max_steps=3, save_total_limit=1)
    trainer.add_callback(next_step)
    trainer.train()
    # The checkpoint before stays until this one is whole, and the last one is waited for.
    assert [entry[:3] for entry in seen] == [
        ("checkpoint-1", "checkpoint", {"checkpoint-1": CUT_OFF}),
        ("checkpoint-2", "checkpoint", {"checkpoint-1": None, "checkpoint-2": CUT_OFF}),
        ("checkpoint-3", "MainThread", {"checkpoint-2": None, "checkpoint-3": CUT_OFF}),
    ]
    assert faults(tmp_path) == {"checkpoint-3": None}
    assert seen[-1][3] == listed(tmp_path / "checkpoint-3")
    saved = torch.load(tmp_path / "checkpoint-3" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == trainer.args.save_total_limit == 1


def test_state_is_flushed_and_hashed_beside_the_next_step_too(tmp_path, monkeypatch, beside):
    next_step, seen = NextStep(2), []

    def look(folder):
        if folder == str(tmp_path / "checkpoint-2"):
            next_step.wait()
        seen.append((Path(folder).name, threading.current_thread().name, find_fault(folder)))

    before(monkeypatch, "flushed_records", look)
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.add_callback(next_step)
    trainer.train()
    assert seen == [
        ("checkpoint-1", "checkpoint", CUT_OFF),
        ("checkpoint-2", "checkpoint", CUT_OFF),
        ("checkpoint-3", "MainThread", CUT_OFF),
    ]
    assert faults(tmp_path) == {"checkpoint-1": None, "checkpoint-2": None, "checkpoint-3": None}


def test_small_checkpoint_is_whole_when_the_trainer_goes_on(tmp_path, monkeypatch):
    threads = []
    before(monkeypatch, "mark_whole", lambda folder: threads.append(threading.current_thread().name))
    make_trainer(tmp_path, max_steps=2).train()
    assert threads == ["MainThread"] * 2


class Upload(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        assert find_fault(Path(args.output_dir, f"checkpoint-{state.global_step}")) is None


@pytest.mark.parametrize(
    ("options", "callbacks"),
    [
        ({}, [Upload()]),
        ({"metric_for_best_model": "eval_reward", "eval_strategy": "steps", "eval_steps": 1}, []),
    ],
)
def test_checkpoint_that_something_waits_for_is_whole_at_once(tmp_path, monkeypatch, beside, options, callbacks):
    threads = []
    before(monkeypatch, "mark_whole", lambda folder: threads.append(threading.current_thread().name))
    trainer = make_trainer(tmp_path, max_steps=2, eval_dataset=numbered_prompts(4), **options)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    assert threads == ["MainThread"] * 2


@pytest.mark.parametrize("callback", [WandbCallback, MLflowCallback])
def test_trackers_of_transformers_read_checkpoints_if_the_environment_says_so(monkeypatch, callback):
    # Only its class is looked at, and its package need not be installed.
    tracker = object.__new__(callback)
    tracker._auto_end_run = False
    for name in ("WANDB_LOG_MODEL", "HF_MLFLOW_LOG_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    assert not read_checkpoints([PrinterCallback(), tracker])
    for name in ("WANDB_LOG_MODEL", "HF_MLFLOW_LOG_ARTIFACTS"):
        monkeypatch.setenv(name, "false")
    assert not read_checkpoints([tracker])
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    monkeypatch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "TRUE")
    assert read_checkpoints([tracker])


# Killed


def doomed(folder, stage):
    """Trains until the last part of the checkpoint of step 3 has come to a stage while the next step trains, and kills itself."""
    torch.set_num_threads(1)
    os.chdir(folder)
    finalization.MIN_BYTES_BESIDE = 0
    next_step, synced = NextStep(3), []

    def die(folder, *args, **kwargs):
        next_step.wait()
        os.kill(os.getpid(), signal.SIGKILL)

    mark_whole, sync_to_disk = finalization.mark_whole, files.sync_to_disk
    flushed_records = resumable_trainer.flushed_records

    def flush(folder, names):
        return (
            die(folder) if stage == "state" and Path(folder).name == "checkpoint-3" else flushed_records(folder, names)
        )

    resumable_trainer.flushed_records = flush

    def mark(folder, records):
        if Path(folder).name == "checkpoint-3":
            if stage == "before":
                die(folder)
            files.sync_to_disk = lambda path: die(path) if len(synced) == 2 else synced.append(sync_to_disk(path))
            if stage == "before rotation":
                files.sync_to_disk, finalization.rotate_checkpoints = sync_to_disk, die
        mark_whole(folder, records)

    finalization.mark_whole = mark
    trainer = make_trainer(folder, **SHAPE)
    trainer.add_callback(next_step)
    trainer.train()


@pytest.mark.fault("kill -9", "hashing and flushing of a checkpoint beside the next step", "resumes exactly")
@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("state", {"checkpoint-2": None, "checkpoint-3": CUT_OFF}),
        ("before", {"checkpoint-2": None, "checkpoint-3": CUT_OFF}),
        ("between files", {"checkpoint-2": None, "checkpoint-3": CUT_OFF}),
        ("before rotation", {"checkpoint-2": None, "checkpoint-3": None}),
    ],
)
def test_run_that_is_killed_while_a_checkpoint_is_finished_resumes_exactly(tmp_path, stage, left):
    straight = make_trainer(tmp_path / "a", **SHAPE)
    straight.train()
    (tmp_path / "b").mkdir()
    process = start(doomed, str(tmp_path / "b"), stage)
    process.join(MAX_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert faults(tmp_path / "b") == left
    found, _ = last_whole_checkpoint(tmp_path / "b")
    resumed = make_trainer(tmp_path / "b", **SHAPE)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(resumed, straight, int(found.name.removeprefix("checkpoint-")))
    assert faults(tmp_path / "b") == {"checkpoint-6": None}


# Errors


def fail(step):
    def fail_at(folder):
        if Path(folder).name == f"checkpoint-{step}":
            raise OSError(28, "No space left on device")

    return fail_at


@pytest.mark.parametrize("fails", ["flushed_records", "mark_whole"])
@pytest.mark.parametrize("options", [{"max_steps": 4}, {"max_steps": 3, "save_steps": 2}])
def test_error_ends_the_run_at_the_next_save_or_the_end_and_the_checkpoint_before_stays(
    tmp_path, monkeypatch, beside, options, fails
):
    before(monkeypatch, fails, fail(2))
    trainer = make_trainer(tmp_path, save_total_limit=1, **options)
    with pytest.raises(OSError, match="No space left on device"):
        trainer.train()
    assert trainer.state.global_step == 3
    expected = {"checkpoint-2": CUT_OFF} | ({} if "save_steps" in options else {"checkpoint-1": None})
    assert faults(tmp_path) == expected


class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise ZeroDivisionError


def test_run_that_fails_finishes_its_checkpoint_and_tells_its_own_error(tmp_path, monkeypatch, beside, caplog):
    trainer = make_trainer(tmp_path / "a", max_steps=4)
    trainer.add_callback(Fails())
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert faults(tmp_path / "a") == {"checkpoint-1": None, "checkpoint-2": None}
    before(monkeypatch, "mark_whole", fail(2))
    trainer = make_trainer(tmp_path / "b", max_steps=4)
    trainer.add_callback(Fails())
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert "The last checkpoint could not be finished." in caplog.text


# Several ranks


@pytest.mark.distributed
@pytest.mark.parametrize("state_beside", [False, True])
def test_two_ranks_resume_from_a_checkpoint_that_was_finished_beside_the_next_step(tmp_path, state_beside):
    options = {"per_device_train_batch_size": 6, "steps_per_generation": 2, "max_generation_rounds": 30}
    options |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "max_steps": 4, "beside": True}
    options |= {"state_beside": state_beside, "num_groups_to_log": 4}
    straight = run(tmp_path / "straight", 2, **options)
    assert faults(tmp_path / "straight") == {"checkpoint-3": None, "checkpoint-4": None}
    resumed = run(tmp_path / "resumed", 2, resume_from=str(tmp_path / "straight" / "checkpoint-3"), **options)
    assert [result["parameters"] for result in resumed] == [result["parameters"] for result in straight]


def train_beside_on_two_ranks(folder, what):
    """Trains on this rank; something happens to the last part of the checkpoint of step 2 on the second one."""
    torch.set_num_threads(1)
    finalization.MIN_BYTES_BESIDE = finalization.MIN_STATE_BYTES_BESIDE = 0
    folder, rank = Path(folder), int(os.environ["RANK"])
    next_step = NextStep(2)
    flushed_records, mark_whole = resumable_trainer.flushed_records, finalization.mark_whole

    def flush(checkpoint, names):
        if Path(checkpoint).name == "checkpoint-2" and rank == 1 and what != "nothing":
            next_step.wait()
            assert threading.current_thread().name == "checkpoint"
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "error":
                raise OSError(28, "No space left on device")
        records = flushed_records(checkpoint, names)
        (folder / f"flushed-{Path(checkpoint).name}-{rank}").touch()
        return records

    def mark(checkpoint, records):
        assert all((folder / f"flushed-{Path(checkpoint).name}-{number}").exists() for number in range(2))
        mark_whole(checkpoint, records)

    resumable_trainer.flushed_records, finalization.mark_whole = flush, mark
    trainer = make_trainer(folder, **SHAPE_OF_TWO)
    trainer.add_callback(next_step)
    error = None
    try:
        trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    except Exception as caught:
        error = type(caught).__name__
    weights = [parameter.flatten().tolist() for parameter in trainer.model.parameters()]
    result = {"error": error, "step": trainer.state.global_step, "weights": weights}
    (folder / f"rank{rank}.json").write_text(json.dumps(result))


SHAPE_OF_TWO = {"per_device_train_batch_size": 4, "steps_per_generation": 4, "max_steps": 5, "save_total_limit": 2}


def on_two_ranks(folder, what):
    """Returns what each rank wrote: its error, the steps it took, and its weights."""
    folder.mkdir(exist_ok=True)
    run_ranks(train_beside_on_two_ranks, (str(folder), what), 2, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.distributed
def test_manifest_waits_for_the_state_of_the_slowest_rank_while_all_ranks_train(tmp_path):
    results = on_two_ranks(tmp_path / "a", "wait")
    assert [(result["error"], result["step"]) for result in results] == [(None, 5)] * 2
    assert faults(tmp_path / "a") == {"checkpoint-4": None, "checkpoint-5": None}
    # Each rank's state is in the manifest, with its hash.
    manifest = json.loads((tmp_path / "a" / "checkpoint-4" / files.MANIFEST).read_text())
    hashed = {file["name"] for file in manifest["files"] if file["sha256"]}
    assert {f"{files.STATE_FOLDER}/rank{rank}.json" for rank in range(2)} <= hashed


@pytest.mark.distributed
@pytest.mark.fault("full disk", "state of one rank, flushed beside the next step", "ends, an older checkpoint stays")
def test_rank_that_cannot_flush_its_state_ends_all_and_the_checkpoint_before_stays(tmp_path):
    first, second = on_two_ranks(tmp_path / "a", "error")
    assert (first["error"], second["error"]) == ("RankFailedError", "OSError")
    assert (first["step"], second["step"]) == (3, 3)
    assert faults(tmp_path / "a") == {"checkpoint-1": None, "checkpoint-2": CUT_OFF}


@pytest.mark.distributed
@pytest.mark.fault("kill -9", "one of two ranks, while its state is flushed beside the next step", "resumes exactly")
def test_rank_that_is_killed_while_its_state_is_flushed_leaves_the_checkpoint_before(tmp_path):
    straight = on_two_ranks(tmp_path / "a", "nothing")
    folder = tmp_path / "b"
    folder.mkdir()
    processes = start_ranks(train_beside_on_two_ranks, (str(folder), "kill"), 2, folder)
    try:
        for process in processes:
            process.join(MAX_SECONDS)
        # The other one notices, and ends.
        assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    finally:
        for process in processes:
            process.kill()
    assert json.loads((folder / "rank0.json").read_text())["error"] is not None
    assert faults(folder) == {"checkpoint-1": None, "checkpoint-2": CUT_OFF}
    resumed = on_two_ranks(folder, "nothing")
    assert resumed == straight
    assert faults(folder) == faults(tmp_path / "a")


@pytest.mark.parametrize("failing_rank", [None, 3])
def test_each_node_lists_the_state_of_its_own_ranks_when_all_ranks_of_all_nodes_are_done(tmp_path, failing_rank):
    def work(ranks):
        folder = tmp_path / f"node{ranks.rank // 2}" / "checkpoint-1"
        name = f"rank{ranks.rank}"

        def flush():
            if ranks.rank == failing_rank:
                raise OSError(28, "No space left on device")
            return files.write_state(folder, name, {"step": 1})

        written = WrittenCheckpoint(str(folder), is_of_node=True) if ranks.rank % 2 == 0 else None
        if written is not None:
            files.mark_unfinished(folder)
        ranks.gather_objects([])
        try:
            finish_together(flush, ranks.gather_aside, written)
        except OSError:
            return "failed"

    results = thread_ranks.run_ranks(4, work)
    assert [rank for rank, result in enumerate(results) if result] == ([] if failing_rank is None else [failing_rank])
    for node in range(2):
        folder = tmp_path / f"node{node}" / "checkpoint-1"
        assert find_fault(folder) == (None if failing_rank is None else CUT_OFF)
        listed = [file["name"] for file in json.loads((folder / files.MANIFEST).read_text()).get("files", [])]
        own = [f"{files.STATE_FOLDER}/rank{rank}.json" for rank in (2 * node, 2 * node + 1)]
        assert listed == (own if failing_rank is None else [])
