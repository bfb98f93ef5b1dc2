"""What a user passes as prompts, rewards and model is what trains, or is answered at once."""

import inspect

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from test_trainer import make_trainer
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.rewards import accuracy_reward


OFF = {"dynamic_sampling": False}


def trainer_of(tmp_path, *, model=None, rewards=first_token_reward, dataset=None, tokenizer=None, **options):
    return DAPOTrainer(
        model=model or tiny_model(),
        reward_funcs=rewards,
        args=DAPOConfig(**training_arguments(tmp_path, **{"max_steps": 1, **options})),
        train_dataset=numbered_prompts(20) if dataset is None else dataset,
        processing_class=tokenizer or tiny_tokenizer(),
    )


# Texts, where the model has a chat template


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}w16"
    return tokenizer


def described(trainer):
    return trainer._describe_run(1)


NOT_APPLIED = "! The prompts are texts, so the chat template of the model is not applied"


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
def test_texts_on_a_chat_model_are_said(tmp_path, options):
    assert NOT_APPLIED in described(trainer_of(tmp_path, tokenizer=chat_tokenizer(), **options))
    assert NOT_APPLIED not in described(trainer_of(tmp_path, **options))


def test_conversations_and_texts_with_the_template_applied_are_not_said(tmp_path):
    turns = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"w{row % 5}"}] for row in range(20)]})
    applied = Dataset.from_dict({"prompt": [f"<bos> w{row % 5}" for row in range(20)]})
    for dataset in (turns, applied):
        assert NOT_APPLIED not in described(trainer_of(tmp_path, dataset=dataset, tokenizer=chat_tokenizer()))


def test_texts_of_a_stream_or_a_transform_are_said(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(list(numbered_prompts(20))))
    transformed = numbered_prompts(20).with_transform(lambda rows: rows)
    for dataset in (stream, transformed):
        assert NOT_APPLIED in described(trainer_of(tmp_path, dataset=dataset, tokenizer=chat_tokenizer()))


# Rewards


SOLVED = Dataset.from_dict({"prompt": [f"w{row % 17}" for row in range(20)], "solution": ["4"] * 20})


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
@pytest.mark.parametrize("rewards", ["accuracy_reward", ["accuracy_reward"], ("accuracy_reward",)])
def test_names_of_our_rewards_are_these_rewards(tmp_path, rewards, options):
    trainer = trainer_of(tmp_path, rewards=rewards, dataset=SOLVED, **options)
    assert trainer.reward_funcs[0] is accuracy_reward
    assert trainer.reward_func_names[0] == "accuracy_reward"
    with pytest.raises(ValueError, match=r"'accuracy_reward' needs the columns \['solution'\]"):
        trainer_of(tmp_path, rewards=rewards, **options)


def test_lists_of_the_caller_stay_theirs(tmp_path):
    rewards = ["accuracy_reward", first_token_reward]
    trainer = trainer_of(tmp_path, rewards=rewards, dataset=SOLVED)
    assert rewards == ["accuracy_reward", first_token_reward]
    assert trainer.reward_funcs[:2] == [accuracy_reward, first_token_reward]


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("acuracy_reward", "Did you mean 'accuracy_reward'"),
        ("my_own_reward", "The known rewards are: accuracy_reward"),
    ],
)
def test_unknown_names_are_answered_at_once(tmp_path, monkeypatch, name, answer, options):
    def load(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("trl.trainer.grpo_trainer.AutoModelForSequenceClassification.from_pretrained", load)
    for rewards in (name, [first_token_reward, name]):
        with pytest.raises(ValueError, match=answer):
            trainer_of(tmp_path, rewards=rewards, **options)


def test_names_of_models_are_left_to_trl(tmp_path, monkeypatch):
    asked = []

    def load(name, *args, **kwargs):
        asked.append(name)
        raise OSError("no such model")

    monkeypatch.setattr("trl.trainer.grpo_trainer.AutoModelForSequenceClassification.from_pretrained", load)
    folder = tmp_path / "a_reward"
    folder.mkdir()
    for name in ("some/reward-model", str(folder), "gpt2"):
        with pytest.raises(OSError, match="no such model"):
            trainer_of(tmp_path, rewards=name)
    assert asked == ["some/reward-model", str(folder), "gpt2"]


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
def test_tuple_of_functions_is_a_list_of_them(tmp_path, options):
    def length(completion_ids, **kwargs):
        return [float(len(ids)) for ids in completion_ids]

    trainer = trainer_of(tmp_path, rewards=(first_token_reward, length), soft_punish_cache=0, **options)
    trainer.train()
    assert trainer.reward_func_names == ["first_token_reward", "length"]
    listed = trainer_of(tmp_path, rewards=[first_token_reward, length], soft_punish_cache=0, **options)
    listed.train()
    assert trainer.state.log_history[0]["loss"] == listed.state.log_history[0]["loss"]


# Model


def adapter(tmp_path, **options):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model(), config).save_pretrained(tmp_path / "adapter")
    return PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter", **options)


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
def test_model_without_a_trainable_parameter_is_refused(tmp_path, options):
    trainer = trainer_of(tmp_path, model=adapter(tmp_path), **options)
    with pytest.raises(ValueError, match=r"no trainable parameter.*is_trainable=True"):
        trainer.train()
    frozen = tiny_model().requires_grad_(False)
    with pytest.raises(ValueError, match=r"no trainable parameter.*requires_grad"):
        trainer_of(tmp_path, model=frozen, **options).train()


def test_adapter_that_is_trainable_trains_and_a_frozen_one_can_be_evaluated(tmp_path):
    trainer = trainer_of(tmp_path, model=adapter(tmp_path, is_trainable=True))
    before = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert any((after[name] != value).any() for name, value in before.items())
    frozen = make_trainer(tmp_path, eval_dataset=numbered_prompts(8), per_device_eval_batch_size=8)
    frozen.model.requires_grad_(False)
    assert "eval_avg@4" in frozen.evaluate()


# Dataloader


@pytest.mark.parametrize(("options", "is_said"), [({}, True), (OFF, False)], ids=str)
def test_workers_that_read_no_prompts_are_announced(tmp_path, options, is_said):
    trainer = trainer_of(tmp_path, max_steps=1, dataloader_num_workers=2, **options)
    assert trainer.get_train_dataloader().num_workers == (0 if is_said else 2)
    line = "! dataloader_num_workers is 2, but the prompts of dynamic sampling are read without workers"
    assert (line in trainer._describe_run(1)) == is_said
    without = trainer_of(tmp_path, max_steps=1, **options)
    assert "dataloader_num_workers" not in without._describe_run(1)


# Prompts and rewards that tell little of themselves


class WithoutSignature:
    """As callables of compiled code are."""

    __name__ = "without_signature"
    __signature__ = "not readable"

    def __call__(self, completion_ids, **kwargs):
        return first_token_reward(completion_ids)


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
def test_reward_without_a_readable_signature_trains_as_the_function_does(tmp_path, options):
    with pytest.raises(TypeError):
        inspect.signature(WithoutSignature())
    losses = []
    for reward in (WithoutSignature(), first_token_reward):
        trainer = trainer_of(tmp_path, rewards=reward, max_steps=2, **options)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1]
    assert any(losses[0])


@pytest.mark.parametrize("options", [{}, OFF], ids=str)
def test_prompts_of_a_transform_train_as_those_of_a_column_do(tmp_path, options):
    column = numbered_prompts(20)

    def transform(rows):
        return {"prompt": [f"w{row % 17} w{row // 17 % 17}" for row in rows["row"]], "row": rows["row"]}

    losses = []
    for dataset in (column.remove_columns("prompt").with_transform(transform), column):
        trainer = trainer_of(tmp_path, dataset=dataset, max_steps=2, **options)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1]
    assert any(losses[0])
