"""Trainings with an environment killed with SIGKILL, with carried groups and a batch that is half trained: resumed exactly."""

import pytest
from agent_training import agent_training
from processes import run, said
from trials import survive


OPTIONS = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "steps_per_generation": 2,
    "surplus": "carry",
    "refill_confidence": 0.99,
    "max_prompts_per_round": 40,
    "max_off_policy_steps": 100,
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of the run that was never killed."""
    folder = tmp_path_factory.mktemp("straight")
    assert run(folder, OPTIONS, task=agent_training) == [0], said(folder)
    return folder


@pytest.mark.fault("kill -9", "generation, with an environment", "resumes exactly")
def test_killed_run_with_an_environment_is_resumed_as_if_it_had_not_been(tmp_path, straight):
    survive(tmp_path, straight, OPTIONS, seed=1, phases=["generation"], task=agent_training)


@pytest.mark.fault(
    "kill -9, once or twice",
    "20 seeded points of generation, grading, optimizer step and checkpoint files, with an environment",
    "resumes exactly",
)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300, 320))
def test_killed_run_with_an_environment_is_resumed_as_if_it_had_not_been_20_times(tmp_path, straight, seed):
    print(survive(tmp_path, straight, OPTIONS, seed, task=agent_training))
