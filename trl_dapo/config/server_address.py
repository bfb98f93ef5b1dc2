"""Addresses of vLLM servers, as they are written in a configuration."""

import os
from urllib.parse import urlsplit


# vLLM's own name for the token that its API asks for.
TOKEN_VARIABLE = "VLLM_API_KEY"
_LOCAL = ("localhost", "127.0.0.1", "::1")


def server_addresses(base_url: str | None, host: str, port: int) -> list[str]:
    """
    Returns the addresses of the servers.

    Args:
        base_url (`str` or `None`):
            The value of `vllm_server_base_url`: an address, or several with commas between them.
        host (`str`), port (`int`):
            The values of `vllm_server_host` and `vllm_server_port`, where `base_url` is `None`.

    Raises:
        `ValueError`: an address is none, is there twice, or has a user or a password in it.

    Example:

    >>> server_addresses("http://a:8000, http://b:8000/", "0.0.0.0", 8000)
    ['http://a:8000', 'http://b:8000']
    >>> server_addresses(None, "0.0.0.0", 8000)
    ['http://127.0.0.1:8000']
    """
    if base_url is None:
        # "Any interface" is where a server listens, and no place to connect to.
        return [f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{port}"]
    addresses = [part.strip().rstrip("/") for part in base_url.split(",")]
    for address in addresses:
        parts = urlsplit(address)
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                "vllm_server_base_url has a user or a password in it, which logs and checkpoints would show. Leave it out, and "
                f"put the token of the server into the environment variable {TOKEN_VARIABLE}."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(
                f"vllm_server_base_url is {base_url!r}, of which {address!r} is no address of a server. Write "
                "http://HOST:PORT, and several with commas between them."
            )
    twice = [address for address in addresses if addresses.count(address) > 1]
    if twice:
        raise ValueError(f"vllm_server_base_url is {base_url!r}, which has {twice[0]} twice. Write each server once.")
    return addresses


def is_local(host: str | None) -> bool:
    """
    Returns whether a host is this machine, reachable from nowhere else.

    >>> is_local("127.0.0.1"), is_local("0.0.0.0")
    (True, False)
    """
    return host in _LOCAL


def server_token() -> str | None:
    """Returns the token of the servers, from the environment; `None`: they ask for none."""
    return os.environ.get(TOKEN_VARIABLE) or None
