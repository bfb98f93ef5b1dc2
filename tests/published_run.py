"""A Hub on the loopback interface, and a run that can be pushed to it."""

from pathlib import Path

import pytest
import torch
from hub_client import use_hub
from huggingface_hub import snapshot_download
from loopback_hub import LoopbackHub
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer


WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub() as hub:
        use_hub(monkeypatch, hub, tmp_path)
        yield hub


def make_trainer(output_dir, peft_config=None, **overrides):
    return DAPOTrainer(
        model=tiny_model(),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(output_dir, **{"max_steps": 2} | overrides)),
        train_dataset=numbered_prompts(50),
        eval_dataset=numbered_prompts(58).select(range(50, 58)),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was never pushed."""
    folder = tmp_path_factory.mktemp("runs") / "tiny-dapo"
    trainer = make_trainer(folder)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    return folder


@pytest.fixture
def run_folder(trained, tmp_path):
    folder = tmp_path / trained.name
    folder.mkdir()
    for path in trained.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def greedy(model, tokenizer):
    ids = tokenizer(["w1 w2", "w5 w3"], return_tensors="pt").input_ids
    return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8).tolist()


def pull(repo_id, tmp_path, revision=None):
    return Path(snapshot_download(repo_id, revision=revision, local_dir=tmp_path / "pulled"))
