"""Points the real Hub client at a loopback Hub, in this process or in another."""

import os

import transformers.utils.hub
from huggingface_hub import constants


def use_hub(monkeypatch, hub, folder, token="hf_writer") -> None:
    """From now on this process talks to `hub`, with `token` or without one, and caches in `folder`."""
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    # transformers keeps a client with the address that held when it was first asked.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    use_token(monkeypatch, token)


def use_token(monkeypatch, token) -> None:
    """From now on this process has `token`, or none."""
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


def hub_environment(hub, folder, token="hf_writer") -> dict[str, str]:
    """Returns the environment of a process that talks to `hub`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf-home"), "HF_HUB_DISABLE_XET": "1"}
    return environment | ({"HF_TOKEN": token} if token else {})
