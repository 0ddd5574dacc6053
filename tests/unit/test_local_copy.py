"""The dataset's copy on a node's own disk: one a node, whole or not at all, never needed."""

import fcntl
import logging
import shutil
import threading
from collections import namedtuple

import pytest
import torch

from selfsup.data import local_copy
from selfsup.data.local_copy import open_store
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from workflows import wait_until


@pytest.fixture
def told(caplog):
    """Its `messages` are those logged so far."""
    caplog.set_level(logging.INFO, logger="selfsup")
    return caplog


@pytest.fixture
def opened(tiny_store, tmp_path, told):
    """Return a function that opens the tiny store by way of a node's disk and returns the folder it is read from."""

    def open_(local=str(tmp_path / "disk")):
        store = open_store(tiny_store.folder, local)
        assert store.fingerprint == tiny_store.fingerprint
        assert torch.equal(store.train.image(3), tiny_store.train.image(3))
        return store.folder

    return open_


def test_the_first_process_copies_and_the_next_ones_use_it(opened, tiny_store, tmp_path, told, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    copy = opened("$NODE_DISK")
    assert copy.parent == tmp_path / "disk" and len(told.messages) == 1 and told.messages[0].startswith("copied")
    assert {path.name for path in copy.iterdir()} == {path.name for path in tiny_store.folder.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert opened() == copy and len(told.messages) == 1
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_a_copy_that_is_short_or_of_another_content_is_made_again(opened, told):
    copy = opened()
    with open(copy / "train_images.npy", "r+b") as file:
        file.truncate(200)
    assert opened() == copy and len(told.messages) == 2
    text = (copy / "store.json").read_text()
    (copy / "store.json").write_text(text.replace('"fingerprint": "', '"fingerprint": "f'))
    assert opened() == copy and len(told.messages) == 3 and (copy / "store.json").read_text() == text


def test_a_process_waits_for_another_that_copies(opened, tmp_path, told, tiny_store, monkeypatch):
    copy = opened()
    shutil.rmtree(copy)
    alive, copied = [], []
    with open(copy.with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(
            target=lambda: copied.append(open_store(tiny_store.folder, str(tmp_path / "disk"), heartbeat=alive.append))
        )
        waiting.start()
        wait_until(lambda: alive, "the one that waits")
        assert not copied and not copy.exists() and "waiting for another process" in alive[0]
    waiting.join()
    assert copied[0].folder == copy


def test_without_room_the_shared_store_serves_and_one_line_says_so(opened, tiny_store, monkeypatch, told, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    assert opened() == tiny_store.folder
    assert len(told.messages) == 1 and "has 0.0 GB free, wanted 0.3" in told.messages[0]
    assert not [path for path in (tmp_path / "disk").iterdir() if path.is_dir()]


def test_a_disk_that_fills_meanwhile_is_given_back(opened, tiny_store, monkeypatch, told, tmp_path):
    def full(store, folder):
        (folder / "train_images.npy").write_bytes(b"some")
        yield 4
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_copy, "_copy_files", full)
    assert opened() == tiny_store.folder
    assert len(told.messages) == 1 and "No space left" in told.messages[0]
    assert not [path for path in (tmp_path / "disk").iterdir() if path.is_dir()]


@pytest.mark.parametrize("local", ["$NO_SUCH_VARIABLE/data", "/proc/none"])
def test_a_folder_that_is_none_is_one_line_too(opened, tiny_store, told, local):
    assert opened(local) == tiny_store.folder
    assert len(told.messages) == 1 and told.messages[0].startswith("no copy of")


def test_only_one_rank_of_a_node_says_that_there_is_no_copy(tiny_store, told):
    for quiet, said in ((True, 0), (False, 1)):
        assert open_store(tiny_store.folder, "/proc/none", quiet=quiet).folder == tiny_store.folder
        assert len(told.messages) == said


def test_a_dataset_that_is_not_there_is_no_matter_of_copies(tmp_path):
    with pytest.raises(UserError, match="no prepared dataset here"):
        open_store(tmp_path / "none", str(tmp_path / "disk"))
    assert not (tmp_path / "disk").exists()


def test_without_the_key_the_store_is_opened_where_it_is(tiny_store):
    assert isinstance(open_store(tiny_store.folder, None), PackedStore)
    assert open_store(tiny_store.folder, None).folder == tiny_store.folder
