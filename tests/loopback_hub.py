"""
A small Hugging Face Hub on the loopback interface, for the real client to talk to.

It speaks what huggingface_hub's client says when it pushes and pulls models: accounts, repositories with branches and
commits, Git LFS in one part or several, files by revision, and checks of a card's metadata. Xet is not spoken: the client
is told not to (`HF_HUB_DISABLE_XET`). Everything is in memory.
"""

import json
import re
import threading
import time
from collections import Counter
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from loopback_answers import ROUTES, Answers
from loopback_storage import Refusal, Repository


class LoopbackHub:
    """
    The server, running while the `with` block does.

    Args:
        part_size (`int`, *optional*):
            LFS files longer than this are asked for in parts of so many bytes. `None`: all in one.
    """

    def __init__(self, part_size: int | None = None):
        self.part_size = part_size
        # Token: account and role.
        self.accounts = {"hf_writer": ("me", "write"), "hf_reader": ("me", "read"), "hf_other": ("other", "write")}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        # Bytes of LFS content that came in, by sha256; and all requests, as "METHOD path".
        self.received: Counter[str] = Counter()
        self.requests: list[str] = []
        self.lock = threading.Lock()
        # While not None, only so many LFS uploads are let through; then `stalled` is set and the next ones hang.
        self.uploads_let_through: int | None = None
        self.refuses_content = False
        # What each request takes.
        self.seconds_per_request = 0.0
        self.stalled, self._released = threading.Event(), threading.Event()

    def __enter__(self) -> "LoopbackHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def release(self) -> None:
        """Lets all uploads through again."""
        self.uploads_let_through = None
        self._released.set()

    def wait_at_the_gate(self) -> None:
        """Holds an upload that is not to be let through."""
        with self.lock:
            if self.uploads_let_through is None:
                return
            self.uploads_let_through -= 1
            may_pass = self.uploads_let_through >= 0
        if not may_pass:
            self.stalled.set()
            self._released.wait(timeout=300)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Returns the files of a repository."""
        found = self.repositories[repo_id].at(revision)
        assert found is not None
        return {path: file.content for path, file in found[2].items()}

    def messages(self, repo_id: str, branch: str = "main") -> list[str]:
        """Returns the messages of the commits of a branch."""
        return [message for _, message, _ in self.repositories[repo_id].branches[branch]]


class _Handler(Answers, BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.path_only = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {self.path_only}")
        time.sleep(self.hub.seconds_per_request)
        self.body = self._read_body()
        try:
            for method, pattern, name in ROUTES:
                found = re.fullmatch(pattern, self.path_only)
                if found and self.command in method.split():
                    with self.hub.lock if name != "put_object" else nullcontext():
                        status, headers, content = getattr(self, f"_{name}")(**found.groupdict())
                    break
            else:
                raise Refusal(404, "Not found")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            status, content = refusal.status, json.dumps({"error": refusal.message} | refusal.body).encode()
        except (BrokenPipeError, ConnectionResetError):
            return
        self._send(status, headers, content)

    do_HEAD = do_POST = do_PUT = do_GET

    def _send(self, status: int, headers: dict, content: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in (
                {"Content-Type": "application/json", "Content-Length": len(content)} | headers
            ).items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body
