"""Files on a network file system: answers that are lost, files that are stale, stat() that answers from a cache.

The faults are made by a shim (faults.c). With SELFSUP_SHARED=/mnt/a:/mnt/b, one export that is mounted twice with
caching of attributes, the same processes work through the two mounts instead of one folder, and the faults are real:

    SELFSUP_SHARED=/mnt/a:/mnt/b pytest tests/unit/test_network_files.py
"""

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from faults import COMPILER, Faults
from selfsup.atomic_files import read_replaceable, rename_over, write_atomically
from selfsup.job.ledger import Ledger, read_ledger
from selfsup.job.lock import LOCK_FILE, Lock
from workflows import wait_until

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"
PATIENCE_S = 600
FAULTS = {
    "the link is there": {"LINK": errno.EEXIST},
    "the link's answer is lost": {"LINK": errno.EIO},
    "the renaming is done": {"RENAME": 1},
    "stale files": {"STALE": 3},
    "a cache": {"CACHE": 1000},
    "all of it": {"LINK": errno.EEXIST, "RENAME": 1, "STALE": 3, "CACHE": 1000},
}
# A process takes the lock of a folder again and again, and notes when it has it; "for ever": it is then to be killed.
HOLDER = """
import sys, time
from pathlib import Path
from selfsup.errors import UserError
from selfsup.job import lock
from selfsup.job.ledger import Ledger, read_ledger

folder, notes, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def note(what):
    with open(notes, "a") as file:
        file.write(f"{time.monotonic():.6f} {what} {sys.argv[4]}\\n")

for _ in range(times or 1):
    one = lock.Lock(folder, "a test")
    while True:
        try:
            one.acquire()
            break
        except UserError as error:
            assert "is in use by" in str(error), error
            time.sleep(0.002)
    note("has it")
    assert one.beat() and one.is_mine()
    ledger = Ledger(folder)
    ledger.open({"stage": "a test", "started": "2026-01-01T00:00:00+00:00"})
    time.sleep(3600 if not times else 0.003)
    ledger.update("reached its goal")
    note("gives it back")
    one.release()
"""


@pytest.fixture
def shared(tmp_path):
    """Two ways to one folder, and where the processes keep their notes."""
    mounts = os.environ.get("SELFSUP_SHARED", "").split(":")
    if len(mounts) != 2:
        folder = tmp_path / "shared"
        folder.mkdir()
        yield folder, folder
        return
    with tempfile.TemporaryDirectory(dir=mounts[0]) as name:
        yield Path(name), Path(mounts[1]) / Path(name).name


def start(script: str, faults: dict[str, str], *arguments: object) -> subprocess.Popen:
    environment = {**os.environ, **faults, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def shim(tmp_path: Path, folder: Path, faults: dict[str, int]) -> dict[str, str]:
    if COMPILER is None:
        pytest.skip("no C compiler for the shim that stands in for a network file system")
    return Faults(tmp_path / "faults", "selfsup").environment(FOLDER=folder, **faults)


def check_one_at_a_time(notes: Path, times: int) -> None:
    rows = [line.split(" ") for line in notes.read_text().splitlines()]
    owners = [row[-1] for row in sorted(rows, key=lambda row: float(row[0]))]
    assert len(owners) == 2 * times
    assert owners[::2] == owners[1::2]  # who has it gives it back before another has it


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_one_process_at_a_time_has_a_lock_and_each_has_a_row_in_the_ledger(shared, tmp_path, faults):
    environment, notes, times = shim(tmp_path, shared[0], faults), tmp_path / "notes", 8
    holders = [
        start(HOLDER, environment, folder, notes, times, name) for name, folder in zip("ab", shared, strict=True)
    ]
    for one in holders:
        _, told = one.communicate(timeout=PATIENCE_S)
        assert one.returncode == 0, told
    check_one_at_a_time(notes, 2 * times)
    ends = [row["how_it_ended"] for row in read_ledger(shared[0] / "ledger.csv")]
    assert ends == ["reached its goal"] * 2 * times
    assert {path.name for path in shared[0].iterdir()} == {"ledger.csv"}  # nothing is left behind


def test_a_dead_holders_lock_is_taken_over_under_all_faults(shared, tmp_path):
    environment, notes = shim(tmp_path, shared[0], FAULTS["all of it"]), tmp_path / "notes"
    with start(HOLDER, environment, shared[0], notes, 0, "dead") as dead:
        wait_until(notes.exists, "the first holder")
        wait_until(lambda: read_ledger(shared[1] / "ledger.csv"), "its row")
        dead.kill()
    other = start(HOLDER, environment, shared[1], notes, 1, "b")
    _, told = other.communicate(timeout=PATIENCE_S)
    assert other.returncode == 0, told
    assert [row["how_it_ended"] for row in read_ledger(shared[1] / "ledger.csv")] == ["killed", "reached its goal"]
    assert not (shared[1] / LOCK_FILE).exists()


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO])
def test_a_lock_whose_link_is_there_although_the_answer_was_no_is_held(tmp_path, monkeypatch, number):
    honest = os.link

    def link(*paths) -> None:
        honest(*paths)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    lock = Lock(tmp_path, "a test")
    lock.acquire()
    assert lock.is_mine()


def test_a_renaming_that_was_done_although_the_answer_was_no_is_done(tmp_path, monkeypatch):
    honest = os.replace

    def replace(*paths) -> None:
        honest(*paths)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    (tmp_path / "there").write_text("old")
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "there", "new")
    assert (tmp_path / "there").read_text() == "new"


def test_a_renaming_that_was_not_done_is_an_error(tmp_path, monkeypatch):
    def replace(*_) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "there").write_text("old")
    (tmp_path / "new").write_text("new")
    for target in ("there", "nowhere"):
        with pytest.raises(FileNotFoundError):
            rename_over(tmp_path / "new", tmp_path / target)


def test_a_file_that_stays_stale_is_told_and_another_error_at_once():
    tries = []

    def read(number: int) -> None:
        tries.append(number)
        raise OSError(number, os.strerror(number))

    for number, count in ((errno.ESTALE, 4), (errno.EIO, 1)):
        tries.clear()
        with pytest.raises(OSError, match=os.strerror(number)):
            read_replaceable(lambda number=number: read(number))
        assert len(tries) == count


def test_a_reader_beside_a_writer_sees_whole_ledgers(shared):
    """On one mount rows are added; on the other they are read: each time a whole ledger, no older than one before."""
    ledger, seen, began = Ledger(shared[0]), 0, time.monotonic()
    ledger.open({"stage": "a test", "started": "2026-01-01T00:00:00+00:00"})
    for step in range(1, 40):
        ledger.update(start_step=0, end_step=step, saved_step=0)
        rows = read_ledger(shared[1] / "ledger.csv")
        assert len(rows) == 1 and int(rows[0]["end_step"] or 0) >= seen
        seen = int(rows[0]["end_step"] or 0)
    assert seen > 0 and time.monotonic() > began
