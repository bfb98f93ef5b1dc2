"""Weights on their way to servers: whole or not there, and removed when nobody needs them."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from forked import start
from safetensors.torch import load_file

from trl_dapo.vllm_server import weight_folder
from trl_dapo.vllm_server.weight_folder import WeightFolder
from trl_dapo.vllm_server.weight_loader import INDEX_FILE, WeightLoader, weights_of


def named_weights(factor=1.0):
    for number in range(5):
        yield f"layer{number}.weight", torch.full((3, 2), number * factor)


def read(weights):
    with open(f"{weights.folder}/{INDEX_FILE}") as file:
        index = json.load(file)
    assert index["version"] == weights.version
    return index["files"], dict(weights_of(weights.folder, index["files"]))


def test_weights_are_read_as_they_were_written_in_files_of_a_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_folder, "_BYTES_PER_FILE", 2 * 3 * 2 * 4)
    folder = WeightFolder(str(tmp_path / "shared"))
    weights = folder.write(named_weights())
    files, found = read(weights)
    assert [len(load_file(f"{weights.folder}/{file}")) for file in files] == [2, 2, 1]
    assert found.keys() == dict(named_weights()).keys()
    assert all(torch.equal(found[name], weight) for name, weight in named_weights())


def test_values_are_those_at_the_time_of_writing(tmp_path):
    weight = torch.ones(3)

    def merged():
        yield "a", weight
        weight.zero_()  # as an adapter is taken out again

    folder = WeightFolder(str(tmp_path))
    _, found = read(folder.write(merged()))
    assert found["a"].tolist() == [1, 1, 1]


def test_older_weights_stay_until_they_are_told_to_go(tmp_path):
    folder = WeightFolder(str(tmp_path))
    first, second = folder.write(named_weights()), folder.write(named_weights(2.0))
    assert first.version != second.version
    assert os.path.isdir(first.folder)
    folder.remove_older()
    assert not os.path.exists(first.folder)
    assert all(torch.equal(read(second)[1][name], weight) for name, weight in named_weights(2.0))
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_written_leave_nothing_and_are_all_read(tmp_path, monkeypatch):
    def full(weights, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_folder, "save_file", full)
    folder, seen = WeightFolder(str(tmp_path)), []

    def gathered():
        for name, weight in named_weights():
            seen.append(name)  # a collective: other ranks wait for each
            yield name, weight

    monkeypatch.setattr(weight_folder, "_BYTES_PER_FILE", 1)
    with pytest.raises(OSError, match="No space left on device"):
        folder.write(gathered())
    assert len(seen) == 5
    assert [path for path in folder.path.iterdir() if path.is_dir()] == []


def hold_a_folder(shared_memory, made):
    """Makes a folder of weights, says so by an empty file, and stays."""
    weight_folder._SHARED_MEMORY = shared_memory
    folder = WeightFolder()
    Path(made).touch()
    time.sleep(600)
    folder.close()


def wait_for(path, max_seconds=60):
    deadline = time.monotonic() + max_seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not made"
        time.sleep(0.01)


@pytest.mark.skipif(weight_folder.fcntl is None, reason="needs locks of files")
def test_folder_of_a_killed_run_is_removed_by_the_next_and_that_of_a_running_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_folder, "_SHARED_MEMORY", str(tmp_path))
    others = []
    try:
        for name in "ab":
            others.append(start(hold_a_folder, str(tmp_path), str(tmp_path / name)))
            wait_for(tmp_path / name)
        assert len(list(tmp_path.glob("trl-dapo-weights-*"))) == 2
        others[0].kill()
        others[0].join()
        mine = WeightFolder()
        left = {
            path.name.removeprefix("trl-dapo-weights-").split("-")[0] for path in tmp_path.glob("trl-dapo-weights-*")
        }
        assert left == {str(others[1].pid), str(os.getpid())}
        mine.close()
    finally:
        for other in others:
            other.kill()
            other.join()


class Worker(WeightLoader):
    """A worker of vLLM, without vLLM."""


@pytest.fixture
def worker(monkeypatch):
    loaded = {}
    module = "trl_dapo.vllm_server.weight_loader"
    monkeypatch.setattr(f"{module}.worker_weights_loaded_by", lambda worker, weights: loaded.update(weights))
    monkeypatch.setattr(f"{module}.worker_state", lambda worker: {"max_num_seqs": 4})
    one = Worker()
    one.loaded = loaded
    return one


def test_server_confirms_the_version_that_it_loaded(worker, tmp_path):
    folder = WeightFolder(str(tmp_path))
    weights = folder.write(named_weights())
    assert worker.dapo_state() == {"max_num_seqs": 4, "version": None}
    assert worker.dapo_load_weights(weights.folder, weights.version) == {"version": weights.version}
    assert worker.loaded.keys() == dict(named_weights()).keys()
    assert worker.dapo_state()["version"] == weights.version


def test_server_refuses_other_weights_than_those_it_was_told(worker, tmp_path):
    folder = WeightFolder(str(tmp_path))
    weights = folder.write(named_weights())
    assert "not other/1" in worker.dapo_load_weights(weights.folder, "other/1")["error"]
    assert "FileNotFoundError" in worker.dapo_load_weights(str(tmp_path / "none"), weights.version)["error"]
    assert worker.dapo_state()["version"] is None
    with open(f"{weights.folder}/{INDEX_FILE}", "w") as file:
        json.dump({"version": weights.version, "files": ["../../secret.safetensors"]}, file)
    assert "is no name of a file" in worker.dapo_load_weights(weights.folder, weights.version)["error"]
    assert not worker.loaded
