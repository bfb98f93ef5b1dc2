"""
A small Hugging Face Hub on the loopback interface, for the real client to talk to.

It speaks what huggingface_hub's client says when it pushes and pulls models: accounts, repositories with branches and
commits, Git LFS in one part or several, files by revision, and checks of a card's metadata. Xet is not spoken: the client
is told not to (`HF_HUB_DISABLE_XET`). Everything is in memory.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_card_checks import card_problems


LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".model", ".pt")


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: its content, and whether it is one of LFS."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        content = self.content
        if self.is_lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n"
            content = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id

    def entry(self, path: str) -> dict:
        described = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob_id}
        if self.is_lfs:
            described["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return described


@dataclass
class Repository:
    """Commits, newest last, by branch; a commit is its id, its message and its files."""

    private: bool
    branches: dict[str, list[tuple[str, str, dict[str, StoredFile]]]] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, StoredFile]) -> str:
        commits = self.branches.setdefault(branch, [])
        text = repr((message, len(commits), sorted((path, file.etag) for path, file in files.items())))
        oid = hashlib.sha1(text.encode()).hexdigest()
        commits.append((oid, message, files))
        return oid

    def at(self, revision: str):
        """Returns the commit that a branch or commit id names, or `None`."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = [commit for branch in self.branches.values() for commit in branch]
        return next((commit for commit in commits if commit[0] == revision), None)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


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


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.path_only = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {self.path_only}")
        self.body = self._read_body()
        try:
            for method, pattern, name in _ROUTES:
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

    # Who asks, and for what

    def _account(self) -> tuple[str, str]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            raise Refusal(401, "Invalid username or password.")
        if token not in self.hub.accounts:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.accounts[token]

    def _repository(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        is_hidden = repository is not None and repository.private
        if is_hidden and self._account()[0] != repo_id.split("/")[0]:
            repository = None
        if repository is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repository

    def _writable(self, repo_id: str) -> Repository:
        name, role = self._account()
        repository = self._repository(repo_id)
        if role != "write" or name != repo_id.split("/")[0]:
            raise Refusal(403, "Forbidden: you must have write access to this repository")
        return repository

    def _commit_at(self, repo_id: str, revision: str):
        found = self._repository(repo_id).at(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # Routes

    def _whoami(self):
        name, role = self._account()
        token = {"displayName": "test", "role": role}
        return _json(
            {"type": "user", "name": name, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}
        )

    def _create(self):
        name, role = self._account()
        asked = json.loads(self.body)
        namespace = asked.get("organization") or name
        repo_id = f"{namespace}/{asked['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if role != "write" or namespace != name:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if repo_id in self.hub.repositories:
            raise Refusal(409, "You already created this model repo", url=url)
        repository = self.hub.repositories[repo_id] = Repository(asked.get("visibility") == "private")
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repository.commit("main", "initial commit", {".gitattributes": StoredFile(attributes.encode(), False)})
        return _json({"url": url, "name": repo_id})

    def _validate(self):
        problems = card_problems(json.loads(self.body)["content"])
        answer = {"errors": [{"message": problem} for problem in problems], "warnings": []}
        return _json(answer, 400 if problems else 200)

    def _info(self, repo_id: str, revision: str = "main"):
        oid, _, files = self._commit_at(repo_id, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        private = self.hub.repositories[repo_id].private
        return _json({"id": repo_id, "modelId": repo_id, "sha": oid, "private": private, "siblings": siblings})

    def _refs(self, repo_id: str):
        branches = self._repository(repo_id).branches
        named = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c[-1][0]} for n, c in branches.items()]
        return _json({"branches": named, "tags": [], "converts": []})

    def _branch(self, repo_id: str, name: str):
        repository = self._writable(repo_id)
        if name in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[name] = list(repository.branches["main"])
        return _json({})

    def _preupload(self, repo_id: str, revision: str):
        self._writable(repo_id)
        files = self._commit_at(repo_id, revision)[2]
        answers = []
        for asked in json.loads(self.body)["files"]:
            path, sample = asked["path"], base64.b64decode(asked["sample"])
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or b"\0" in sample or asked["size"] > 10e6 else "regular"
            oid = files[path].etag if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": answers})

    def _lfs_batch(self, repo_id: str):
        self._writable(repo_id)
        return _json(
            {
                "transfer": "basic",
                "objects": [self._lfs_answer(**asked) for asked in json.loads(self.body)["objects"]],
            }
        )

    def _lfs_answer(self, oid: str, size: int) -> dict:
        answer: dict = {"oid": oid, "size": size}
        if oid in self.hub.objects:
            return answer
        address, part_size = f"{self.hub.endpoint}/lfs/{oid}", self.hub.part_size
        upload: dict = {"href": address}
        if part_size is not None and size > part_size:
            parts = {str(n + 1): f"{address}/part/{n + 1}" for n in range(-(-size // part_size))}
            upload = {"href": f"{address}/complete", "header": {"chunk_size": str(part_size)} | parts}
        verify = {"href": f"{address}/verify"}
        return answer | {"actions": {"upload": upload, "verify": verify}}

    def _put_object(self, oid: str, part: str | None = None):
        if self.hub.refuses_content:
            raise Refusal(413, "Storage limit reached")
        self.hub.wait_at_the_gate()
        with self.hub.lock:
            self.hub.received[oid] += len(self.body)
            if part is not None:
                self.hub.parts[oid, int(part)] = self.body
                return 200, {"ETag": hashlib.md5(self.body).hexdigest()}, b""
            self._store(oid, self.body)
        return 200, {}, b""

    def _complete(self, oid: str):
        parts = json.loads(self.body)["parts"]
        self._store(oid, b"".join(self.hub.parts[oid, part["partNumber"]] for part in parts))
        return _json({})

    def _store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "The content has another sha256 than its name")
        self.hub.objects[oid] = content

    def _verify(self, oid: str):
        if len(self.hub.objects.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refusal(400, "The object is not there, or has another size")
        return _json({})

    def _commit(self, repo_id: str, revision: str):
        repository = self._writable(repo_id)
        if revision not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = dict(self._commit_at(repo_id, revision)[2])
        summary = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                summary = value["summary"]
            elif key == "file":
                files[value["path"]] = StoredFile(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, f"{value['path']} was not uploaded")
                files[value["path"]] = StoredFile(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
        if "README.md" in files and (problems := card_problems(files["README.md"].content.decode())):
            raise Refusal(400, "; ".join(problems))
        oid = repository.commit(revision, summary, files)
        return _json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}"})

    def _tree(self, repo_id: str, revision: str):
        files = self._commit_at(repo_id, revision)[2]
        is_recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        folders = [] if is_recursive else sorted({path.split("/")[0] for path in files if "/" in path})
        entries = [file.entry(path) for path, file in files.items() if is_recursive or "/" not in path]
        return _json([*entries, *({"type": "directory", "path": name, "oid": "0" * 40} for name in folders)])

    def _paths_info(self, repo_id: str, revision: str):
        files = self._commit_at(repo_id, revision)[2]
        asked = parse_qs(self.body.decode())["paths"]
        return _json([files[path].entry(path) for path in asked if path in files])

    def _resolve(self, repo_id: str, revision: str, path: str):
        oid, _, files = self._commit_at(repo_id, revision)
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        file = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
        if not file.is_lfs:
            return 200, headers, file.content
        # LFS content comes from another host, without a token.
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": len(file.content)}
        return 302, headers | {"Location": f"http://localhost:{self.hub.port}/lfs/{file.sha256}"}, b""

    def _get_object(self, oid: str):
        if "Authorization" in self.headers:
            raise Refusal(400, "A token was sent to another host")
        content, asked = self.hub.objects[oid], re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        headers = {"Content-Type": "application/octet-stream"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206 if asked else 200, headers, content[start:]


def _json(content, status: int = 200):
    return status, {}, json.dumps(content).encode()


_REPO = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
_OBJECT = r"/lfs/(?P<oid>[0-9a-f]{64})"
_ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("GET", f"/api/models/{_REPO}", "info"),
    ("GET", f"/api/models/{_REPO}/refs", "refs"),
    ("GET", f"/api/models/{_REPO}/revision/(?P<revision>.+)", "info"),
    ("POST", f"/api/models/{_REPO}/branch/(?P<name>.+)", "branch"),
    ("POST", f"/api/models/{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", f"/api/models/{_REPO}/commit/(?P<revision>.+)", "commit"),
    ("GET", f"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", "tree"),
    ("POST", f"/api/models/{_REPO}/paths-info/(?P<revision>.+)", "paths_info"),
    ("POST", f"/{_REPO}\\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", f"{_OBJECT}(?:/part/(?P<part>[0-9]+))?", "put_object"),
    ("POST", f"{_OBJECT}/complete", "complete"),
    ("POST", f"{_OBJECT}/verify", "verify"),
    ("GET HEAD", _OBJECT, "get_object"),
    ("GET HEAD", f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
