"""Copies of a configuration, whole and with other values."""

import copy
import dataclasses
import json
import pickle

import pytest
from tiny import training_arguments

from trl_dapo import DAPOConfig


def values(config):
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


COPIES = {
    "replace": dataclasses.replace,
    "to_dict": lambda config: DAPOConfig(**config.to_dict()),
    "deepcopy": copy.deepcopy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
}


@pytest.mark.parametrize("how", list(COPIES))
@pytest.mark.parametrize(
    "options", [{}, {"steps_per_generation": 2}, {"generation_batch_size": 32}, {"log_completions": True}]
)
def test_copy_is_equal(tmp_path, how, options):
    config = DAPOConfig(**training_arguments(tmp_path, **options))
    assert values(COPIES[how](config)) == values(config)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 3e-4},
        {"per_device_train_batch_size": 16},
        {"gradient_accumulation_steps": 2},
        {"num_generations": 2},
        {"max_completion_length": 40},
        {"steps_per_generation": 3, "gradient_accumulation_steps": 3},
    ],
)
def test_copy_with_another_value_is_what_the_value_would_have_made(tmp_path, change):
    config = DAPOConfig(**training_arguments(tmp_path))
    expected = DAPOConfig(**training_arguments(tmp_path, **change))
    assert values(dataclasses.replace(config, **change)) == values(expected)
    assert values(DAPOConfig(**config.to_dict() | change)) == values(expected)


def test_fields_that_were_chosen_stay(tmp_path):
    config = DAPOConfig(**training_arguments(tmp_path, max_prompts_per_round=5, soft_punish_cache=1))
    other = dataclasses.replace(config, per_device_train_batch_size=16, max_completion_length=40)
    assert (other.max_prompts_per_round, other.soft_punish_cache) == (5, 1)


def test_masked_token_is_not_taken_for_a_token(tmp_path):
    config = DAPOConfig(**training_arguments(tmp_path, hub_token="hf_secret"))
    assert config.hub_token == "hf_secret"
    assert DAPOConfig(**config.to_dict()).hub_token is None


def test_configuration_is_plain_json(tmp_path):
    config = DAPOConfig(**training_arguments(tmp_path))
    assert json.loads(json.dumps(config.to_dict()))["steps_per_generation"] == 1
