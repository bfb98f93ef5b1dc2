"""The Space opens a run on the Hub: the real client against a small server on this machine that speaks as the Hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from checkout import ROOT
from rollout_index import RolloutIndex
from run_files import read_history, shard_paths
from space_record import write_record


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class SmallHub(ThreadingHTTPServer):
    """Repositories by `models/<owner>/<name>` or `datasets/<owner>/<name>`: contents by file name."""

    def __init__(self, repositories, claimed_sizes=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.claimed_sizes = claimed_sizes or {}
        self.asked = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        path = self.path.split("?")[0]
        if path.startswith("/api/"):
            name, is_tree, _ = path.removeprefix("/api/").partition("/tree/")
            self._send_info(name.split("/revision/")[0], bool(is_tree))
        else:
            name, _, rest = path[1:].partition("/resolve/")
            self._send_file(name if name.startswith("datasets/") else f"models/{name}", rest.partition("/")[2])

    do_HEAD = do_GET

    def _send_info(self, name, is_tree):
        files = self.server.repositories.get(name)
        if files is None:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        sizes = {file: self.server.claimed_sizes.get(file, len(content)) for file, content in files.items()}
        siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
        if is_tree:
            siblings = [{"type": "file", "path": file, "size": size, "oid": "0" * 40} for file, size in sizes.items()]
            self._send(200, json.dumps(siblings).encode(), {"Content-Type": "application/json"})
            return
        info = {"id": name.partition("/")[2], "sha": COMMIT, "siblings": siblings, "private": False}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name, file):
        content = self.server.repositories[name][file]
        etag = hashlib.sha256(content).hexdigest()
        self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _send(self, status, content, headers):
        self.send_response(status)
        for header, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def download(hub, home, name, token="None"):
    """Runs `download_run` as the Space would, and returns what it returned or the message of its error."""
    code = (
        "import sys; from run_files import download_run\n"
        f"try: print(download_run(sys.argv[1], {token}))\n"
        "except ValueError as error: print('ValueError:', error)"
    )
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_of_the_owner",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT / "hub" / "space"),
    }
    finished = subprocess.run(
        [sys.executable, "-c", code, name], env=environment, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout.strip().splitlines()[-1]


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_record_comes_from_the_hub_and_nothing_else_of_the_repository(tmp_path, kind):
    run = tmp_path / "run"
    rows = write_record(run)
    (run / "log_history.jsonl").write_text('{"start": 0, "step": 1, "loss": 2.0}\n')
    files = files_of(run) | {"model.safetensors": b"weights", "rollouts/notes.parquet": b"no"}
    with SmallHub({f"{kind}/someone/run": files}) as hub:
        folder = Path(download(hub, tmp_path / "home", "someone/run"))
    assert sorted(files_of(folder)) == sorted(files.keys() - {"model.safetensors", "rollouts/notes.parquet"})
    index = RolloutIndex(shard_paths(folder))
    assert (index.num_completions, index.problems) == (len(rows), [])
    assert read_history(folder) == [{"start": 0, "step": 1, "loss": 2.0}]


def test_space_that_strangers_use_does_not_show_its_token(tmp_path):
    run = tmp_path / "run"
    write_record(run, num_batches=1)
    with SmallHub({"models/someone/run": files_of(run)}) as hub:
        download(hub, tmp_path / "one", "someone/run", token="False")
        assert {token for _, _, token in hub.asked} == {None}
        hub.asked.clear()
        download(hub, tmp_path / "two", "someone/run")
        assert {token for _, _, token in hub.asked} == {"Bearer hf_of_the_owner"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/nothing", "'someone/nothing' is not a model or dataset repository"),
        ("someone/empty", "someone/empty has no record of rollout groups and no log"),
        ("someone/huge", "has 5.0 GiB, but must have at most 4 GiB"),
        ("../../etc", "'../../etc' is not a model or dataset repository"),
        ("a b", "'a b' is not a model or dataset repository"),
    ],
)
def test_what_cannot_be_opened_is_said_before_anything_is_downloaded(tmp_path, name, message):
    repositories = {"models/someone/empty": {"x": b""}, "models/someone/huge": {"results.json": b"{}"}}
    with SmallHub(repositories, {"results.json": 5 * 2**30}) as hub:
        assert message in download(hub, tmp_path, name)
        assert not any("/resolve/" in path for _, path, _ in hub.asked)


def test_hub_that_cannot_be_reached_is_an_error_of_its_own(tmp_path):
    with SmallHub({}) as hub:
        pass
    assert "The Hub cannot be reached" in download(hub, tmp_path, "someone/run")
