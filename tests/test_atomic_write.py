"""A file is old or new, never in between; a write that fails leaves no trace."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trl_dapo.atomic_write import atomic_write


OLD = b"the old content\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(OLD)
    return path


def in_a_process(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("two\r\nlines, \u00e9\n", b"two\r\nlines, \xc3\xa9\n"),
        (b"\x00\xff", b"\x00\xff"),
        (lambda path: path.write_bytes(b"by a function"), b"by a function"),
        ("", b""),
    ],
    ids=["text", "bytes", "function", "empty"],
)
def test_content_replaces_the_old_one_to_the_byte(path, content, expected):
    atomic_write(str(path), content)
    assert path.read_bytes() == expected
    assert list(path.parent.iterdir()) == [path]


def half_written(path):
    path.write_bytes(b"half")
    raise RuntimeError("the writer failed")


def interrupted(path):
    path.write_bytes(b"half")
    raise KeyboardInterrupt


def wrote_nothing(path):
    pass


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (half_written, RuntimeError),
        (interrupted, KeyboardInterrupt),
        (wrote_nothing, FileNotFoundError),
        ("\ud800", UnicodeEncodeError),  # no text that UTF-8 can hold
    ],
)
def test_failing_write_leaves_the_old_content_and_no_temporary_file(path, content, error):
    with pytest.raises(error):
        atomic_write(path, content)
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_failing_write_of_a_new_file_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="the writer failed"):
        atomic_write(tmp_path / "new.json", half_written)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing_call", [1, 2])
def test_error_of_the_disk_is_raised_and_the_file_is_whole(path, monkeypatch, failing_call):
    num_calls = 0

    def fsync(descriptor):
        nonlocal num_calls
        num_calls += 1
        if num_calls == failing_call:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        atomic_write(path, "new")
    # The first call is for the file, before it has its name; the second for the folder, after.
    assert path.read_bytes() == (OLD if failing_call == 1 else b"new")
    assert list(path.parent.iterdir()) == [path]


def test_file_is_on_disk_before_it_has_its_name_and_the_name_before_the_call_returns(path, monkeypatch):
    synced = []

    def fsync(descriptor):
        status = os.fstat(descriptor)
        what = path.parent if stat.S_ISDIR(status.st_mode) else path.parent / ".file.json.tmp"
        assert os.path.samestat(status, what.stat())
        synced.append((what, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(path, "new")
    assert synced == [(path.parent / ".file.json.tmp", OLD), (path.parent, b"new")]


@pytest.mark.parametrize("content", ["'x' * 100_000", "lambda path: path.write_bytes(b'x' * 100_000)"])
def test_disk_without_room_leaves_the_old_content_and_no_temporary_file(path, content):
    # A limit on the size of a file fails a write in its midst, as a full disk does.
    code = f"""
import resource, sys
from trl_dapo.atomic_write import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    atomic_write(sys.argv[1], {content})
except OSError as error:
    print(error.strerror)
"""
    assert in_a_process(code, path).stdout == "File too large\n"
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_killed_process_leaves_the_old_content_and_the_next_write_cleans_up(path):
    code = """
import os, signal, sys
from trl_dapo.atomic_write import atomic_write
def write(path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
atomic_write(sys.argv[1], write)
"""
    assert in_a_process(code, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == OLD
    assert (path.parent / ".file.json.tmp").read_bytes() == b"half"
    atomic_write(path, "new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
@pytest.mark.parametrize(
    "content", ["text", lambda path: save_file({"a": torch.zeros(2)}, path)], ids=["text", "safetensors"]
)
def test_new_file_has_the_permissions_that_open_gives(tmp_path, mask, content):
    before = os.umask(mask)
    try:
        with (tmp_path / "opened").open("w"):
            atomic_write(tmp_path / "written", content)
    finally:
        os.umask(before)
    opened, written = ((tmp_path / name).stat().st_mode for name in ("opened", "written"))
    assert written == opened == stat.S_IFREG | (0o666 & ~mask)


def test_file_left_behind_by_a_killed_process_does_not_pass_its_permissions_on(tmp_path):
    left_behind = tmp_path / ".a.tmp"
    left_behind.write_text("half")
    left_behind.chmod(0o600)
    (tmp_path / "opened").touch()
    atomic_write(tmp_path / "a", "text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "opened").stat().st_mode


def test_tensors_come_back(tmp_path):
    atomic_write(tmp_path / "a.safetensors", lambda path: save_file({"a": torch.arange(5)}, path))
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2, 3, 4]


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "missing" / "file", "text")
    assert not Path(tmp_path, "missing").exists()
