"""What the trainer pushes, with the real Hub client against a Hub on the loopback interface."""

import copy
import json
import time

import pytest
import torch
from datasets import Dataset
from hub_client import use_token
from huggingface_hub import ModelCard
from peft import LoraConfig
from published_run import WEIGHTS, greedy, hub, make_trainer, pull  # noqa: F401
from test_command_line import model_folder  # noqa: F401
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_dapo import DAPOConfig, DAPOTrainer, HubPushError
from trl_dapo.checkpoints.files import find_fault
from trl_dapo.command_line import main


@pytest.mark.curves
def test_pushed_model_comes_back_bit_for_bit_and_says_the_same(hub, tmp_path):
    trainer = make_trainer(tmp_path / "out", hub_model_id="me/tiny-dapo")
    trainer.train()
    trainer.push_to_hub()
    folder = pull("me/tiny-dapo", tmp_path)
    sent, received = trainer.model.state_dict(), AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert sent.keys() == received.keys()
    assert all(torch.equal(sent[name], received[name]) for name in sent)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert greedy(model, tokenizer) == greedy(trainer.model.eval(), tiny_tokenizer())
    for name in ("README.md", "curves.png", "run_facts.json"):
        assert (folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_lora_adapter_is_pushed_as_one_and_works_on_its_base(hub, tmp_path):
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    trainer = DAPOTrainer(
        model=str(base),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path / "out", max_steps=2, hub_model_id="me/tiny-lora")),
        train_dataset=numbered_prompts(50),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.push_to_hub()
    files = hub.files("me/tiny-lora")
    assert "adapter_model.safetensors" in files
    assert WEIGHTS not in files
    card = ModelCard.load(pull("me/tiny-lora", tmp_path) / "README.md")
    assert card.data.library_name == "peft"
    assert "LoRA adapter" in card.text
    assert "rank 2, alpha 4" in card.text
    assert f"of which {2 * 2 * (2 * 16 * 2):,} were trained" in card.text
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pulled")
    assert greedy(model, tiny_tokenizer()) == greedy(trainer.model.eval(), tiny_tokenizer())


def test_token_of_the_configuration_is_not_published_with_it(hub, tmp_path, monkeypatch):
    use_token(monkeypatch, None)
    trainer = make_trainer(tmp_path / "out", hub_model_id="me/tiny", hub_token="hf_writer")
    trainer.push_to_hub()
    pushed = hub.files("me/tiny")
    assert "training_args.bin" in pushed
    assert not any(b"hf_writer" in content for content in pushed.values())
    loaded = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert (loaded.hub_token, loaded.epsilon_high) == (None, 0.28)
    for same in (trainer.args, copy.copy(trainer.args), copy.deepcopy(trainer.args)):
        assert same.hub_token == "hf_writer"


def test_every_save_is_pushed_with_its_card(hub, tmp_path):
    options = {"push_to_hub": True, "hub_strategy": "every_save", "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path / "out", hub_model_id="me/saves", hub_always_push=True, **options)
    trainer.train()
    trainer._finish_current_push()
    messages = hub.messages("me/saves")
    assert messages == ["initial commit", "Training in progress, step 1", "Training in progress, step 2"]
    first = hub.repositories["me/saves"].branches["main"][1][2]
    last = hub.files("me/saves")
    assert json.loads(last["run_facts.json"])["step"] == 2
    assert last[WEIGHTS] == (tmp_path / "out" / "checkpoint-2" / WEIGHTS).read_bytes()
    assert first[WEIGHTS].content == (tmp_path / "out" / "checkpoint-1" / WEIGHTS).read_bytes()
    assert b"These weights are of step 1 of 2" in first["README.md"].content
    assert b"These weights are of step" not in last["README.md"]


def test_push_that_is_slower_than_the_next_save_is_of_its_own_step(hub, tmp_path, monkeypatch):
    # Nor does it matter who writes the card.
    monkeypatch.setattr(DAPOTrainer, "create_model_card", lambda self, *args, **kwargs: None)
    options = {"push_to_hub": True, "hub_strategy": "every_save", "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path / "out", hub_model_id="me/slow", hub_always_push=True, **options)
    hub.seconds_per_request = 0.5
    trainer.train()
    trainer._finish_current_push()
    commits = hub.repositories["me/slow"].branches["main"][1:]
    assert [message for _, message, _ in commits] == [f"Training in progress, step {step}" for step in (1, 2)]
    for step, (_, _, files) in enumerate(commits, start=1):
        assert files[WEIGHTS].content == (tmp_path / "out" / f"checkpoint-{step}" / WEIGHTS).read_bytes()


def test_checkpoint_that_could_not_be_pushed_is_told(hub, tmp_path, caplog):
    options = {"push_to_hub": True, "hub_strategy": "every_save", "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path / "out", hub_model_id="me/refused", hub_always_push=True, **options)
    hub.refuses_content = True
    trainer.train()
    trainer._finish_current_push()
    assert hub.messages("me/refused") == ["initial commit"]
    # The thread of the push tells it, when it is done.
    deadline = time.monotonic() + 60
    while not (told := [text for text in caplog.messages if "could not be pushed" in text]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(told) == 1
    assert told[0].startswith(
        "A checkpoint could not be pushed to me/refused. Training goes on, and pushes the next one."
    )
    assert "The Hub" in told[0].partition("next one.")[2]


def test_checkpoint_on_the_hub_is_whole(hub, tmp_path):
    options = {"push_to_hub": True, "hub_strategy": "checkpoint", "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path / "out", hub_model_id="me/checkpoint", hub_always_push=True, **options)
    trainer.train()
    trainer._finish_current_push()
    for name, content in hub.files("me/checkpoint").items():
        if name.startswith("last-checkpoint/"):
            path = tmp_path / "pushed" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    pushed = tmp_path / "pushed" / "last-checkpoint"
    assert json.loads((pushed / "dapo_manifest.json").read_text())["is_whole"]
    assert find_fault(pushed) is None


def test_with_the_strategy_end_nothing_is_pushed_before_it(hub, tmp_path):
    options = {"push_to_hub": True, "hub_strategy": "end", "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path / "out", hub_model_id="me/end", **options)
    trainer.train()
    assert hub.messages("me/end") == ["initial commit"]
    trainer.push_to_hub()
    assert hub.messages("me/end") == ["initial commit", "End of training"]
    assert json.loads(hub.files("me/end")["run_facts.json"])["step"] == 2


def test_failed_push_of_the_trainer_leaves_the_model_and_says_how_to_go_on(hub, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "out", hub_model_id="other/tiny")
    trainer.train()
    with pytest.raises(
        HubPushError, match=rf"trl-dapo push --output_dir {tmp_path / 'out'} --hub_model_id other/tiny"
    ):
        trainer.push_to_hub()
    trainer.save_model()
    main(["push", "--output_dir", str(tmp_path / "out"), "--hub_model_id", "me/tiny"])
    assert hub.files("me/tiny")[WEIGHTS] == (tmp_path / "out" / WEIGHTS).read_bytes()


def test_run_that_will_be_pushed_is_refused_before_it_trains(hub, tmp_path, monkeypatch):
    use_token(monkeypatch, "hf_wrong")
    with pytest.raises(HubPushError, match="does not accept the token") as raised:
        make_trainer(tmp_path / "out", hub_model_id="me/tiny", push_to_hub=True)
    assert "The model is safe" not in str(raised.value)


def test_run_of_the_command_line_ends_on_the_hub_with_its_results(hub, model_folder, tmp_path):
    rows = [{"question": f"w{number}", "answer": f"#### {number}"} for number in range(8)]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    out = tmp_path / "out"
    options = training_arguments(out, max_steps=1, eval_on_start=True, num_generations_eval=4, max_generation_rounds=2)
    options |= {"model_name_or_path": model_folder, "dataset_name": tmp_path / "rows.jsonl"}
    options |= {"push_to_hub": True, "hub_model_id": "me/trained", "per_device_eval_batch_size": 8}
    main(["train", *(str(part) for name, value in options.items() for part in (f"--{name}", value))])
    assert hub.messages("me/trained") == ["initial commit", "Upload model"]
    pushed = hub.files("me/trained")
    for name in (WEIGHTS, "README.md", "curves.png", "results.json"):
        assert pushed[name] == (out / name).read_bytes()
    card = ModelCard(pushed["README.md"].decode())
    assert "on 7 prompts of rows.jsonl (not on the Hub), 1 optimizer step." in card.text
    assert "Held out: 1 problems, cut off the training data by prompt" in card.text
    accuracy = next(result for result in card.data.eval_results if result.metric_name == "avg@4")
    assert (accuracy.dataset_name, accuracy.metric_args["num_problems"]) == ("rows.jsonl", 1)
    assert accuracy.metric_value == json.loads(pushed["results.json"])["accuracy_after"]
