"""
Trainings killed with SIGKILL at seeded random points of generation, grading, optimizer step and checkpoint writing.

Whatever they had written by then, the resumed run is the one that was never killed: the same batches, weights and log.
"""

import itertools

import pytest
from processes import outcome, run, said
from trials import survive


SHAPES = {
    "half-trained batches": {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2},
    "carried groups": {
        "steps_per_generation": 2, "surplus": "carry", "refill_confidence": 0.99, "max_prompts_per_round": 100,
        "max_off_policy_steps": 100, "selective_rollout": True, "save_steps": 2,
    },
    "one checkpoint": {"save_total_limit": 1, "logging_steps": 3},
    "iterable dataset": {"is_iterable": True, "num_rows": 20, "surplus": "carry", "max_off_policy_steps": 100},
    "grpo": {
        "dynamic_sampling": False, "soft_punish_cache": 0, "loss_normalization": "generation_batch",
        "steps_per_generation": 2, "num_rows": 7, "num_iterations": 2,
    },
}  # fmt: skip
TWO_RANKS = {
    name: SHAPES[name] | {"per_device_train_batch_size": 4} for name in ("half-trained batches", "carried groups")
}


def options_of(shape):
    return {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2} | shape


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Returns the folder of the run that was never killed, which is made when it is first asked for."""
    folders = {}

    def folder_of(name, shape, num_ranks=1):
        key = name, num_ranks
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("straight")
            assert run(folders[key], options_of(shape), num_ranks) == [0] * num_ranks, said(folders[key])
        return folders[key]

    return folder_of


@pytest.mark.fault("kill -9", "generation", "resumes exactly")
@pytest.mark.fault("kill -9", "grading", "resumes exactly")
@pytest.mark.fault("kill -9", "optimizer step", "resumes exactly")
@pytest.mark.fault("kill -9", "checkpoint files", "resumes exactly")
@pytest.mark.parametrize("phase", ["generation", "grading", "optimizer", "files"])
def test_killed_run_is_resumed_as_if_it_had_not_been(tmp_path, straight, phase):
    shape = SHAPES["carried groups"]
    survive(tmp_path, straight("carried groups", shape), options_of(shape), seed=0, phases=[phase])


@pytest.mark.fault(
    "kill -9, once or twice",
    "30 seeded points of generation, grading, optimizer step and checkpoint files",
    "resumes exactly",
)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_killed_run_is_resumed_as_if_it_had_not_been_30_times(tmp_path, straight, seed):
    name = list(SHAPES)[seed % len(SHAPES)]
    print(name, survive(tmp_path, straight(name, SHAPES[name]), options_of(SHAPES[name]), seed))


@pytest.mark.fault(
    "kill -9 of one of two ranks", "optimizer step", "the other ends with an error; both resume exactly"
)
@pytest.mark.distributed
def test_two_ranks_are_resumed_as_if_one_had_not_died(tmp_path, straight):
    shape = TWO_RANKS["carried groups"] | {"save_steps": 1}
    reference = straight("two ranks", shape, 2)
    deaths = survive(tmp_path, reference, options_of(shape), seed=3, num_ranks=2, phases=["optimizer"])
    assert outcome(tmp_path)["first_step"] > 0, f"the seed no longer kills late enough: {deaths}"


@pytest.mark.fault(
    "another number of ranks", "resume", "the stream goes on where it stood, and the log says what begins anew"
)
@pytest.mark.distributed
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_run_goes_on_with_another_number_of_ranks(tmp_path, before, after):
    shape = {"steps_per_generation": 2}
    for num_ranks, max_steps in ((before, 3), (after, 6)):
        options = options_of(shape) | {"max_steps": max_steps, "per_device_train_batch_size": 8 // num_ranks}
        assert run(tmp_path, options, num_ranks) == [0] * num_ranks, said(tmp_path)
    end = outcome(tmp_path)
    assert end["first_step"] == 3
    assert f"num_ranks from {before} to {after}" in said(tmp_path, whole=True)
    # The stream went on: a batch of 4 groups takes 4 draws of 40 rows or more, and the half-trained one is not drawn again.
    passes = [float(entry["dapo/data_passes"]) for entry in end["log"] if "dapo/data_passes" in entry]
    assert len(passes) == 4, passes
    assert all(later - sooner >= 4 / 40 - 1e-9 for sooner, later in itertools.pairwise(passes))


@pytest.mark.fault(
    "kill -9 of one of two ranks",
    "10 seeded points of generation, grading, optimizer step and checkpoint files",
    "the other ends with an error; both resume exactly",
)
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("seed", range(200, 210))
def test_two_ranks_survive_the_death_of_one(tmp_path, straight, seed):
    name = list(TWO_RANKS)[seed % len(TWO_RANKS)]
    print(name, survive(tmp_path, straight(name, TWO_RANKS[name], 2), options_of(TWO_RANKS[name]), seed, num_ranks=2))
