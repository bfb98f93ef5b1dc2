"""`trl-dapo serve`: the command that it becomes, and who may reach the server."""

import asyncio
import os
import socket
import subprocess
import sys

import pytest

from trl_dapo.command_line import main, serve
from trl_dapo.command_line.serve import server_command
from trl_dapo.vllm_server import servers
from trl_dapo.vllm_server.access import TokenRequired
from trl_dapo.vllm_server.weight_loader import WeightLoader


def options_of(command):
    """Options of a command line with what follows each."""
    return {word: command[number + 1 : number + 2] for number, word in enumerate(command) if word.startswith("--")}


def test_server_listens_on_this_machine_alone_and_has_what_a_trainer_needs():
    command, environment = server_command(["model", "--max-model-len", "64"], {"PATH": "/bin"}, has_gpu=False)
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    options = options_of(command)
    assert options["--model"] == ["model"]
    assert options["--host"] == ["127.0.0.1"]
    assert options["--port"] == ["8000"]
    assert options["--max-model-len"] == ["64"]
    assert options["--logprobs-mode"] == ["processed_logprobs"]
    assert options["--worker-extension-cls"] == [f"{WeightLoader.__module__}.{WeightLoader.__qualname__}"]
    assert serve.EXTENSION == servers.EXTENSION
    assert "--no-enable-chunked-prefill" in options
    assert "--middleware" not in options
    assert "--weight-transfer-config" not in options
    assert environment == {"PATH": "/bin", "VLLM_SERVER_DEV_MODE": "1"}


def test_server_with_a_gpu_takes_weights_over_nccl_and_may_split_prompts():
    options = options_of(server_command(["model"], {}, has_gpu=True)[0])
    assert options["--weight-transfer-config"] == ['{"backend": "nccl"}']
    assert "--no-enable-chunked-prefill" not in options


@pytest.mark.parametrize("host", [["--host", "0.0.0.0"], ["--host=10.0.0.7"]])
def test_open_host_needs_a_token_and_then_asks_for_it_everywhere(host):
    with pytest.raises(ValueError, match="VLLM_API_KEY is not set: who reaches the server could load weights"):
        server_command(["model", *host], {}, has_gpu=False)
    command, _ = server_command(["model", *host, "--port", "81"], {"VLLM_API_KEY": "secret"}, has_gpu=False)
    options = options_of(command)
    assert options["--host"] == [host[-1].removeprefix("--host=")]
    assert options["--port"] == ["81"]
    assert options["--middleware"] == [f"{TokenRequired.__module__}.{TokenRequired.__qualname__}"]
    # Who lists the processes of the machine does not see it.
    assert "secret" not in " ".join(command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "The model is missing"),
        (["--port", "8000", "model"], "The model is missing"),
        (["model", "--host"], "--host is not followed by a value"),
        (["model", "--api-key", "secret"], "Set the environment variable VLLM_API_KEY instead"),
        (["model", "--logprobs_mode", "raw_logprobs"], "--logprobs-mode is given, but `trl-dapo serve` sets it"),
    ],
)
def test_bad_options_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no port is reserved")
def test_port_is_reserved_until_the_server_listens_and_one_that_is_taken_is_refused():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert not servers._is_taken(port)
    with serve.reserve_port("127.0.0.1", port) as reserved, socket.socket() as server:
        assert os.get_inheritable(reserved.fileno())
        # A trainer waits for it now.
        assert servers._is_taken(port)
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", port))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
            accepted.close()
        with pytest.raises(ValueError, match=f"--port is {port}, which cannot be had on 127.0.0.1"):
            serve.reserve_port("127.0.0.1", port)


def test_help_names_the_options_without_vllm():
    finished = subprocess.run(
        [sys.executable, "-m", "trl_dapo", "serve", "--help"], capture_output=True, text=True, check=True
    )
    assert "--host HOST" in finished.stdout
    assert "VLLM_API_KEY" in finished.stdout


def ask(app, path, headers=(), kind="http"):
    """Sends a request through an ASGI application, and returns what it sent."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": kind, "path": path, "headers": list(headers)}, None, send))
    return sent


async def behind(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize("path", ["/v1/completions", "/collective_rpc", "/pause", "/metrics", "/", "//health"])
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"secret")],
        [(b"authorization", b"Bearer secret ")],
    ],
)
def test_request_without_the_token_is_refused_on_every_path(path, headers, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    app = TokenRequired(behind)
    assert ask(app, path, headers)[0]["status"] == 401
    assert ask(app, path, headers, kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert ask(app, path, [(b"authorization", b"Bearer secret")])[0]["status"] == 200
    assert ask(app, "/health")[0]["status"] == 200


def test_token_that_is_not_there_does_not_leave_the_server_open(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(ValueError, match="VLLM_API_KEY is not set"):
        TokenRequired(behind)
