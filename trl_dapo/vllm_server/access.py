"""
A token for all of a vLLM server: `--middleware trl_dapo.vllm_server.access.TokenRequired`.

vLLM's own `--api-key` guards the paths that begin with `/v1` and a few others, and not those that load weights, pause the
engine or call its workers.
"""

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from trl_dapo.config.server_address import TOKEN_VARIABLE, server_token


# Answers whether the server lives, and nothing else.
_OPEN_PATHS = ("/health",)


class TokenRequired:
    """
    Refuses every request without the token that the environment has.

    Args:
        app (`Callable`):
            The application behind it, by the ASGI protocol.

    Raises:
        `ValueError`: the environment has no token.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        token = server_token()
        if token is None:
            raise ValueError(f"{TOKEN_VARIABLE} is not set, so that there is no token to ask for. Set it.")
        self.app = app
        # Of equal length, so that the time of a comparison tells nothing.
        self._expected = hashlib.sha256(f"Bearer {token}".encode()).digest()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Passes a request on, or answers it with status 401."""
        if scope["type"] not in ("http", "websocket") or scope.get("path") in _OPEN_PATHS or self._is_allowed(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = json.dumps({"error": "Unauthorized"}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _is_allowed(self, scope: MutableMapping[str, Any]) -> bool:
        given = dict(scope.get("headers") or []).get(b"authorization", b"")
        return hmac.compare_digest(hashlib.sha256(given).digest(), self._expected)
