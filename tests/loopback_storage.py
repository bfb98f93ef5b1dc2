"""What the loopback Hub stores: files, commits, branches; and how it refuses."""

import hashlib
from dataclasses import dataclass, field


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
