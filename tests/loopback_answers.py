"""What the loopback Hub answers to each request of huggingface_hub's client."""

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs, urlsplit

from loopback_card_checks import card_problems
from loopback_storage import LFS_SUFFIXES, Refusal, Repository, StoredFile


class Answers:
    """Mixed into a request handler that has `hub`, `body`, `path` and `headers`. A method answers status, headers, body."""

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
ROUTES = [
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
