"""Every way to ask for a resume goes on from a checkpoint, or says why not."""

import shutil
from pathlib import Path

import pytest
from test_trainer import make_trainer

from trl_dapo.checkpoints.resume_choice import choose_checkpoint, wanted_resume


SAVING = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The output folder of a run of two steps, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("first")
    make_trainer(folder, **SAVING).train()
    return folder


def ask(way, folder):
    """Returns field and argument of one way to ask for the newest checkpoint of `folder`."""
    newest, parent = str(folder / "checkpoint-2"), str(folder)
    values = {"True": True, "checkpoint": newest, "output folder": parent, "path": Path(newest)}
    place, name = way.split(": ")
    value = values.get(name, name)
    return (value, None) if place == "field" else (None, value)


@pytest.mark.parametrize("name", ["True", "true", "last", "Latest", "checkpoint", "output folder", "path"])
@pytest.mark.parametrize("place", ["field", "argument"])
def test_asking_goes_on_at_the_step_of_the_checkpoint(checkpoints, tmp_path, place, name):
    folder = tmp_path / "run"
    shutil.copytree(checkpoints, folder)
    field, argument = ask(f"{place}: {name}", folder)
    trainer = make_trainer(folder, **SAVING | {"max_steps": 3, "resume_from_checkpoint": field})
    trainer.train() if argument is None else trainer.train(resume_from_checkpoint=argument)
    assert len(trainer.batches) == 1
    assert trainer.state.global_step == 3
    assert (folder / "checkpoint-1").is_dir()


def test_argument_wins_over_the_field(checkpoints, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(checkpoints, folder)
    trainer = make_trainer(folder, **SAVING | {"max_steps": 3, "resume_from_checkpoint": "true"})
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert len(trainer.batches) == 2
    anew = make_trainer(folder, **SAVING | {"max_steps": 3, "resume_from_checkpoint": "true"})
    anew.train(resume_from_checkpoint=False)
    assert len(anew.batches) == 3


def test_field_holds_for_the_first_training_that_ends(checkpoints, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(checkpoints, folder)
    trainer = make_trainer(folder, **SAVING | {"max_steps": 3, "resume_from_checkpoint": "true"})
    trainer.train()
    trainer.train()
    assert len(trainer.batches) == 1 + 3


@pytest.mark.parametrize("wanted", ["flase", "checkpoint-9", "/nowhere", "true"])
@pytest.mark.parametrize("place", ["field", "argument"])
def test_what_cannot_be_resumed_from_is_refused_before_training(tmp_path, place, wanted):
    (tmp_path / "checkpoint-x").mkdir()
    field, argument = (wanted, None) if place == "field" else (None, wanted)
    trainer = make_trainer(tmp_path, max_steps=1, resume_from_checkpoint=field)
    named = "True" if wanted == "true" else f"'{wanted}'"
    with pytest.raises(ValueError, match=f"resume_from_checkpoint is {named}"):
        trainer.train() if argument is None else trainer.train(resume_from_checkpoint=argument)
    assert trainer.batches == []


@pytest.mark.parametrize("wanted", [None, False, "", "false", "None"])
def test_run_that_begins_anew_says_which_checkpoints_it_writes_over(checkpoints, caplog, wanted):
    assert wanted_resume(wanted, None) is None
    trainer = make_trainer(checkpoints, max_steps=1)
    trainer.train(resume_from_checkpoint=wanted)
    assert (
        f"{checkpoints} holds checkpoints of an earlier run, up to checkpoint-2, but this run begins anew"
        in caplog.text
    )
    caplog.clear()
    trainer.train()
    assert "begins anew" not in caplog.text


def test_newest_whole_checkpoint_of_a_named_output_folder_is_chosen(checkpoints, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(checkpoints, folder)
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    chosen, message, is_fatal = choose_checkpoint(str(folder), "elsewhere")
    assert (chosen, is_fatal) == (str(folder / "checkpoint-1"), False)
    assert "trainer_state.json is missing" in message
