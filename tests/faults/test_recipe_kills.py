"""The quickstart's recipe, with carried groups and selective rollout, killed and resumed; and TRL's trainer on it."""

import pytest
from processes import outcome, run, said, trained
from recipe_training import CARRY, recipe_training, warmed_up_model
from trials import survive


QUICK = CARRY | {"per_device_train_batch_size": 8, "max_steps": 12, "num_problems": 40}
TWO_RANKS = CARRY | {"per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def hasty_model(tmp_path_factory):
    return warmed_up_model(tmp_path_factory.mktemp("hasty-model"), is_hasty=True)


@pytest.fixture(scope="module")
def warm_model(tmp_path_factory):
    return warmed_up_model(tmp_path_factory.mktemp("warm-model"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Returns the folder of the run of these options that was never killed, which is made when it is first asked for."""
    folders = {}

    def folder_of(options, num_ranks=1):
        key = str(options), num_ranks
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("straight")
            assert run(folders[key], options, num_ranks, task=recipe_training) == [0] * num_ranks, said(folders[key])
        return folders[key]

    return folder_of


# In the midst of a generation batch, and after the last checkpoint, when nothing is left to train. Not at the very last
# point: a run makes a few calls of files more or less than another.
@pytest.mark.parametrize(("phase", "share", "first_step"), [("optimizer", 0.27, 3), ("files", 0.99, 12)])
def test_killed_recipe_is_resumed_as_if_it_had_not_been(tmp_path, straight, hasty_model, phase, share, first_step):
    options = QUICK | {"model": hasty_model}
    reference = straight(options)
    points = outcome(reference)["counts"][phase]
    deaths = survive(tmp_path, reference, options, doom=(phase, round(share * points)), task=recipe_training)
    assert outcome(tmp_path)["first_step"] == first_step, f"of {points} points, died at {deaths}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300, 330))
def test_killed_recipe_is_resumed_as_if_it_had_not_been_30_times(tmp_path, straight, warm_model, seed):
    # Half of the trials have so few problems that each comes up several times.
    options = CARRY | {"model": warm_model, "num_problems": 16 if seed % 2 else 4000}
    print(survive(tmp_path, straight(options), options, seed, task=recipe_training))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("seed", range(400, 410))
def test_killed_recipe_is_resumed_on_two_ranks(tmp_path, straight, warm_model, seed):
    options = TWO_RANKS | {"model": warm_model, "num_problems": 16 if seed % 2 else 4000}
    print(survive(tmp_path, straight(options, 2), options, seed, num_ranks=2, task=recipe_training))


@pytest.mark.slow
def test_trl_trains_other_rows_when_it_is_resumed_within_a_generation_batch(tmp_path, straight, warm_model):
    # What the benchmark counts, and that a difference would be seen here.
    options = {"trainer": "GRPOTrainer", "model": warm_model}
    reference = straight(options)
    points = outcome(reference)["counts"]["optimizer"]
    assert run(tmp_path, options, doom=("optimizer", points // 2), task=recipe_training) == [-9]
    assert run(tmp_path, options, doom=(), task=recipe_training) == [0], said(tmp_path)
    first_step = outcome(tmp_path)["first_step"]
    assert first_step == 6
    mine, its = trained(tmp_path), trained(reference)
    assert [step for step in its if mine[step] != its[step]] == list(range(first_step, 16))
