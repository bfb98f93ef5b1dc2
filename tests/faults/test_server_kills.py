"""
Trainings with completions from a vLLM server of which the trainer, the server, or both are killed with SIGKILL.

A server comes back on its port with the weights that it was first started with. Whoever dies, and wherever: batches, rows,
weights and log are in the end those of the run in which nobody died, and each group has trained once. In each trial the
number of the point is drawn from its seed. Points are counted, never timed.
"""

import itertools
import random
from pathlib import Path

import pytest
from doomed_server import DoomedServer
from processes import assert_nothing_is_left, batches, outcome, said, start, trained
from served_training import EACH_COMPLETION, NUM_BATCHES, positions, served_training
from server_training import save_model
from test_overlap import OVERLAP


# What the rows that train decide. Other metrics count groups that were begun for nothing, and how many there are hangs on
# what is faster.
DECIDED = ("step", "epoch", "loss", "grad_norm", "learning_rate", "reward", "entropy", "clip_ratio/")
DECIDED += ("sampling/", "dapo/ratio/", "dapo/advantage/", "dapo/entropy", "dapo/overlap/staleness")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def straight(model, tmp_path_factory):
    """Returns the folder of the run in which nobody dies, beside sampling or not; it is made when it is first asked for."""
    folders = {}

    def folder_of(overlap):
        if overlap not in folders:
            folders[overlap] = folder = tmp_path_factory.mktemp("straight")
            with DoomedServer(model, folder) as server:
                server.start()
                assert live(folder, server, overlap, doom=None) == 0, said(folder)
            assert len(positions(folder)) == NUM_BATCHES
        return folders[overlap]

    return folder_of


def live(folder, server, overlap, doom=(), comes_back=True, **options):
    """Runs a training until it ends or is killed, and returns its exit code."""
    options |= {"model": str(server.model_folder), "address": server.address, **(OVERLAP if overlap else {})}
    code = server.watch(start(folder, options, doom=doom, task=served_training), comes_back)
    assert_nothing_is_left(folder)
    return code


def needed(reference):
    """Completions that a run cannot do without: those of all groups up to the last one that trains."""
    return 4 * (1 + max(itertools.chain(*positions(reference).values())))


def draw_death_of_trainer(chance, reference, phase):
    # How many points the other phases have hangs a little on how long something is waited for.
    most = needed(reference) if phase in EACH_COMPLETION else outcome(reference)["counts"][phase] * 4 // 5
    return phase, chance.randint(1, most)


def draw_death_of_server(chance, reference, point):
    if point is None:
        return ()
    # An answer has a chunk of tokens or more, one that says so, and an empty one. Each batch but one has weights of its own.
    most = {"request": needed(reference), "chunk": 3 * needed(reference)}.get(point, NUM_BATCHES - 1)
    return point, chance.randint(1, most)


def assert_ends_as(folder, reference, where):
    mine, its = outcome(folder), outcome(reference)
    where = f"{where}, resumed from step {mine['first_step']}"
    assert batches(folder) == batches(reference), where
    assert trained(folder) == trained(reference), where
    assert positions(folder) == positions(reference), where
    assert_each_trains_once(folder, where)
    assert mine["weights"] == its["weights"], where
    assert decided(mine["log"]) == decided(its["log"]), where


def assert_each_trains_once(folder, where):
    all_positions = list(itertools.chain(*positions(folder).values()))
    assert all_positions == sorted(set(all_positions)), where


def decided(log):
    return [{name: value for name, value in entry.items() if name.startswith(DECIDED)} for entry in log]


@pytest.mark.parametrize(
    ("seed", "overlap", "phase"),
    [
        pytest.param(0, False, "asking", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a trainer whose completions come from a vLLM server", "a request is made", "resumes exactly"
        )]),
        pytest.param(1, True, "asking", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a trainer whose completions come from a vLLM server", "a request is made, beside training", "resumes exactly"
        )]),
        pytest.param(2, False, "reading", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a trainer whose completions come from a vLLM server", "tokens arrive", "resumes exactly"
        )]),
        pytest.param(3, True, "judging", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a trainer whose completions come from a vLLM server", "grading beside training", "resumes exactly"
        )]),
        pytest.param(4, True, "weights", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a trainer whose completions come from a vLLM server", "weight sync", "resumes exactly"
        )]),
        pytest.param(5, True, "optimizer", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a trainer whose completions come from a vLLM server", "optimizer step, beside sampling", "resumes exactly"
        )]),
        pytest.param(6, True, "files", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a trainer whose completions come from a vLLM server", "checkpoint files", "resumes exactly"
        )]),
    ],
)  # fmt: skip
def test_killed_trainer_is_resumed_on_the_server_as_if_it_had_not_been(
    tmp_path, model, straight, seed, overlap, phase
):
    reference, chance = straight(overlap), random.Random(seed)
    doom = draw_death_of_trainer(chance, reference, phase)
    with DoomedServer(model, tmp_path) as server:
        server.start()
        assert live(tmp_path, server, overlap, doom) == -9, said(tmp_path)
        assert live(tmp_path, server, overlap) == 0, said(tmp_path)
        assert server.num_deaths == 0
    assert_ends_as(tmp_path, reference, f"killed at {doom}")


@pytest.mark.parametrize(
    ("seed", "overlap", "point"),
    [
        pytest.param(10, False, "request", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a vLLM server that comes back with old weights", "a request arrives",
            "the run goes on, with the same batches and weights",
        )]),
        pytest.param(11, True, "chunk", marks=pytest.mark.fault(
            "kill -9 of a vLLM server that comes back with old weights", "within an answer, beside training",
            "the run goes on, with the same batches and weights",
        )),
        pytest.param(12, False, "load", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a vLLM server that comes back with old weights", "it loads weights",
            "the run goes on, with the same batches and weights",
        )]),
        pytest.param(13, True, "loaded", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of a vLLM server that comes back with old weights", "it has loaded weights and not confirmed them",
            "the run goes on, with the same batches and weights",
        )]),
    ],
)  # fmt: skip
def test_run_goes_on_when_its_server_is_killed_and_comes_back(tmp_path, model, straight, seed, overlap, point):
    reference, chance = straight(overlap), random.Random(seed)
    doom = draw_death_of_server(chance, reference, point)
    with DoomedServer(model, tmp_path) as server:
        server.start(doom)
        assert live(tmp_path, server, overlap) == 0, said(tmp_path)
        assert server.num_deaths == 1
    assert_ends_as(tmp_path, reference, f"server killed at {doom}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "overlap", "point"),
    [
        pytest.param(20, False, "request", marks=pytest.mark.fault(
            "kill -9 of a vLLM server that does not come back", "a request arrives",
            "a checkpoint, then `VLLMServerError`; resumes exactly",
        )),
        pytest.param(21, True, "chunk", marks=pytest.mark.fault(
            "kill -9 of a vLLM server that does not come back", "within an answer, beside training",
            "a checkpoint, then `VLLMServerError`; resumed, and no group is lost or trains twice",
        )),
        pytest.param(22, False, "load", marks=pytest.mark.fault(
            "kill -9 of a vLLM server that does not come back", "it loads weights",
            "a checkpoint, then `VLLMServerError`; resumes exactly",
        )),
    ],
)  # fmt: skip
def test_run_whose_server_is_killed_for_good_ends_and_is_resumed(tmp_path, model, straight, seed, overlap, point):
    reference, chance = straight(overlap), random.Random(seed)
    doom = draw_death_of_server(chance, reference, point)
    with DoomedServer(model, tmp_path) as server:
        server.start(doom)
        assert live(tmp_path, server, overlap, comes_back=False, vllm_server_timeout=20.0) == 1, said(tmp_path)
        assert server.num_deaths == 1
        assert "VLLMServerError" in said(tmp_path)
        has_trained = Path(tmp_path, "trained0.jsonl").exists()
        before = (positions(tmp_path), trained(tmp_path)) if has_trained else ({}, {})
        server.start()
        assert live(tmp_path, server, overlap) == 0, said(tmp_path)
    where = f"server killed at {doom}"
    for mine, its in zip(before, (positions(reference), trained(reference)), strict=True):
        assert mine == {step: its[step] for step in mine}, where
    if overlap:
        # The batch ahead, which is lost, is sampled again with the weights of the checkpoint, which are newer.
        assert len(positions(tmp_path)) == NUM_BATCHES, where
        assert trained(tmp_path).keys() == trained(reference).keys(), where
        assert_each_trains_once(tmp_path, where)
    else:
        assert_ends_as(tmp_path, reference, where)


@pytest.mark.parametrize(
    ("seed", "overlap", "phase", "point"),
    [
        pytest.param(30, False, "reading", "request", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of trainer and vLLM server", "tokens arrive; a request arrives", "resumes exactly"
        )]),
        pytest.param(31, True, "asking", "chunk", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of trainer and vLLM server", "a request is made, beside training; within an answer", "resumes exactly"
        )]),
        pytest.param(32, True, "judging", "load", marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of trainer and vLLM server", "grading beside training; it loads weights", "resumes exactly"
        )]),
        pytest.param(33, True, "optimizer", "chunk", marks=pytest.mark.fault(
            "kill -9 of trainer and vLLM server", "optimizer step, beside sampling; within an answer", "resumes exactly"
        )),
        pytest.param(34, False, "weights", None, marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of trainer and vLLM server", "weight sync; while there is no trainer", "resumes exactly"
        )]),
        pytest.param(35, True, "files", None, marks=[pytest.mark.slow, pytest.mark.fault(
            "kill -9 of trainer and vLLM server", "checkpoint files; while there is no trainer", "resumes exactly"
        )]),
    ],
)  # fmt: skip
def test_run_is_resumed_when_trainer_and_server_are_killed(tmp_path, model, straight, seed, overlap, phase, point):
    reference, chance = straight(overlap), random.Random(seed)
    doom = draw_death_of_trainer(chance, reference, phase)
    doom_of_server = draw_death_of_server(chance, reference, point)
    with DoomedServer(model, tmp_path) as server:
        server.start(doom_of_server)
        assert live(tmp_path, server, overlap, doom) == -9, said(tmp_path)
        if point is None:
            server.kill()
            server.start()
        # A server whose point has not come yet dies under the resumed run.
        assert live(tmp_path, server, overlap) == 0, said(tmp_path)
        assert server.num_deaths == (0 if point is None else 1)
    assert_ends_as(tmp_path, reference, f"killed at {doom}, server killed at {doom_of_server}")
