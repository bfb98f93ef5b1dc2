"""Tokens, keys and passwords are in no file of a run, on no page of the Hub and in no line that is printed."""

import copy
import io
import os
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_client import use_token
from published_run import hub, make_trainer  # noqa: F401
from tiny import training_arguments

from trl_dapo import DAPOConfig
from trl_dapo.config.secrets import without_secrets
from trl_dapo.publishing.facts import changed_settings


# The first is one that the Hub of the tests knows; the others stand in the environment or in fields of other libraries.
TOKEN = "hf_writer"
SECRETS = {
    "HF_TOKEN": TOKEN,
    "WANDB_API_KEY": "wandb0secret",
    "OPENAI_API_KEY": "openai0secret",
    "AWS_SECRET_ACCESS_KEY": "aws0secret",
    "https_proxy": "http://proxyuser:proxy0secret@127.0.0.1:9",
}
IN_FIELDS = {
    "model_init_kwargs": {"token": "model0secret"},
    "vllm_server_base_url": "http://someone:vllm0secret@host:8000",
    "vllm_engine_kwargs": {"hf_token": "engine0secret"},
}
NEEDLES = [
    TOKEN,
    "wandb0secret",
    "openai0secret",
    "aws0secret",
    "proxy0secret",
    "model0secret",
    "vllm0secret",
    "engine0secret",
]


def contents(name, raw):
    """A file as it is, and as it reads when it is unpacked."""
    yield raw
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(raw))
        yield repr(table.to_pydict()).encode() + repr(table.schema.metadata).encode()
    elif zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            yield from map(archive.read, archive.namelist())


def found_in(name, raw):
    # As text, and as Python and JSON may have written it.
    return [needle for needle in NEEDLES for content in contents(name, raw) if needle.encode() in content]


def test_search_finds_what_it_looks_for(tmp_path):
    torch.save({"a": "xx aws0secret"}, tmp_path / "a.bin")
    pq.write_table(pa.table({"a": ["engine0secret"] * 9}), tmp_path / "a.parquet", compression="zstd")
    found = {path.name: found_in(path.name, path.read_bytes()) for path in tmp_path.iterdir()}
    assert {name: sorted(set(needles)) for name, needles in found.items()} == {
        "a.bin": ["aws0secret"],
        "a.parquet": ["engine0secret"],
    }


def test_run_keeps_its_secrets_to_itself(hub, tmp_path, monkeypatch, capfd, caplog):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    use_token(monkeypatch, None)
    out = tmp_path / "out"
    options = {"push_to_hub": True, "hub_strategy": "all_checkpoints", "hub_always_push": True, "hub_token": TOKEN}
    options |= {"save_strategy": "steps", "save_steps": 1, "log_completions": True, "eval_on_start": True}
    options |= {"num_generations_eval": 2, "report_to": "none"} | IN_FIELDS
    try:
        import tensorboard
    except ImportError:
        pass
    else:
        options["report_to"] = tensorboard.__name__
    trainer = make_trainer(out, hub_model_id="me/tiny", **options)
    trainer.train()
    trainer.save_model()
    trainer.push_to_hub()
    trainer._finish_current_push()
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    pushed = hub.files("me/tiny")
    for name in ("training_args.bin", "README.md", "run_facts.json", "log_history.jsonl"):
        assert name in files
        assert name in pushed
    assert "checkpoint-2/dapo_manifest.json" in files
    assert any(name.startswith("rollouts/") for name in files)
    assert {name: found for name, raw in files.items() if (found := found_in(name, raw))} == {}
    assert {name: found for name, raw in pushed.items() if (found := found_in(name, raw))} == {}
    printed = capfd.readouterr()
    said = printed.out + printed.err + caplog.text
    assert "groups sampled" in said
    assert [needle for needle in NEEDLES if needle in said] == []
    # Where they are needed, they still are.
    assert trainer.args.hub_token == TOKEN
    assert trainer.args.model_init_kwargs["token"] == "model0secret"
    assert os.environ["WANDB_API_KEY"] == "wandb0secret"


def test_secrets_in_fields_of_other_libraries_are_not_pickled_logged_or_shown(tmp_path):
    args = DAPOConfig(**training_arguments(tmp_path, hub_token=TOKEN, **IN_FIELDS))
    buffer = io.BytesIO()
    torch.save(args, buffer)
    for text in (
        repr(args.to_dict()),
        args.to_json_string(),
        repr(args.to_sanitized_dict()),
        repr(changed_settings(args)),
    ):
        assert [needle for needle in NEEDLES if needle in text] == []
    assert found_in("training_args.bin", buffer.getvalue()) == []
    assert "'token': None" in repr(args.to_dict())
    assert args.to_dict()["vllm_server_base_url"] == "http://host:8000"
    for same in (copy.copy(args), copy.deepcopy(args)):
        assert same.model_init_kwargs == IN_FIELDS["model_init_kwargs"]
        assert same.vllm_server_base_url == IN_FIELDS["vllm_server_base_url"]


@pytest.mark.parametrize("name", ["hf_token", "token", "api_key", "OPENAI_API_KEY", "db_password", "client_secret"])
def test_secret_names_are_known(name):
    assert without_secrets({name: "x"}) == {name: None}


@pytest.mark.parametrize("name", ["eos_token", "pad_token", "tokens", "max_tokens", "secretary", "image_token"])
def test_other_names_are_left_alone(name):
    assert without_secrets({name: "x"}) == {name: "x"}


def test_addresses_lose_their_users_alone():
    kept = ["a@b", "https://host/x@y", "see http://host: me@home", "git@github.com:a/b"]
    assert without_secrets(kept) == kept
    assert without_secrets("postgres://me:pw@db/x and s3://k@bucket") == "postgres://db/x and s3://bucket"
