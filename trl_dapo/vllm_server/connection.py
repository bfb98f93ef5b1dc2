"""One vLLM server as a process sees it: its connections, and whether it answers."""

import http.client
import json
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from trl_dapo.config.server_address import TOKEN_VARIABLE
from trl_dapo.errors import VLLMServerError


T = TypeVar("T")

# Seconds to a connection, and between two attempts: at first, and at most.
_CONNECT_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# `select` has no room for the thousandth file of a process, and a batch may have as many connections.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)
# What an answer may be at most, and a line of a stream. A chunk of a stream has a few dozen tokens.
_MAX_ANSWER = 64 * 2**20
_MAX_LINE = 2**20
# How much of an error text is shown.
_SHOWN = 500
# A peer that is gone without a word is found after about 25 seconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class NoAnswerError(Exception):
    """A server did not answer, or broke off. It may next time."""


class Connection:
    """
    A connection to a server, for one request after the other.

    Args:
        server (`Server`):
            The server.

    Attributes:
        opened_at (`float`):
            When the server had accepted it, in seconds of `time.monotonic`.

    Raises:
        `NoAnswerError`: nothing accepts the connection.
    """

    def __init__(self, server: "Server"):
        self.server = server
        place = server.host, server.port
        seconds = min(_CONNECT_SECONDS, server.timeout)
        self._http = (
            http.client.HTTPSConnection(*place, timeout=seconds, context=ssl.create_default_context())
            if server.is_encrypted
            else http.client.HTTPConnection(*place, timeout=seconds)
        )
        with server.transient():
            self._http.connect()
        self.opened_at = time.monotonic()
        self._socket: socket.socket = self._http.sock
        # How long a silence may be is decided by who waits: see `Server.is_silent`.
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it while it was idle."""
        if self._http.sock is None:
            return True
        with _Selector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return bool(selector.select(0))

    def set_deadline(self, seconds: float | None) -> None:
        """Sets how long a read may wait."""
        self._socket.settimeout(seconds)

    def send(self, method: str, path: str, content: Any = None) -> http.client.HTTPResponse:
        """Sends a request, and returns the answer with its head read."""
        body = None if content is None else json.dumps(content).encode()
        with self.server.transient():
            self._http.request(method, self.server.prefix + path, body, self.server.headers)
            return self._http.getresponse()

    def end(self) -> None:
        """Closes it, from any thread: one that reads from it gets an error."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes it. Only the thread that uses it may call this."""
        self.end()
        self._http.close()


class Server:
    """
    A vLLM server.

    Args:
        address (`str`):
            `http://HOST:PORT`, with a path where a proxy needs one.
        timeout (`float`):
            Seconds without a sign of life after which it is lost.
        token (`str`, *optional*):
            What it asks for as a bearer token.

    Attributes:
        is_lost (`bool`):
            Whether it has not answered for `timeout` seconds.
    """

    def __init__(self, address: str, timeout: float, token: str | None = None):
        parts = urlsplit(address)
        self.address = address
        self.host, self.prefix = parts.hostname or "", parts.path
        self.is_encrypted = parts.scheme == "https"
        self.port = parts.port or (443 if self.is_encrypted else 80)
        self.timeout = timeout
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.is_lost = False
        self.last_heard = time.monotonic()
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def transient(self) -> "_Transient":
        """Inside it, a failure of the network is a `NoAnswerError`."""
        return _Transient(self)

    def heard(self) -> None:
        """Notes a sign of life: a token, or that nothing is asked of it."""
        self.last_heard = time.monotonic()

    @property
    def is_silent(self) -> bool:
        """Whether there was no sign of life for `timeout` seconds."""
        return time.monotonic() - self.last_heard > self.timeout

    def fail(self, cause: str) -> VLLMServerError:
        """Returns an error that names the server. `cause` goes on behind "The vLLM server at ..."."""
        return VLLMServerError(self.address, cause)

    def ask(
        self,
        method: str,
        path: str,
        content: Any = None,
        seconds: float | None = None,
        check: Callable[[Connection], None] | None = None,
    ) -> Any:
        """
        Sends a request on a connection of its own, and returns the content of the answer.

        Args:
            method (`str`), path (`str`):
                Of the request.
            content (`Any`, *optional*):
                Sent as JSON.
            seconds (`float`, *optional*):
                Most seconds to the whole answer. `None`: those after which the server is lost.
            check (`Callable[[Connection], None]`, *optional*):
                Called with the connection before the request is sent.

        Raises:
            `NoAnswerError`: it did not answer in time, or says that it is not able to.
            `VLLMServerError`: it refused, or the answer is none.
        """
        deadline = time.monotonic() + (self.timeout if seconds is None else seconds)
        connection = Connection(self)
        try:
            if check is not None:
                check(connection)
            connection.set_deadline(max(0.01, deadline - time.monotonic()))
            response = connection.send(method, path, content)
            self.check_status(response)
            with self.transient():
                text = self._read(response, deadline)
        finally:
            connection.close()
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except ValueError:
            raise self.fail(f"answered {path} with what is no JSON: {_shown(text)}") from None

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        parts, size = [], 0
        while part := response.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > _MAX_ANSWER:
                raise self.fail(f"answered with more than {_MAX_ANSWER // 2**20} MiB, which no answer of vLLM has.")
            if time.monotonic() > deadline:
                raise TimeoutError("the answer took too long")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(parts)

    def ask_patiently(self, ask: Callable[[], T]) -> T:
        """
        Repeats something until the server answers.

        Raises:
            `VLLMServerError`: it has not for `timeout` seconds, and is lost.
        """
        start, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                return ask()
            except NoAnswerError as error:
                if time.monotonic() - start + pause > self.timeout:
                    self.is_lost = True
                    raise self.lost(error) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def lost(self, cause: object) -> VLLMServerError:
        """Returns the error that says that it is lost."""
        return self.fail(
            f"has not answered for vllm_server_timeout={self.timeout:g} seconds ({cause}). Look at its log and start it again; "
            "then resume the run."
        )

    def check_status(self, response: http.client.HTTPResponse) -> None:
        """
        Raises if a request did not succeed.

        Raises:
            `NoAnswerError`: the server may be able to answer later.
            `VLLMServerError`: it will not.
        """
        if response.status == 200:
            return
        with self.transient():
            text = _shown(response.read(_SHOWN + 1))
        if response.status in (408, 425, 429) or response.status >= 500:
            raise NoAnswerError(f"it answered with status {response.status}: {text}")
        advice = ""
        if response.status in (401, 403):
            advice = f" Set {TOKEN_VARIABLE} to the token that it was started with."
        raise self.fail(f"refused a request with status {response.status}: {text}{advice}")

    # Connections for requests that stream

    def take(self) -> Connection:
        """Returns a connection that nobody else uses."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection(self)
            if not connection.is_stale:
                return connection
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """Keeps a connection, whose last answer was read to its end, for the next request."""
        with self._lock:
            self._idle.append(connection)

    def close_idle(self) -> None:
        """Closes the connections that are kept for the next request."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def events(self, response: http.client.HTTPResponse, max_bytes: int) -> Iterator[Mapping[str, Any]]:
        """
        Yields what a server sends event by event, up to its word that it is done.

        Args:
            response (`HTTPResponse`):
                The answer.
            max_bytes (`int`):
                What it may have at most.

        Raises:
            `NoAnswerError`: it broke off.
            `VLLMServerError`: it is longer, or not what such a server sends.
        """
        size = 0
        while True:
            with self.transient():
                line = response.readline(_MAX_LINE + 1)
            if not line:
                raise NoAnswerError("it broke off in the middle of an answer")
            size += len(line)
            if size > max_bytes or len(line) > _MAX_LINE:
                raise self.fail(
                    f"sent more than {min(max_bytes, max(size, _MAX_LINE)):,} bytes for one completion: that is no answer of vLLM."
                )
            if not line.endswith(b"\n"):
                raise NoAnswerError("it broke off in the middle of a line")
            line = line.strip()
            if not line.startswith(b"data:"):
                continue
            text = line.removeprefix(b"data:").strip()
            if text == b"[DONE]":
                with self.transient():
                    # So that the connection can be used again.
                    response.read(_MAX_LINE)
                return
            try:
                event = json.loads(text)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                raise self.fail(f"sent an event that is no JSON object: {_shown(text)}")
            self.heard()
            yield event


class _Transient:
    def __init__(self, server: Server):
        self.server = server

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError | http.client.HTTPException | ValueError | AttributeError):
            # ValueError and AttributeError: another thread has closed the connection meanwhile.
            raise NoAnswerError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


def _shown(text: bytes) -> str:
    shown = " ".join(text[: _SHOWN + 1].decode(errors="replace").split())
    shown = "".join(character if character.isprintable() else "?" for character in shown)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + " ..."
