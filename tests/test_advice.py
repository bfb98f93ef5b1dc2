"""What a message advises is done, and then the run or the configuration succeeds."""

import re

import pytest
from test_trainer import all_correct, all_wrong, make_trainer, rare_reward
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer, RefillExhaustedError
from trl_dapo.config.departures import departures
from trl_dapo.errors import describe_exhaustion


def only_long_ones_are_right(completion_ids, **kwargs):
    """1 for completions of eight tokens and more: with a limit of eight tokens these are the truncated ones."""
    return [float(len(ids) >= 8) for ids in completion_ids]


def half(completion_ids, **kwargs):
    return [0.5] * len(completion_ids)


def none(completion_ids, **kwargs):
    return [None] * len(completion_ids)


def mostly_right(completion_ids, **kwargs):
    return [float(ids[0] != 4) for ids in completion_ids]


MASKED = {"mask_truncated_completions": True, "truncated_in_statistics": False}

EXHAUSTED = {
    "all wrong: larger groups": (
        rare_reward, {"per_device_train_batch_size": 16}, r"larger `num_generations` \(for all_wrong\)", {"num_generations": 16},
    ),
    "all correct: larger groups": (
        mostly_right, {"per_device_train_batch_size": 16}, r"harder prompts, or a larger `num_generations` \(for all_correct\)", {"num_generations": 16},
    ),
    "uniform": ([half, first_token_reward], {"filter_reward": "half"}, r"another `filter_reward`", {"filter_reward": "first_token_reward"}),
    "all wrong, another reward differs": (
        [all_wrong, first_token_reward], {}, "filter_reward='first_token_reward' would train", {"filter_reward": "first_token_reward"},
    ),
    "unscorable, another reward differs": (
        [none, first_token_reward], {"filter_reward": "none"}, "filter_reward='first_token_reward' would train",
        {"filter_reward": "first_token_reward"},
    ),
    "out of range": (first_token_reward, {"filter_range": [0.3, 0.31]}, "a wider `filter_range`", {"filter_range": [0.1, 0.9]}),
    "truncated out": (only_long_ones_are_right, MASKED, "a larger `max_completion_length`", {"max_completion_length": 24}),
    "truncated out, unmasked": (
        only_long_ones_are_right, MASKED, "mask_truncated_completions=False and truncated_in_statistics=True",
        {"mask_truncated_completions": False, "truncated_in_statistics": True},
    ),
    "some informative": (
        rare_reward, {"max_generation_rounds": 1, "max_prompts_per_round": 2}, "a higher `max_generation_rounds`",
        {"max_generation_rounds": 40},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXHAUSTED)
def test_advice_for_a_batch_that_stays_empty_fills_it(tmp_path, case):
    reward, options, advice, remedy = EXHAUSTED[case]
    options = {
        "max_steps": 2,
        "on_exhausted": "error",
        "max_generation_rounds": 2,
        "max_prompts_per_round": 4,
    } | options
    with pytest.raises(RefillExhaustedError, match=advice):
        make_trainer(tmp_path, reward, **options).train()
    options |= remedy
    trainer = make_trainer(tmp_path, reward, **options)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("counts", "advice", "no_advice"),
    [
        ({"unscorable": 40}, ["golds that can be read"], ["prompts", "num_generations", "rounds`"]),
        ({"truncated_out": 40}, ["max_completion_length"], ["prompts", "num_generations"]),
        ({"out_of_range": 40}, ["filter_range"], ["prompts", "num_generations"]),
        ({"uniform": 40}, ["filter_reward"], ["easier", "harder"]),
        ({"all_correct": 40}, ["harder prompts"], ["easier"]),
        ({"all_wrong": 30, "all_correct": 10}, ["easier prompts", "harder prompts"], []),
        # One group in forty says little.
        ({"all_wrong": 39, "unscorable": 1}, ["easier prompts"], ["golds"]),
    ],
)
def test_each_cause_has_its_own_advice(counts, advice, no_advice):
    help_line = describe_exhaustion(0, 1, 10, counts).split("What helps: ")[1]
    assert all(words in help_line for words in advice)
    assert not any(words in help_line for words in no_advice)


@pytest.mark.parametrize("num_needed", [1, 8])
def test_a_smaller_batch_is_no_advice_because_it_gets_fewer_prompts(num_needed):
    for num_accepted in (0, 1):
        assert "smaller" not in describe_exhaustion(num_accepted, num_needed + 1, 10, {"all_wrong": 40})


RAGGED = {"steps_per_generation": 3, "gradient_accumulation_steps": 2}
SPLIT = {"loss_normalization": "group", "per_device_train_batch_size": 6, "steps_per_generation": 4}

# A refused configuration, what its message says of the remedies, and these.
REFUSED = {
    "ragged": (RAGGED, "Set steps_per_generation=4 (or generation_batch_size=32), or dynamic_sampling=False", [{"steps_per_generation": 4}, {"dynamic_sampling": False}]),
    "ragged, whole groups": (
        {"per_device_train_batch_size": 4, "num_generations": 6} | RAGGED, "Set steps_per_generation=6",
        [{"steps_per_generation": 6}],
    ),
    "ragged batch size": (
        {"generation_batch_size": 24, "gradient_accumulation_steps": 2}, "(or generation_batch_size=32)",
        [{"generation_batch_size": 32}],
    ),
    "ragged by step": (
        RAGGED | {"loss_normalization": "batch"}, "Set steps_per_generation=4 (or generation_batch_size=32), or dynamic_sampling=False and loss_normalization=None",
        [{"steps_per_generation": 4}, {"dynamic_sampling": False, "loss_normalization": None}],
    ),
    "ragged by step, without sampling": (
        RAGGED | {"loss_normalization": "batch", "dynamic_sampling": False}, "Set steps_per_generation=4 (or generation_batch_size=32), or leave loss_normalization None",
        [{"steps_per_generation": 4}, {"loss_normalization": None}],
    ),
    "ragged by group": (
        RAGGED | {"loss_normalization": "group"}, "Set steps_per_generation=4 (or generation_batch_size=32), or dynamic_sampling=False and loss_normalization=None",
        [{"steps_per_generation": 4}, {"dynamic_sampling": False, "loss_normalization": None}],
    ),
    "ragged by generation batch": (
        RAGGED | {"loss_normalization": "generation_batch"}, "Set steps_per_generation=4 (or generation_batch_size=32), or dynamic_sampling=False",
        [{"steps_per_generation": 4}, {"dynamic_sampling": False}],
    ),
    "ragged, another loss": (
        RAGGED | {"loss_type": "grpo"}, "Set steps_per_generation=4 (or generation_batch_size=32), or dynamic_sampling=False",
        [{"steps_per_generation": 4}, {"dynamic_sampling": False}],
    ),
    "split groups": (
        SPLIT, "Make them one, take one optimizer step per generation batch, or set loss_normalization=\"batch\"",
        [{"per_device_train_batch_size": 8}, {"gradient_accumulation_steps": 4}, {"loss_normalization": "batch"}],
    ),
    "group with KL": (
        {"loss_normalization": "group", "beta": 0.1}, 'Set beta=0.0 (DAPO), or loss_normalization="batch"',
        [{"beta": 0.0}, {"loss_normalization": "batch"}],
    ),
    "normalization of another loss": (
        {"loss_normalization": "group", "loss_type": "grpo"}, "Leave it None, or use loss_type='dapo'",
        [{"loss_normalization": None}, {"loss_type": "dapo"}],
    ),
    "fresh groups only": (
        {"max_off_policy_steps": 0}, 'Leave it None; surplus="requeue" trains on fresh groups only',
        [{"max_off_policy_steps": None}, {"max_off_policy_steps": None, "surplus": "requeue"}],
    ),
    "no length limit": (
        {"max_completion_length": None}, "Set max_completion_length, or soft_punish_cache=0",
        [{"max_completion_length": 8}, {"soft_punish_cache": 0}],
    ),
    "cache without a length limit": (
        {"max_completion_length": None, "soft_punish_cache": 4}, "Set a length limit, or soft_punish_cache=0",
        [{"max_completion_length": 8}, {"soft_punish_cache": 0}],
    ),
    "out of the statistics, but trained": (
        {"truncated_in_statistics": False}, "Set mask_truncated_completions=True", [{"mask_truncated_completions": True}],
    ),
    "streaming without an engine": (
        {"refill": "stream"}, 'Set use_vllm=True, or refill="rounds"',
        [{"use_vllm": True, "vllm_mode": "colocate"}, {"refill": "rounds"}],
    ),
    "no time": ({"reward_timeout": 0.0}, "Use 1500", [{"reward_timeout": 1500.0}, {"reward_timeout": None}]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_advice_for_a_refused_configuration_makes_it_accepted(tmp_path, case):
    options, advice, remedies = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(advice)):
        DAPOConfig(**training_arguments(tmp_path, **options))
    for remedy in remedies:
        DAPOConfig(**training_arguments(tmp_path, **options | remedy))


def test_too_small_a_dataset_fits_when_the_batch_is_lowered_as_advised(tmp_path):
    options = {"gradient_accumulation_steps": 4, "num_rows": 3}
    with pytest.raises(ValueError, match=r"lower per_device_train_batch_size, or gradient_accumulation_steps and"):
        make_trainer(tmp_path, **options)
    for remedy in (
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 1},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 1},
    ):
        make_trainer(tmp_path, **options | remedy)


def test_ragged_steps_take_the_denominator_of_trl_where_sampling_is_off(tmp_path):
    """The support matrix says "as TRL"; tests/test_off_is_off.py trains it beside TRL."""
    options = RAGGED | {"dynamic_sampling": False}
    assert DAPOConfig(**training_arguments(tmp_path, **options)).loss_normalization == "generation_batch"


@pytest.mark.parametrize("reward", [all_wrong, all_correct])
def test_message_of_one_prompt_names_no_smaller_batch(tmp_path, reward):
    options = {"max_steps": 1, "per_device_train_batch_size": 4, "on_exhausted": "error", "max_generation_rounds": 1}
    with pytest.raises(RefillExhaustedError) as raised:
        make_trainer(tmp_path, reward, **options).train()
    assert "smaller" not in str(raised.value)


def test_denominator_advice_is_followed_by_a_run_without_it(tmp_path):
    def said(**options):
        config = DAPOConfig(**training_arguments(tmp_path, dynamic_sampling=False, **options))
        return [line for line in departures(config) if "generation_batch" in line]

    (advice,) = said(**RAGGED)
    assert "Make steps_per_generation a multiple of gradient_accumulation_steps, and leave it None." in advice
    assert said(**RAGGED | {"steps_per_generation": 4}) == []
    (advice,) = said(loss_normalization="generation_batch")
    assert advice.endswith("Leave it None.")
    assert said() == []


def even_rows_are(value):
    """Of even rows each completion is worth `value`; of odd ones about half are right."""

    def reward(completion_ids, row, **kwargs):
        values = first_token_reward(completion_ids)
        return [found if number % 2 else value for number, found in zip(row, values, strict=True)]

    return reward


@pytest.mark.parametrize(("value", "advice"), [(0.0, "easier prompts"), (1.0, "harder prompts")])
def test_other_prompts_help_as_advised(tmp_path, value, advice):
    def train(parity):
        trainer = DAPOTrainer(
            tiny_model(),
            even_rows_are(value),
            DAPOConfig(**training_arguments(tmp_path, max_steps=2, on_exhausted="error", max_generation_rounds=4)),
            numbered_prompts(50).filter(lambda row: row["row"] % 2 == parity),
            processing_class=tiny_tokenizer(),
        )
        trainer.train()
        return trainer.state.global_step

    with pytest.raises(RefillExhaustedError, match=advice):
        train(parity=0)
    assert train(parity=1) == 2
