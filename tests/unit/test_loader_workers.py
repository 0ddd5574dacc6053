"""Loader workers where sockets, shared memory or files are short: batches come, or one line says what is short."""

import errno
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from selfsup.data import loader
from selfsup.data.loader import Batches
from selfsup.data.preparing import prepare
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from trees import write_tree

READ = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from selfsup.data import loader
from selfsup.data.store import PackedStore
from selfsup.errors import run_script
from selfsup.recipe import load_recipe
from tiny import TINY

def main():
    loader.SHORT_TEMPORARY = sys.argv[2]
    split, recipe = PackedStore(Path(sys.argv[1])).train, load_recipe("digits", TINY)
    batches = loader.Batches(split, recipe, seed=0, stage="pretrain")
    print(*[batch.step for batch in batches.read(0, 4, workers=1, pin_memory=False)])

if __name__ == "__main__":
    run_script(main)
"""
PATIENCE_S = 300


@pytest.fixture
def store(tmp_path) -> Path:
    """Pictures that differ in size: workers carry their crops, 12 kB a batch."""
    write_tree(tmp_path / "tree", {"train": ["ant", "bee", "cat"], "test": ["ant"]})
    prepare("folder", tmp_path / "tree", tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def read(store, repository, starter, program) -> Callable[..., subprocess.CompletedProcess]:
    """A function that reads four batches by a worker, in a process of its own; a hang becomes TimeoutExpired."""
    paths = [repository / "workflow/scripts", repository / "tests"]

    def read(*, short: str = "/tmp", **options) -> subprocess.CompletedProcess:
        environment = {**os.environ, **options.pop("environment", {})}
        pipes = {"capture_output": True, "text": True, "timeout": PATIENCE_S, "check": False}
        return subprocess.run([starter, program(READ), store, short, *paths], env=environment, **pipes, **options)

    return read


@pytest.mark.parametrize("length", [71, 72, 76, 150])
def test_a_long_tmpdir_keeps_no_worker_from_its_batches(read, length):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # pytest's own folders are longer than some of the lengths
        folder = Path(f"{short}/".ljust(length, "x"))
        folder.mkdir()
        assert len(str(folder)) == length
        told = read(environment={"TMPDIR": str(folder)})
        assert (told.returncode, told.stdout, told.stderr) == (0, "0 1 2 3\n", "")
        assert not list(folder.iterdir())


def test_a_long_tmpdir_with_nothing_shorter_is_named(read, tmp_path):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    told = read(short="/no/such/folder", environment={"TMPDIR": str(folder)})
    (line,) = told.stderr.splitlines()
    assert told.returncode == 1 and line.startswith(f"error: TMPDIR is {folder}, ") and "at most 71" in line


def test_shared_memory_without_room_ends_the_reading_at_once_and_is_named(read):
    """A limit on the size of files holds for shared memory too, and the error comes at the same place."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = read(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard)))
    (line,) = told.stderr.splitlines()
    assert told.returncode == 1 and line.startswith("error: /dev/shm: no room for a batch of 0.0 MB, ")
    assert "cpus_per_device" in line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "raise the limit `ulimit -n`"),
        (RuntimeError("unable to open shared memory object: Too many open files (24)"), "raise the limit `ulimit -n`"),
        (OSError(errno.ENOSPC, "No space left on device"), "set TMPDIR to another folder"),
    ],
)
def test_whatever_keeps_a_worker_from_handing_over_ends_the_reading(store, tiny_recipe, monkeypatch, error, words):
    class Refusing:
        @staticmethod
        def dumps(batch):
            raise error

    monkeypatch.setattr(loader, "ForkingPickler", Refusing)  # workers are forks of this process
    batches = Batches(PackedStore(store).train, tiny_recipe, seed=0, stage="pretrain")
    with pytest.raises(UserError, match=words):
        list(batches.read(0, 4, workers=1, pin_memory=False))


def test_loader_processes_that_cannot_start_say_what_they_need(store, tiny_recipe, monkeypatch):
    """A /dev/shm so small that it holds no semaphore."""

    class Full(loader.DataLoader):
        def __iter__(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loader, "DataLoader", Full)
    batches = Batches(PackedStore(store).train, tiny_recipe, seed=0, stage="pretrain")
    with pytest.raises(UserError, match=r"cannot start \(No space left on device\).*/dev/shm"):
        list(batches.read(0, 4, workers=1, pin_memory=False))


class Killed(Batches):
    """Whose worker is killed when it prepares step 5, as by the kernel where memory is short."""

    def __getitem__(self, step: int):
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(step)


def test_a_worker_that_is_killed_ends_the_reading_in_one_line(store, tiny_recipe):
    batches = Killed(PackedStore(store).train, tiny_recipe, seed=0, stage="pretrain")
    with pytest.raises(UserError, match=r"has ended \(DataLoader worker.*: Bus error means that /dev/shm is full"):
        list(batches.read(5, 8, workers=1, pin_memory=False))
