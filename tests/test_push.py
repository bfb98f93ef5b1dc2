"""From a trained model to the Hub and back, with the real Hub client against a Hub on the loopback interface."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from hub_client import hub_environment, use_hub, use_token
from huggingface_hub import HfApi, ModelCard, snapshot_download
from loopback_hub import LoopbackHub
from peft import LoraConfig
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_dapo import DAPOConfig, DAPOTrainer, HubPushError, HubUnreachableError
from trl_dapo.command_line import main
from trl_dapo.publishing import PushOptions, push_run


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
        eval_dataset=numbered_prompts(8),
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
    assert b"Training was at step 1 of 2" in first["README.md"].content
    assert b"Training was at step" not in last["README.md"]


def test_with_the_strategy_end_nothing_is_pushed_before_it(hub, tmp_path):
    options = {"push_to_hub": True, "hub_strategy": "end", "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path / "out", hub_model_id="me/end", **options)
    trainer.train()
    assert hub.messages("me/end") == ["initial commit"]
    trainer.push_to_hub()
    assert hub.messages("me/end") == ["initial commit", "End of training"]
    assert json.loads(hub.files("me/end")["run_facts.json"])["step"] == 2


def test_command_pushes_what_belongs_to_the_model_and_nothing_else(hub, run_folder, capsys):
    (run_folder / "checkpoint-1").mkdir()
    (run_folder / "checkpoint-1" / "optimizer.pt").write_text("state")
    (run_folder / "completions.parquet").write_text("sampled")
    main(["push", "--output_dir", str(run_folder), "--hub_private_repo", "true"])
    files = set(hub.files("me/tiny-dapo")) - {".gitattributes"}
    assert {WEIGHTS, "config.json", "tokenizer.json", "README.md", "curves.png", "run_facts.json"} <= files
    assert "training_args.bin" in {path.name for path in run_folder.iterdir()}
    assert not {"training_args.bin", "completions.parquet"} & files
    assert not any(name.startswith("checkpoint") for name in files)
    assert hub.repositories["me/tiny-dapo"].private
    assert "Left out: checkpoint-1, completions.parquet, training_args.bin" in capsys.readouterr().out
    assert b'model="me/tiny-dapo"' in hub.files("me/tiny-dapo")["README.md"]


def test_branch_gets_the_model_and_main_does_not(hub, run_folder):
    push_run(run_folder, "tiny", PushOptions(revision="step-2"))
    assert WEIGHTS in hub.files("me/tiny", "step-2")
    assert WEIGHTS not in hub.files("me/tiny")


def shard(folder):
    """Saves the model anew, in several files."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) >= 3
    return shards


def test_killed_upload_goes_on_where_it_was(hub, run_folder, tmp_path):
    shards = shard(run_folder)
    command = [sys.executable, "-m", "trl_dapo", "push", "--output_dir", str(run_folder), "--hub_model_id", "me/tiny"]
    environment = hub_environment(hub, tmp_path) | {"PYTHONPATH": str(ROOT)}
    hub.uploads_let_through = 2
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert hub.stalled.wait(timeout=300)
        process.kill()
    arrived = dict(hub.received)
    assert len(arrived) == 2
    assert hub.messages("me/tiny") == ["initial commit"]
    hub.release()
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    # Each byte came in once, although the second push offered all files.
    assert {oid: hub.received[oid] for oid in arrived} == arrived
    assert all(hub.received[oid] == len(content) for oid, content in hub.objects.items())
    pulled = pull("me/tiny", tmp_path)
    for path in shards:
        assert (pulled / path.name).read_bytes() == path.read_bytes()


def test_large_files_go_in_parts(monkeypatch, run_folder, tmp_path):
    with LoopbackHub(part_size=5000) as hub:
        use_hub(monkeypatch, hub, tmp_path)
        push_run(run_folder, "me/tiny")
        assert sum("/part/" in request for request in hub.requests) >= 2
        assert pull("me/tiny", tmp_path).joinpath(WEIGHTS).read_bytes() == (run_folder / WEIGHTS).read_bytes()


def test_second_push_sends_nothing_again(hub, run_folder):
    push_run(run_folder, "me/tiny")
    received, commits = dict(hub.received), hub.messages("me/tiny")
    push_run(run_folder, "me/tiny")
    assert dict(hub.received) == received
    assert hub.messages("me/tiny") == commits


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, "tiny", r"^HubPushError: There is no Hub token\. .*set it as HF_TOKEN or run `hf auth login`"),
        (
            "hf_wrong",
            "tiny",
            r"(?s)does not accept the token.*The model is safe in .*tiny-dapo.*trl-dapo push --output_dir",
        ),
        ("hf_reader", "tiny", "The token of me may only read"),
        ("hf_writer", "other/tiny", r"(?s)no right to write to other/tiny.*namespace \"other\".*The model is safe"),
    ],
)
def test_refusals_say_what_to_do(hub, run_folder, monkeypatch, token, repo_id, message):
    use_token(monkeypatch, token)
    before = (run_folder / WEIGHTS).read_bytes()
    with pytest.raises(SystemExit, match=message):
        main(["push", "--output_dir", str(run_folder), "--hub_model_id", repo_id])
    assert (run_folder / WEIGHTS).read_bytes() == before
    assert hub.repositories == {}


def test_command_in_the_message_succeeds_once_the_cause_is_gone(hub, run_folder, monkeypatch):
    use_token(monkeypatch, "hf_wrong")
    with pytest.raises(SystemExit) as ended:
        main(["push", "--output_dir", str(run_folder), "--hub_model_id", "tiny"])
    command = str(ended.value).splitlines()[-1].split()
    use_token(monkeypatch, "hf_writer")
    assert command[:2] == ["trl-dapo", "push"]
    main(command[1:])
    assert hub.files("me/tiny")[WEIGHTS] == (run_folder / WEIGHTS).read_bytes()


def test_name_of_another_model_is_taken_until_it_is_meant(hub, run_folder, tmp_path):
    api = HfApi()
    api.create_repo("me/tiny")
    api.upload_file(path_or_fileobj=b"other weights", path_in_repo=WEIGHTS, repo_id="me/tiny")
    with pytest.raises(
        HubPushError, match=r"The name me/tiny is taken: it holds another model \(model\.safetensors differ\)"
    ):
        push_run(run_folder, "me/tiny")
    assert hub.files("me/tiny")[WEIGHTS] == b"other weights"
    push_run(run_folder, "me/tiny", PushOptions(overwrite=True))
    assert hub.files("me/tiny")[WEIGHTS] == (run_folder / WEIGHTS).read_bytes()


def test_unreachable_hub_is_named(run_folder, monkeypatch, tmp_path):
    with LoopbackHub() as hub:
        use_hub(monkeypatch, hub, tmp_path)
    with pytest.raises(HubUnreachableError, match=rf"(?s)The Hub at {hub.endpoint} does not answer.*trl-dapo push"):
        push_run(run_folder, "me/tiny")


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


def test_refusal_in_the_middle_of_the_upload_is_told_too(hub, run_folder):
    hub.refuses_content = True
    with pytest.raises(
        HubPushError, match=r"(?s)The Hub refused \(413\)\..*Storage limit reached.*The model is safe in"
    ):
        push_run(run_folder, "me/tiny")
    hub.refuses_content = False
    push_run(run_folder, "me/tiny")
    assert hub.files("me/tiny")[WEIGHTS] == (run_folder / WEIGHTS).read_bytes()


def test_upload_by_xet_that_breaks_off_is_told_too(hub, run_folder, tmp_path):
    pytest.importorskip("hf_xet")
    # The Hub here offers Xet to nobody: the client's own errors of it arrive, which are not those of HTTP.
    environment = hub_environment(hub, tmp_path) | {"PYTHONPATH": str(ROOT)}
    del environment["HF_HUB_DISABLE_XET"]
    command = [sys.executable, "-m", "trl_dapo", "push", "--output_dir", str(run_folder), "--hub_model_id", "me/tiny"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 1
    last_lines = "\n".join(finished.stderr.splitlines()[-3:])
    assert "HubPushError: The upload to me/tiny broke off:" in last_lines
    assert f"trl-dapo push --output_dir {run_folder} --hub_model_id me/tiny" in last_lines


def test_interrupted_command_says_how_to_go_on(hub, run_folder, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "upload_folder", interrupt)
    with pytest.raises(
        SystemExit, match=rf"(?s)Interrupted\..*trl-dapo push --output_dir {run_folder} --overwrite true$"
    ):
        main(["push", "--output_dir", str(run_folder), "--overwrite", "true"])


def test_run_that_will_be_pushed_is_refused_before_it_trains(hub, tmp_path, monkeypatch):
    use_token(monkeypatch, "hf_wrong")
    with pytest.raises(HubPushError, match="does not accept the token") as raised:
        make_trainer(tmp_path / "out", hub_model_id="me/tiny", push_to_hub=True)
    assert "The model is safe" not in str(raised.value)


def test_folder_without_a_model_is_refused_before_anything_is_asked(hub, run_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        push_run(tmp_path / "nowhere")
    shards = shard(run_folder)
    shards[-1].unlink()
    with pytest.raises(FileNotFoundError, match=f"holds {len(shards) - 1} of {len(shards)} parts of the weights"):
        push_run(run_folder)
    for path in run_folder.glob("model-*"):
        path.unlink()
    (run_folder / "checkpoint-2").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no model: .*Save the model first.*checkpoint-2"):
        push_run(run_folder)
    with pytest.raises(ValueError, match=r"hub_model_id is 'a/b/c', but must be `name` or `namespace/name`"):
        push_run(_with_model(tmp_path / "other"), "a/b/c")
    assert hub.requests == []


def _with_model(folder):
    tiny_model().save_pretrained(folder)
    return folder


def evaluated(model_folder, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(model_folder)
    rows = [{"question": f"w{number} w2", "answer": f"so #### {number}"} for number in range(4)]
    Dataset.from_list(rows).to_json(tmp_path / "problems.jsonl")
    options = ["--dataset_name", str(tmp_path / "problems.jsonl"), "--k", "2", "--max_completion_length", "6"]
    out = tmp_path / "eval"
    main(["eval", "--model_name_or_path", str(model_folder), *options, "--output_dir", str(out)])
    return out


def test_results_of_an_evaluation_enter_the_card_and_its_metadata(hub, run_folder, tmp_path):
    out = evaluated(run_folder, tmp_path)
    main(["push", "--output_dir", str(run_folder), "--hub_model_id", "tiny", "--results", str(out)])
    folder = pull("me/tiny", tmp_path)
    card = ModelCard.load(folder / "README.md")
    figures = json.loads((out / "results.json").read_text())["figures"]
    by_name = {result.metric_name: result for result in card.data.eval_results if "seed" in result.metric_args}
    assert set(by_name) == {name for name in figures if "@" in name}
    for name, result in by_name.items():
        assert result.metric_value == figures[name]["value"]
        assert (result.metric_args["k"], result.metric_args["temperature"]) == (2, 1.0)
        assert result.metric_args["num_problems"] == 4
        assert result.dataset_name == "problems.jsonl"
    assert "**problems.jsonl**: 4 problems, 2 completions each, temperature 1, top-p 0.7" in card.text
    (copy,) = (folder / "evaluations").iterdir()
    assert copy.read_bytes() == (out / "results.json").read_bytes()
    # They stay when the model is pushed again without naming them.
    push_run(run_folder, "me/tiny")
    assert hub.files("me/tiny")["README.md"] == (folder / "README.md").read_bytes()


def test_results_of_other_weights_are_refused(hub, run_folder, tmp_path):
    out = evaluated(run_folder, tmp_path)
    tiny_model(seed=1).save_pretrained(run_folder)
    with pytest.raises(ValueError, match="are of other weights"):
        push_run(run_folder, "me/tiny", PushOptions(results=[str(out)]))
    assert hub.repositories == {}


def test_card_that_was_edited_is_pushed_as_it_is(hub, run_folder, tmp_path, capsys):
    card = run_folder / "README.md"
    card.write_text(card.read_text().replace("## Limits", "## What I think\n\nFine.\n\n## Limits"))
    push_run(run_folder, "me/tiny")
    assert "README.md stays as it is: it was edited." in capsys.readouterr().out
    assert hub.files("me/tiny")["README.md"] == card.read_bytes()
    with pytest.raises(ValueError, match="So results cannot enter it"):
        push_run(run_folder, "me/tiny", PushOptions(results=[str(evaluated(run_folder, tmp_path))]))
