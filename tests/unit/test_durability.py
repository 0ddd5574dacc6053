"""After a loss of power: what a job has renamed is whole, and what it has deleted was not needed any more.

A disk that loses what was not flushed is stood in for by a record of the order of flushes, renamings and deletions.
"""

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from runs import StopAfter, on_cpu, train
from selfsup.atomic_files import write_atomically
from selfsup.engine import checkpoint
from selfsup.job.ledger import Ledger
from selfsup.training.run import Run


class Disk:
    """Records what is done to files, and what of a file has been flushed when it gets its name."""

    def __init__(self, monkeypatch):
        self.events: list[tuple[str, str]] = []
        self.when_named: list[tuple[str, dict[str, bytes]]] = []  # names, and what was on disk then, by name
        self._flushed: dict[Path, bytes] = {}
        self._honest = {name: getattr(os, name) for name in ("fsync", "replace")}
        self._unlink = Path.unlink
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)
        monkeypatch.setattr(Path, "unlink", self._deleting())

    def fsync(self, file: int) -> None:
        self._honest["fsync"](file)
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        if path.is_dir():
            self.events.append(("flush folder", path.name))
        else:
            self._flushed[path] = path.read_bytes()

    def replace(self, source, target) -> None:
        source, target = Path(source).resolve(), Path(target)
        whole = self._flushed.get(source) == source.read_bytes()
        self.events.append(("rename" if whole else "rename what is not on disk", target.name))
        self._flushed[target.resolve()] = self._flushed.pop(source, b"")
        self.when_named.append((target.name, {path.name: content for path, content in self._flushed.items()}))
        self._honest["replace"](source, target)

    def _deleting(self):
        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path.exists():
                self.events.append(("delete", path.name))
            self._unlink(path, missing_ok=missing_ok)

        return unlink


@pytest.fixture
def disk(monkeypatch, tmp_path):
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc: which file is flushed cannot be told")
    return Disk(monkeypatch)


def saved(path: Path, step: int) -> None:
    checkpoint.save_checkpoint(path, {"weights": torch.full((1000,), float(step)), "step": step}, {"step": step})


def test_a_files_content_is_on_disk_before_it_has_its_name_and_its_name_when_the_call_returns(tmp_path, disk):
    write_atomically(tmp_path / "some.json", "{}")
    assert disk.events == [("rename", "some.json"), ("flush folder", tmp_path.name)]


def test_a_ledgers_rows_are_on_disk(tmp_path, disk):
    Ledger(tmp_path).open({"stage": "pretraining", "started": "2026-01-01T00:00:00+00:00"})
    assert disk.events == [("rename", "ledger.csv"), ("flush folder", tmp_path.name)]


def test_a_checkpoint_is_on_disk_before_its_card_and_has_its_name_before_older_ones_go(tmp_path, disk):
    for step in (1, 2, 3):
        path = tmp_path / f"partial/step_{step:09d}.pt"
        disk.events.clear()
        saved(path, step)
        checkpoint.prune(path.parent, keep=path)
    named = [("rename", "step_000000003.json"), ("flush folder", "partial")]
    named += [("rename", "step_000000003.pt"), ("flush folder", "partial")]
    assert disk.events == [*named, ("delete", "step_000000001.pt"), ("delete", "step_000000001.json")]


def test_the_card_tells_the_checksum_of_what_is_on_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    """A kill between the two leaves a card without its checkpoint, and never a checkpoint without its card."""
    path, seen = tmp_path / "epoch_0001.pt", []

    def note(there: Path, card: dict) -> None:
        seen.append((there.exists(), card))

    checkpoint.save_checkpoint(path, {"step": 1}, {"step": 1}, note)
    ((exists, card),) = seen
    assert not exists and card == {"step": 1, "format": 1, "sha256": checkpoint.sha256(path)}


def test_rows_of_steps_are_on_disk_before_the_checkpoint_that_lies_behind_them(tmp_path, disk, tiny_recipe, tiny_store):
    """With a rolling checkpoint after each step, a stop at a boundary's step, which is then taken over, and an end."""
    run = Run(tiny_recipe, 0, 1, tiny_store, tmp_path / "run", on_cpu(), 1e-9)
    run.folder.mkdir()
    assert not train(run, 2, stop=StopAfter(4)) and train(run, 1, 2)
    assert "rename what is not on disk" not in {what for what, _ in disk.events}
    named = [(name, there) for name, there in disk.when_named if name.endswith(".pt")]
    assert [name for name, _ in named if name.startswith("epoch")] == ["epoch_0001.pt", "epoch_0002.pt"]
    for name, there in named:
        boundary = {"epoch_0001.pt": 5, "epoch_0002.pt": 10}.get(name)
        step = boundary or int(name.removeprefix("step_")[:9])
        assert there["history.csv"].count(b"\n") >= 1 + step, name  # training has gone on meanwhile
        assert boundary is None or there["knn.csv"].splitlines()[-1].startswith(b"%d," % step), name


def test_a_rolling_checkpoint_that_becomes_a_boundary_is_on_disk(tmp_path, disk):
    saved(tmp_path / "step_000000005.pt", 5)
    disk.events.clear()
    checkpoint.take_over(tmp_path / "step_000000005.pt", tmp_path / "epoch_0001.pt")
    assert disk.events == [("rename", "epoch_0001.pt"), ("flush folder", tmp_path.name)]
    assert (tmp_path / "epoch_0001.pt").read_bytes() == (tmp_path / "step_000000005.pt").read_bytes()


def test_a_file_system_that_cannot_flush_a_folder_is_written_to_all_the_same(tmp_path, monkeypatch):
    honest = os.fsync

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(22, "Invalid argument")
        honest(file)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "some.json", json.dumps([1]))
    saved(tmp_path / "step_000000005.pt", 5)
    assert checkpoint.load_checkpoint(tmp_path / "step_000000005.pt")["step"] == 5


def test_a_write_that_fails_leaves_the_old_content_and_nothing_half_written(tmp_path, monkeypatch):
    write_atomically(tmp_path / "some.json", "old")

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "some.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["some.json"]
    assert (tmp_path / "some.json").read_text() == "old"
