"""The model card: what it says is what the run recorded, whatever names it is given."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_client import use_hub
from huggingface_hub import ModelCard
from loopback_card_checks import card_problems
from loopback_hub import LoopbackHub
from markdown_it import MarkdownIt
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.data.source import DataSource
from trl_dapo.publishing.card import is_unedited, render_card, write_card
from trl_dapo.publishing.card_results import Evaluation
from trl_dapo.publishing.card_text import as_code, as_markdown, as_table
from trl_dapo.publishing.facts import RunFacts, changed_settings


EVIL = "a|b<img src=x onerror=alert(1)>\n---\nlicense: mit\n`c` **d** [e](https://evil.example) {{ 7 * 7 }} www.evil.example"


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    trainer = DAPOTrainer(
        model=tiny_model(),
        reward_funcs=first_token_reward,
        args=DAPOConfig(
            **training_arguments(folder, max_steps=2, eval_on_start=True, num_generations_eval=2, epsilon_high=0.3)
        ),
        train_dataset=numbered_prompts(50),
        eval_dataset=numbered_prompts(58).select(range(50, 58)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    return trainer


@pytest.fixture(scope="module")
def facts(trainer):
    return RunFacts.read(trainer.args.output_dir)


def evaluation(name="aime.jsonl", **overrides):
    figure = {"value": 0.25, "low": 0.125, "high": 0.5}
    settings = {"k": 4, "temperature": 0.6, "top_p": 0.95, "max_completion_length": 9, "seed": 3}
    settings |= {"engine": "transformers", "dtype": "torch.float32", "weights": "0" * 16}
    content = {"source": DataSource(name), "figures": {"avg@4": figure, "mean_length": figure}}
    content |= {"num_problems": 30, "num_unreadable_golds": 1, "settings": settings}
    return Evaluation(**content | overrides)


def rendered(card):
    """The card's body as HTML, by another program than the one that wrote it."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)


def test_results_are_those_that_were_logged_at_the_step_of_the_weights(trainer):
    card = ModelCard.load(f"{trainer.args.output_dir}/README.md")
    logged = [entry for entry in trainer.state.log_history if "eval_avg@2" in entry]
    assert [entry["step"] for entry in logged] == [0, 2]
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        name: logged[-1][f"eval_{name}"] for name in ("avg@2", "pass@2")
    }
    cells = [f"{100 * entry['eval_avg@2']:.1f} %" for entry in logged]
    assert f"| `avg@2` | held-out problems | 8 | {cells[0]} | {cells[1]} |" in card.text


def test_results_of_older_weights_stay_out_of_the_metadata(facts):
    later = dataclasses.replace(facts, step=5, num_steps=9)
    card = render_card(later)
    assert card.data.eval_results is None
    assert "These weights are of step 5 of 9" in card.text
    assert "| step 0 | step 2 |" in card.text


def test_best_weights_are_told_from_the_last(tmp_path):
    options = {"load_best_model_at_end": True, "metric_for_best_model": "eval_num_tokens", "greater_is_better": False}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    trainer = DAPOTrainer(
        model=tiny_model(),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path / "out", num_generations_eval=2, **options)),
        train_dataset=numbered_prompts(50),
        eval_dataset=numbered_prompts(58).select(range(50, 58)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    trainer.create_model_card()
    # The tokens seen only grow, so the first checkpoint is the best by that measure.
    first = next(entry for entry in trainer.state.log_history if "eval_avg@2" in entry)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "These weights are of step 1 of 3." in card.text
    assert next(r.metric_value for r in card.data.eval_results if r.metric_name == "avg@2") == first["eval_avg@2"]


def test_card_passes_the_checks_of_the_hub(trainer, monkeypatch, tmp_path):
    with LoopbackHub() as hub:
        use_hub(monkeypatch, hub, tmp_path)
        card = ModelCard.load(f"{trainer.args.output_dir}/README.md")
        card.validate()
        assert "POST /api/validate-yaml" in hub.requests
        # The checks do check.
        card.data.base_model = "out/run/model"
        with pytest.raises(ValueError, match="base_model"):
            card.validate()


def test_settings_that_were_set_are_listed_and_no_others(facts):
    assert facts.settings == {
        "learning_rate": [1e-2, 1e-6],
        "max_steps": [2, -1],
        "num_generations": [4, 8],
        "num_generations_eval": [2, 4],
        "max_completion_length": [8, 512],
        "epsilon_high": [0.3, 0.28],
        "seed": [7, 42],
    }
    card = render_card(facts)
    assert "| `epsilon_high` | `0.3` | `0.28` |" in card.text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dynamic_sampling": False},
        {"max_completion_length": 1000},
        {"gradient_accumulation_steps": 4, "steps_per_generation": 8, "per_device_train_batch_size": 16},
        {"loss_type": "grpo"},
        {"hub_token": "hf_secret", "output_dir": "elsewhere", "run_name": "x", "report_to": "none"},
    ],
)
def test_what_follows_from_other_settings_is_not_listed(options):
    given = {"output_dir": "out", "use_cpu": True, "bf16": False} | options
    named = {"max_completion_length", "gradient_accumulation_steps", "steps_per_generation", "loss_type"}
    named |= {"per_device_train_batch_size", "dynamic_sampling"}
    assert set(changed_settings(DAPOConfig(**given))) == named & set(options)


def test_paths_and_secrets_of_the_machine_are_not_written(trainer, tmp_path):
    args = DAPOConfig(
        "/home/me/secret",
        use_cpu=True,
        bf16=False,
        hub_token="hf_secret",
        generation_kwargs={"assistant": "/home/me/model", "eta_cutoff": 0.1},
    )
    assert changed_settings(args) == {"generation_kwargs": [{"assistant": "model", "eta_cutoff": 0.1}, None]}
    assert DataSource.named(str(tmp_path)) == DataSource(tmp_path.name)
    for name in ("README.md", "run_facts.json"):
        assert trainer.args.output_dir not in Path(trainer.args.output_dir, name).read_text()


def test_evil_names_break_neither_metadata_nor_page(facts):
    evil = dataclasses.replace(
        facts,
        model_name=EVIL,
        base_model=EVIL,
        train_data=DataSource(EVIL, split=EVIL),
        rewards={EVIL: 1.0},
        method=[EVIL],
        departures=[EVIL],
        settings={"filter_reward": [EVIL, None]},
        hardware={"device": EVIL, "num_processes": 1, "precision": EVIL, "sampler": EVIL},
        versions={"python": EVIL},
        adapter={"type": EVIL, "on": EVIL},
        license=EVIL,
        tags=[EVIL],
        trackers={"W&B": 'javascript:alert("x")', EVIL: "https://wandb.example/run"},
        log_history=[{"step": 2, f"eval_{EVIL}_avg@2": 0.5}],
    )
    card = render_card(evil, "me/tiny", [evaluation(EVIL)], has_curves=True)
    data = ModelCard(str(card)).data
    assert data.library_name == "peft"
    assert data.license == " ".join(EVIL.split())
    assert data.tags == [" ".join(EVIL.split())]
    assert {result.dataset_name for result in data.eval_results} == {" ".join(EVIL.split())}
    assert len(data.eval_results) == 2
    html = rendered(card)
    harmless = rendered(render_card(facts, "me/tiny", [evaluation()], has_curves=True))
    assert html.count("<img") == harmless.count("<img") == 1
    assert "javascript:" not in html
    for word in ("<strong>d", "<em>", 'href="https://evil', "<h2>license", "<hr"):
        assert word not in html
    assert "49" not in card.text.replace("7 * 7", "")
    # No cell was split: each row has as many cells as the head of its table.
    for table in html.split("<table>")[1:]:
        rows = table.split("</table>")[0].split("<tr>")[1:]
        assert len({row.count("<th") + row.count("<td") for row in rows}) == 1
    assert html.count("onerror=alert(1)&gt;") == html.count("onerror")


@pytest.mark.parametrize("text", [EVIL, "a`b``c", "|", "``", " ", "\x00\u202e", "~~x~~ $y$ @me", "*" * 999])
def test_text_in_a_table_comes_out_as_it_went_in(text):
    html = MarkdownIt("commonmark").enable("table").render(as_table(["a", "b"], [[as_markdown(text), as_code(text)]]))
    cells = html.split("<td>")[1:]
    assert len(cells) == 2
    assert cells[1].startswith("<code>")
    assert html.count("<code>") == 1
    for tag in ("<a", "<strong", "<em", "<img", "<s>"):
        assert tag not in html


def test_facts_survive_the_file_and_figures_that_are_no_numbers(facts, trainer, tmp_path):
    broken = dataclasses.replace(facts, log_history=[{"step": 1, "loss": None}])
    broken.write(tmp_path)
    assert RunFacts.read(tmp_path) == broken
    assert not list(tmp_path.glob("*.tmp"))
    figures = {"eval_avg@2": math.nan, "loss": math.inf, "reward": np.float32(0.5), "num_tokens": torch.tensor(3)}
    trainer.state.log_history.append({"step": 2} | figures)
    try:
        trainer.create_model_card()
    finally:
        trainer.state.log_history.pop()
    text = Path(trainer.args.output_dir, "run_facts.json").read_text()
    last = json.loads(text, parse_constant=pytest.fail)["log_history"][-1]
    assert last == {"step": 2, "eval_avg@2": None, "loss": None, "reward": 0.5, "num_tokens": 3}
    trainer.create_model_card()


def test_nothing_is_said_of_what_was_not_measured(facts):
    nothing = dataclasses.replace(facts, log_history=[], settings={}, departures=[], step=0, num_steps=2)
    card = render_card(nothing)
    assert "None were recorded." in card.text
    for word in (
        "Held-out",
        "In training",
        "trl-dapo eval",
        "curves.png",
        "Training time",
        "Settings that",
        "```python",
    ):
        assert word not in card.text
    assert card.data.eval_results is None
    assert card_problems(str(card)) == []


def test_hub_ids_are_linked_and_in_the_metadata_and_local_ones_are_not(facts):
    on_hub = dataclasses.replace(
        facts,
        base_model="Qwen/Qwen2.5-0.5B-Instruct",
        base_model_is_on_hub=True,
        train_data=DataSource("openai/gsm8k", True, "main", "train", "a" * 40),
        license="apache-2.0",
    )
    card = render_card(on_hub, "me/tiny")
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert card.data.datasets == "openai/gsm8k"
    assert card.data.license == "apache-2.0"
    assert 'href="https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct"' in rendered(card)
    assert 'href="https://huggingface.co/datasets/openai/gsm8k"' in rendered(card)
    assert card_problems(str(card)) == []
    local = render_card(dataclasses.replace(facts, base_model="model", train_data=DataSource("problems.jsonl")))
    assert local.data.get("base_model") is None
    assert local.data.get("datasets") is None
    assert "model (not on the Hub)" in local.text
    assert "problems.jsonl (not on the Hub)" in local.text


def test_evaluation_is_told_with_its_circumstances(facts):
    card = render_card(facts, evaluations=[evaluation()])
    assert (
        "**aime.jsonl**: 30 problems, 4 completions each, temperature 0.6, top-p 0.95, at most 9 tokens, seed 3, "
        "transformers in float32. Problems with an unreadable gold, which count only in lengths: 1." in card.text
    )
    assert "| `avg@4` | 25.0 % | 12.5 % to 50.0 % |" in card.text
    result = next(result for result in card.data.eval_results if result.metric_args.get("seed") == 3)
    assert result.metric_args["interval_95"] == [0.125, 0.5]


def test_edit_of_a_card_is_seen(facts, tmp_path):
    write_card(render_card(facts), tmp_path)
    assert is_unedited(tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text().replace("Limits", "limits"))
    assert not is_unedited(tmp_path)
    card.write_text("# My own\n")
    assert not is_unedited(tmp_path)


def test_license_of_the_base_model_is_taken_from_its_card(tmp_path):
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    trainer = DAPOTrainer(
        model=str(base),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path / "out", max_steps=1)),
        train_dataset=numbered_prompts(50),
        processing_class=tiny_tokenizer(),
    )
    trainer.create_model_card()
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "mit"
    trainer.create_model_card(license="apache-2.0", dataset_name="openai/gsm8k", tags="math")
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.datasets) == ("apache-2.0", "openai/gsm8k")


def test_training_goes_on_when_the_card_cannot_be_written(tmp_path, caplog):
    trainer = DAPOTrainer(
        model=tiny_model(),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path / "out", max_steps=1, save_strategy="steps", save_steps=1)),
        train_dataset=numbered_prompts(50),
        processing_class=tiny_tokenizer(),
    )
    # A folder where the file should go: no way to write it.
    (tmp_path / "out" / "run_facts.json").mkdir(parents=True)
    trainer.train()
    assert (tmp_path / "out" / "checkpoint-1" / "model.safetensors").exists()
    assert "The model card could not be written; training goes on." in caplog.text
    with pytest.raises(OSError, match="run_facts"):
        trainer.create_model_card()
