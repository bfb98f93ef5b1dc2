"""A training that is killed while it pushes a checkpoint: the run goes on, and the Hub never has half a model."""

import random

import pytest
from loopback_hub import LoopbackHub
from processes import assert_nothing_is_left, batches, exit_code, outcome, said, start

from trl_dapo.checkpoints.files import last_whole_checkpoint


WEIGHTS = "model.safetensors"
OPTIONS = {
    "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2, "surplus": "carry",
    "push_to_hub": True, "hub_model_id": "me/doomed", "hub_strategy": "every_save", "hub_always_push": True,
    "hub_token": "hf_writer",
}  # fmt: skip
MAX_SECONDS = 120


def train(folder, hub):
    process = start(folder, OPTIONS, hub=hub.endpoint)
    assert exit_code(process) == 0, said(folder)
    assert_nothing_is_left(folder)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that was never killed, and what it sent to the Hub: files of each commit."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with LoopbackHub() as hub:
        train(folder, hub)
        commits = {message: files for _, message, files in hub.repositories["me/doomed"].branches["main"]}
    assert list(commits) == ["initial commit", *(f"Training in progress, step {step}" for step in range(1, 5))]
    return folder, commits


# Over LFS go the weights of each save, and once the arguments of the run.
@pytest.mark.fault("kill -9", "push of a checkpoint", "resumes exactly; the Hub never has half a model")
@pytest.mark.parametrize("seed", [0, 1])
def test_run_killed_in_a_push_is_resumed_and_pushed_as_if_it_had_not_been(tmp_path, straight, seed):
    reference, commits = straight
    folder = tmp_path / "run"
    with LoopbackHub() as hub:
        hub.uploads_let_through = random.Random(seed).randrange(1, 4)
        process = start(folder, OPTIONS, hub=hub.endpoint)
        assert hub.stalled.wait(MAX_SECONDS), said(folder)
        process.kill()
        assert exit_code(process) == -9
        assert_nothing_is_left(folder)
        newest, _ = last_whole_checkpoint(folder)
        assert newest is not None
        hub.release()
        # What is on the Hub is one of the models that the other run pushed, whole.
        _, message, files = hub.repositories["me/doomed"].branches["main"][-1]
        assert files.keys() == commits[message].keys()
        assert len({commit[WEIGHTS].content for commit in (files, commits[message]) if WEIGHTS in commit}) <= 1
        train(folder, hub)
        pushed = hub.files("me/doomed")
    assert outcome(folder)["first_step"] == int(newest.name.removeprefix("checkpoint-"))
    assert outcome(folder)["weights"] == outcome(reference)["weights"]
    assert batches(folder) == batches(reference)
    assert pushed[WEIGHTS] == commits["Training in progress, step 4"][WEIGHTS].content


@pytest.mark.fault("the Hub refuses", "push of a checkpoint", "training goes on")
def test_hub_that_refuses_costs_no_step(tmp_path, straight):
    folder = tmp_path / "run"
    with LoopbackHub() as hub:
        hub.refuses_content = True
        train(folder, hub)
        assert hub.messages("me/doomed") == ["initial commit"]
    assert outcome(folder)["weights"] == outcome(straight[0])["weights"]
