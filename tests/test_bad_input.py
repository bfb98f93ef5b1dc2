"""What a user gets wrong is said before anything is loaded or generated."""

import pytest
from datasets import Dataset
from test_trl_seams import tiny_reward_model
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from trl import GRPOConfig

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.config import reward_model_checks
from trl_dapo.rewards import accuracy_reward, get_reward


def make_trainer(tmp_path, reward_funcs=first_token_reward, dataset=None, args=None, **overrides):
    kwargs = {
        name: overrides.pop(name) for name in ("tools", "rollout_func", "environment_factory") if name in overrides
    }
    return DAPOTrainer(
        model=tiny_model(),
        reward_funcs=reward_funcs,
        args=args or DAPOConfig(**training_arguments(tmp_path, **overrides)),
        train_dataset=numbered_prompts(20) if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
        **kwargs,
    )


PROMPTS = ["w1"] * 20


@pytest.mark.parametrize(
    ("dataset", "reward", "message"),
    [
        (Dataset.from_dict({"question": PROMPTS}), first_token_reward, r"no column 'prompt', only \['question'\]"),
        (
            Dataset.from_dict({"prompt": PROMPTS}),
            accuracy_reward,
            r"'accuracy_reward' needs the columns \['solution'\], but train_dataset has only \['prompt'\]",
        ),
        (Dataset.from_dict({"prompt": []}), first_token_reward, "train_dataset has no rows"),
        (Dataset.from_dict({"prompt": ["w1"]}), first_token_reward, "has 1 rows, but one generation batch needs 2"),
        ([{"prompt": "w1"}] * 20, first_token_reward, "of type `list`, but must be a `datasets.Dataset`"),
        (numbered_prompts(20), [], "reward_funcs is empty"),
    ],
)
def test_unusable_dataset_is_refused(tmp_path, dataset, reward, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, reward, dataset)


def test_unknown_filter_reward_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"filter_reward is 'accuracy', but must be one of .*'first_token_reward'"):
        make_trainer(tmp_path, filter_reward="accuracy")


def test_shaping_reward_cannot_be_the_filter(tmp_path):
    with pytest.raises(ValueError, match="filter_reward is 'soft_overlong_punishment'"):
        make_trainer(tmp_path, filter_reward="soft_overlong_punishment")


def test_unknown_reward_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="accuracy_reward"):
        get_reward("acuracy_reward")


@pytest.mark.refuses("turns_stream")
@pytest.mark.parametrize("name", ["tools", "rollout_func", "environment_factory"])
def test_turns_are_refused_where_groups_are_refilled_one_by_one(tmp_path, name):
    with pytest.raises(ValueError, match=f'`{name}` is set, but refill is "stream", which has no place for'):
        make_trainer(tmp_path, refill="stream", use_vllm=True, vllm_mode="colocate", **{name: [print]})


@pytest.mark.refuses("reward_model_sharded")
@pytest.mark.parametrize("by", ["zero3", "dtensor", "deepspeed_number"])
def test_reward_models_that_ranks_run_together_are_refused_where_each_grades_alone(tmp_path, monkeypatch, by):
    judge = tiny_reward_model()
    if by == "zero3":
        # As transformers answers once an accelerate config with ZeRO-3 was read, which needs DeepSpeed.
        monkeypatch.setattr(reward_model_checks, "is_deepspeed_zero3_enabled", lambda: True)
    elif by == "dtensor":
        monkeypatch.setattr(reward_model_checks, "DTensor", type(judge.score.weight))
    else:
        judge.score.weight.ds_id = 7
    stream = {"refill": "stream", "use_vllm": True, "vllm_mode": "server"}
    overlap = {"overlap": True, "vllm_importance_sampling_correction": False}
    refused = r'refill is "stream", but reward function 1 \(LlamaForSequenceClassification\) is a model whose weights are split'
    for options, fix in ((stream, 'Set refill="rounds"'), (stream | overlap, "Set overlap=False and refill=")):
        with pytest.raises(ValueError, match=f"{refused} over the ranks.*{fix}"):
            make_trainer(tmp_path, [first_token_reward, judge], **options)
    if by == "zero3":
        with pytest.raises(ValueError, match=r"reward function 0 \(me/judge\)"):
            make_trainer(tmp_path, "me/judge", **stream)
        # In rounds all ranks score at once.
        args = DAPOConfig(**training_arguments(tmp_path))
        assert reward_model_checks.check_reward_models([first_token_reward, judge], args) is None
    # A function has no weights.
    args = DAPOConfig(**training_arguments(tmp_path, **stream))
    assert reward_model_checks.check_reward_models([first_token_reward, None], args) is None


def test_a_rollout_function_needs_a_dataset(tmp_path):
    args = DAPOConfig(**training_arguments(tmp_path))
    with pytest.raises(ValueError, match="train_dataset is None, but must be"):
        DAPOTrainer(tiny_model(), first_token_reward, args, processing_class=tiny_tokenizer(), rollout_func=print)


@pytest.mark.refuses("iterable_history")
def test_history_of_rows_needs_rows(tmp_path):
    with pytest.raises(ValueError, match="selective_rollout is True, but remembers outcomes by row number"):
        make_trainer(tmp_path, dataset=numbered_prompts(20).to_iterable_dataset(), selective_rollout=True)


def test_config_of_another_trainer_is_refused(tmp_path):
    with pytest.raises(TypeError, match="must be a `DAPOConfig`, got `GRPOConfig`"):
        make_trainer(tmp_path, args=GRPOConfig(**training_arguments(tmp_path)))


def test_caller_keeps_the_list_of_reward_functions(tmp_path):
    reward_funcs = [first_token_reward]
    make_trainer(tmp_path, reward_funcs)
    assert reward_funcs == [first_token_reward]
