"""`trl-dapo push`: what it sends, what it refuses, and how it goes on after a failure."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from checkout import ROOT
from forked import print_into, start
from hub_client import hub_environment, use_hub, use_token
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from published_run import WEIGHTS, hub, pull, run_folder, trained  # noqa: F401
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from trl_dapo import HubPushError, HubUnreachableError
from trl_dapo.command_line import main
from trl_dapo.publishing.push import PushOptions, push_run


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


def push(run_folder):
    main(["push", "--output_dir", str(run_folder), "--hub_model_id", "me/tiny"])


def push_from_a_process(endpoint, folder, run_folder):
    print_into(folder / "output.txt")
    use_hub(pytest.MonkeyPatch(), SimpleNamespace(endpoint=endpoint), folder)
    push(run_folder)


@pytest.mark.fault("kill -9", "`trl-dapo push`", "the next push sends what is missing")
def test_killed_upload_goes_on_where_it_was(hub, run_folder, tmp_path):
    shards = shard(run_folder)
    hub.uploads_let_through = 2
    process = start(push_from_a_process, hub.endpoint, tmp_path, run_folder)
    assert hub.stalled.wait(timeout=300)
    process.kill()
    process.join()
    arrived = dict(hub.received)
    assert len(arrived) == 2
    assert hub.messages("me/tiny") == ["initial commit"]
    hub.release()
    push(run_folder)
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


@pytest.mark.fault("the Hub refuses", "`trl-dapo push`", "`HubPushError` with the command to try again")
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
