"""Files on a network file system: answers that are lost, files that are stale, stat() that answers from a cache.

A shim (faults.c) makes the faults in one folder. Where this machine can mount a folder twice, the same happens through
two mounts with caches of their own (network_mounts.py), as on two hosts, and without the shim. Where it cannot, a test
is skipped and says what is missing. An export that is there already is used instead of one that is made:

    SELFSUP_SHARED=/mnt/a:/mnt/b pytest tests/unit/test_network_files.py
"""

import contextlib
import errno
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import network_mounts
from faults import COMPILER, Faults
from selfsup.atomic_files import read_replaceable, rename_over, write_atomically
from selfsup.errors import UserError
from selfsup.job import lock as lock_module
from selfsup.job.ledger import Ledger, read_ledger
from selfsup.job.lock import LOCK_FILE, STALE_S, Lock
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
ON_TWO_MOUNTS = {  # what is missing on this machine for it, and a context with the mounts
    "NFS": (network_mounts.lacking_for_nfs, network_mounts.over_nfs),
    "FUSE": (network_mounts.lacking_for_fuse, network_mounts.over_fuse),
}
# A process takes the lock of a folder so many times, and notes when it has it; 0: once, and it is then to be killed. It
# is on a host of its own if it is told the name of one. Two that take turns begin together. The times are shortened
# for which one watches a silent lock.
HOLDER = """
import sys, time
from pathlib import Path
from selfsup.errors import UserError
from selfsup.job import lock
from selfsup.job.ledger import Ledger, read_ledger

folder, notes, times, me, host = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
lock.POLL_S, lock.WATCHED_S = 0.002, 0.2
if host:
    lock._host = lambda: host
(notes.parent / f"{me}_is_here").touch()
while times > 1 and len(list(notes.parent.glob("*_is_here"))) < 2:
    time.sleep(0.002)

def note(what):
    with open(notes, "a") as file:
        file.write(f"{time.monotonic():.6f} {what} {me}\\n")

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


@pytest.fixture(scope="module")
def mounted_twice(tmp_path_factory):
    """A function of a file system's name that returns two mounts of one folder, or in words why it cannot."""
    with contextlib.ExitStack() as kept:

        @functools.cache
        def mounted(name: str) -> tuple[Path, Path] | str:
            lacking, mounts = ON_TWO_MOUNTS[name]
            try:
                return lacking() or kept.enter_context(mounts(tmp_path_factory.mktemp(name)))
            except (OSError, subprocess.CalledProcessError) as error:  # a container may not mount what its kernel can
                return f"mounting failed: {error}"

        yield mounted


@pytest.fixture(params=["one folder", *ON_TWO_MOUNTS])
def shared(request, tmp_path, mounted_twice):
    """Two ways to an empty folder: through two mounts, or one way twice."""
    if request.param not in ON_TWO_MOUNTS:
        yield tmp_path, tmp_path
        return
    mounts = mounted_twice(request.param)
    if isinstance(mounts, str):
        pytest.skip(f"no {request.param} that is mounted twice, for which the shim stands in: {mounts}")
    first, second = mounts
    with tempfile.TemporaryDirectory(dir=first) as name:
        yield Path(name), second / Path(name).name


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


def take_turns(shared: tuple[Path, Path], notes: Path, faults: dict[str, str], hosts: str) -> None:
    """Claim: one process at a time has the lock, and each time has a row in the ledger. hosts: how they begin."""
    times = 8
    ways = zip("ab", shared, strict=True)
    holders = [start(HOLDER, faults, folder, notes, times, name, hosts and hosts + name) for name, folder in ways]
    for one in holders:
        _, told = one.communicate(timeout=PATIENCE_S)
        assert one.returncode == 0, told
    check_one_at_a_time(notes, 2 * times)
    ends = [row["how_it_ended"] for row in read_ledger(shared[0] / "ledger.csv")]
    assert ends == ["reached its goal"] * 2 * times
    assert {path.name for path in shared[0].iterdir()} == {"ledger.csv"}  # nothing is left behind


def follow_a_dead_holder(shared: tuple[Path, Path], notes: Path, faults: dict[str, str]) -> None:
    """Claim: the lock of a holder on another host, of which no process can be looked for, is taken over once it is
    silent."""
    with start(HOLDER, faults, shared[0], notes, 0, "dead", "another host") as dead:
        wait_until(notes.exists, "the first holder")
        wait_until(lambda: read_ledger(shared[1] / "ledger.csv"), "its row")
        dead.kill()
    long_ago = time.time() - STALE_S - 10
    os.utime(shared[0] / LOCK_FILE, (long_ago, long_ago))
    other = start(HOLDER, faults, shared[1], notes, 1, "b", "")
    _, told = other.communicate(timeout=PATIENCE_S)
    assert other.returncode == 0, told
    assert [row["how_it_ended"] for row in read_ledger(shared[1] / "ledger.csv")] == ["killed", "reached its goal"]
    assert not (shared[1] / LOCK_FILE).exists()


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_one_process_at_a_time_has_a_lock_and_each_has_a_row_in_the_ledger(tmp_path, faults):
    folder = tmp_path / "shared"
    folder.mkdir()
    take_turns((folder, folder), tmp_path / "notes", shim(tmp_path, folder, faults), hosts="")


@pytest.mark.parametrize("shared", ON_TWO_MOUNTS, indirect=True)
def test_processes_of_two_hosts_take_turns_on_two_mounts(shared, tmp_path):
    take_turns(shared, tmp_path / "notes", {}, hosts="host_")


def test_a_dead_holders_lock_is_taken_over_under_all_faults(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    follow_a_dead_holder((folder, folder), tmp_path / "notes", shim(tmp_path, folder, FAULTS["all of it"]))


@pytest.mark.parametrize("shared", ON_TWO_MOUNTS, indirect=True)
def test_a_dead_holder_on_one_mount_is_followed_on_the_other(shared, tmp_path):
    follow_a_dead_holder(shared, tmp_path / "notes", {})


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO])
def test_a_lock_whose_link_is_there_although_the_answer_was_no_is_held(shared, monkeypatch, number):
    honest = os.link

    def link(*paths) -> None:
        honest(*paths)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    lock = Lock(shared[0], "a test")
    lock.acquire()
    assert lock.is_mine()
    with open(shared[1] / LOCK_FILE) as file:
        assert json.load(file)["token"] == lock._me.token
    assert [path.name for path in shared[1].iterdir()] == [LOCK_FILE]
    assert os.stat(shared[1] / LOCK_FILE).st_nlink == 1  # the link that was made; its first name is gone


def test_a_renaming_that_was_done_although_the_answer_was_no_is_done(shared, monkeypatch):
    honest = os.replace

    def replace(*paths) -> None:
        honest(*paths)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    (shared[0] / "there").write_text("old")
    assert (shared[1] / "there").read_text() == "old"
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(shared[0] / "there", "new, and longer")
    assert (shared[1] / "there").read_text() == "new, and longer"


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


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(shared):
    """Of a file that another host has replaced, a system may tell an open one that it is stale, or keep it."""
    path, tries = shared[0] / "there", []
    path.write_text("old")

    def read() -> str:
        with open(shared[1] / "there") as file:
            if not tries:
                write_atomically(path, "new, and longer")
            tries.append(file)
            return file.read()

    assert read_replaceable(read) == ("old" if len(tries) == 1 else "new, and longer")
    assert read_replaceable(read) == "new, and longer"


@pytest.mark.parametrize("shared", ON_TWO_MOUNTS, indirect=True)
def test_a_renaming_on_one_mount_is_seen_late_on_the_other(shared):
    """Or tests through the mounts would show nothing."""
    old, new = (shared[1] / name for name in ("old", "new"))
    for _ in range(20):  # this process may stand still for longer than the caches last
        (shared[0] / "old").write_text("content")
        wait_until(lambda: old.exists() and not new.exists(), "the old name alone")
        began = time.monotonic()
        wait_until(lambda: not new.exists() and old.exists(), "a fresh look")
        (shared[0] / "old").rename(shared[0] / "new")
        seen = old.exists(), new.exists()
        if time.monotonic() < began + network_mounts.CACHED_S / 2:
            break
        (shared[0] / "new").unlink()
    assert seen == (True, False)
    wait_until(lambda: new.exists() and not old.exists(), "the new name alone")


@pytest.mark.parametrize("beats", [False, True])
def test_a_lock_of_another_host_is_taken_over_unless_it_beats(shared, monkeypatch, beats):
    """The record has the number of a process that is alive on this host: of another host's it says nothing."""
    monkeypatch.setattr(lock_module, "_host", lambda: "another host")
    holder, waited = Lock(shared[0], "a test"), []
    holder.acquire()
    os.utime(shared[0] / LOCK_FILE, (time.time() - STALE_S - 10,) * 2)
    monkeypatch.setattr(lock_module, "_host", lambda: "this host")
    monkeypatch.setattr(lock_module, "WATCHED_S", 600.0 if beats else 0.1)
    monkeypatch.setattr(lock_module, "POLL_S", 0.02)

    def waiting() -> None:
        waited.append(True)
        assert len(waited) < 2000
        if beats:
            holder.beat()

    lock = Lock(shared[1], "a test")
    if beats:
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on another host"):
            lock.acquire(waiting)
    else:
        lock.acquire(waiting)
    assert (waited or not beats) and (holder.is_mine(), lock.is_mine()) == (beats, not beats)


def test_a_lock_that_was_released_and_taken_by_a_third_job_is_not_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_host", lambda: "another host")
    first, third = Lock(tmp_path, "first"), Lock(tmp_path, "third")
    first.acquire()
    monkeypatch.setattr(lock_module, "_host", lambda: "this host")
    monkeypatch.setattr(lock_module, "POLL_S", 0.0)
    honest, taken = lock_module._read, []

    def read(path: Path):
        found = honest(path)
        if found is None and not taken:
            third.acquire()
            taken.append(True)
        return found

    monkeypatch.setattr(lock_module, "_read", read)
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("the third job's lock was moved"))
    turns = [first.release]
    with pytest.raises(IndexError):  # it waits again, for the third job
        Lock(tmp_path, "second").acquire(waiting=lambda: turns.pop()())
    assert third.is_mine()


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


def test_what_a_machine_lacks_for_two_mounts_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("SELFSUP_SHARED", raising=False)
    monkeypatch.setattr(network_mounts, "FILESYSTEMS", tmp_path / "filesystems")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "filesystems").write_text("nodev\tproc\n\text4\nnodev\tfusectl\n")
    assert network_mounts.lacking_for_nfs() == (
        f"this user is not root; this kernel has no NFS client: {tmp_path}/filesystems lists no nfs; "
        "mount.nfs is not there (Debian: nfs-common); "
        "ganesha.nfsd is not there (Debian: nfs-ganesha and nfs-ganesha-vfs)"
    )
    assert network_mounts.lacking_for_fuse() == (
        f"this user is not root; this kernel has no FUSE: {tmp_path}/filesystems lists no fuse; "
        "bindfs is not there (Debian: bindfs)"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "filesystems").write_text("\text4\nnodev\tnfs\nnodev\tfuse\n")
    for name in ("mount.nfs", "ganesha.nfsd", "bindfs"):
        (tmp_path / name).touch(mode=0o755)
    assert network_mounts.lacking_for_nfs() == network_mounts.lacking_for_fuse() == ""
    monkeypatch.setenv("SELFSUP_SHARED", "/mnt/a:/mnt/b")
    (tmp_path / "filesystems").write_text("")
    assert network_mounts.lacking_for_nfs() == ""
