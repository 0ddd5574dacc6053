"""One job at a time in a folder: a lock that names its holder, whose heartbeat shows that it is alive.

The operating system's file locks do not work on every cluster's file system, and do not say who holds them.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from selfsup.atomic_files import read_replaceable
from selfsup.errors import UserError

LOCK_FILE = "lock.json"
BEAT_S = 10.0
STALE_S = 120.0  # without a beat for so long the holder is dead; a file system or a processor may stall for a while
WATCHED_S = 2.5 * BEAT_S  # and who waits for the lock must see no beat for so long itself: the hosts' clocks differ
POLL_S = 1.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. `process_started` distinguishes a process from a later one with the same number."""

    token: str
    host: str
    pid: int
    process_started: str
    job_id: str
    since: str
    stage: str

    def __str__(self) -> str:
        job = f"Slurm job {self.job_id}" if self.job_id else f"process {self.pid}"
        return f"{job} on {self.host} ({self.stage}, since {self.since})"


def this_process(stage: str, environment: Mapping[str, str] = os.environ) -> Holder:
    """Return this process as a holder, with a new token."""
    return Holder(
        token=secrets.token_hex(8),
        host=_host(),
        pid=os.getpid(),
        process_started=_process_started(os.getpid()) or "",
        job_id=environment.get("SLURM_JOB_ID", ""),
        since=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        stage=stage,
    )


class Lock:
    """The lock of a folder, held by this process between `acquire` and `release`."""

    def __init__(self, folder: Path, stage: str):
        self._path, self._me = folder / LOCK_FILE, this_process(stage)

    def acquire(self, waiting: Callable[[], None] = lambda: None) -> None:
        """Take the lock. Waits, up to STALE_S, if it is not known at once whether the holder is alive.

        waiting: called every second of the wait; an exception from it ends the wait. Raises UserError naming a living
        holder.
        """
        while not self._create():
            seen = _read(self._path)
            if seen is not None and self._is_left_behind(*seen, waiting):  # else the lock was just released
                self._set_aside(*seen)

    def beat(self) -> bool:
        """Show that the holder is alive. Returns whether this process still holds the lock."""
        if not self.is_mine():
            return False
        os.utime(self._path)  # by the file server's clock, not this host's
        return True

    def is_mine(self) -> bool:
        """Return whether this process still holds the lock; another may have taken it during a long suspension."""
        seen = _read(self._path)
        return seen is not None and seen[0] is not None and seen[0].token == self._me.token

    def release(self) -> None:
        """Release the lock, unless another process has taken it."""
        if self.is_mine():
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        whole = self._path.with_name(f"{LOCK_FILE}.{self._me.token}.new")
        try:
            whole.write_text(json.dumps(asdict(self._me)))
            os.link(whole, self._path)  # atomic: only one of several processes succeeds
        except FileExistsError:
            return self.is_mine()  # a network file system asks again if an answer is lost, and then finds the link
        except OSError:  # a file system without hard links, or only the answer has failed
            return self.is_mine() or self._create_in_place()
        finally:
            whole.unlink(missing_ok=True)
        return True

    def _create_in_place(self) -> bool:
        try:
            file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(file, "w") as out:
            json.dump(asdict(self._me), out)
        return True

    def _is_left_behind(self, holder: Holder | None, beat: float, waiting: Callable[[], None]) -> bool:
        """Return True once the holder is known to be dead, False once it has released the lock; UserError if it lives.

        A lock that was released is not there to be set aside: what has its name is another's.
        """
        began = time.monotonic()
        while True:
            alive = _lives(holder, self._me)
            silent = self._now() - beat > STALE_S and time.monotonic() - began > WATCHED_S
            seen = _read(self._path)
            if seen is None:
                return False
            if alive or seen[1] > beat:
                raise UserError(
                    f"{self._path.parent} is in use by {seen[0] or holder or 'another job'}: wait until it has ended, "
                    "or end it; nothing was changed"
                )
            if alive is False or silent:
                return True
            waiting()
            time.sleep(POLL_S)

    def _set_aside(self, holder: Holder | None, beat: float) -> None:
        """Remove a dead holder's lock, but not the lock of another job that has taken it over meanwhile."""
        aside = self._path.with_name(f"{LOCK_FILE}.{self._me.token}")
        with contextlib.suppress(FileNotFoundError):  # another job was first, or the answer of a renaming was lost
            os.rename(self._path, aside)
        found = _read(aside)
        if found is not None and (found[0] != holder or found[1] > beat):
            with contextlib.suppress(OSError):  # a third job holds the lock already
                os.link(aside, self._path)
        aside.unlink(missing_ok=True)

    def _now(self) -> float:
        """Return the time by the clock that dates the beats."""
        probe = self._path.with_name(f"{LOCK_FILE}.{self._me.token}.now")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def held(folder: Path, stage: str) -> Iterator[None]:
    """A context that holds a folder's lock, with a heartbeat. Raises UserError naming a living holder."""
    lock, leaving = Lock(folder, stage), threading.Event()

    def beat() -> None:
        while not leaving.wait(BEAT_S):
            with contextlib.suppress(OSError):  # the disk is full or away for a moment
                lock.beat()

    lock.acquire()
    heart = threading.Thread(target=beat, name="heartbeat", daemon=True)
    heart.start()
    try:
        yield
    finally:
        leaving.set()
        heart.join()
        lock.release()


def read_holder(folder: Path) -> Holder | None:
    """Return who holds a folder's lock, dead or alive; None if it is not locked."""
    seen = _read(folder / LOCK_FILE)
    return seen[0] if seen else None


def living_holder(folder: Path) -> Holder | None:
    """Return the holder of a folder's lock if it is alive: a process of this host, or one with a recent beat.

    Changes nothing and does not wait, and so may be called on any host to learn whether a run is going on.
    """
    seen = _read(folder / LOCK_FILE)
    if seen is None or seen[0] is None:
        return None
    holder, beat = seen
    alive = _lives(holder, this_process("look"))
    return holder if alive or (alive is None and time.time() - beat < STALE_S) else None


def _lives(holder: Holder | None, me: Holder) -> bool | None:
    """Return whether a holder on this host is alive; None for a holder on another host, or an unknown one."""
    if holder is None or holder.host != me.host:
        return None
    return _process_started(holder.pid) == holder.process_started


def _read(path: Path) -> tuple[Holder | None, float] | None:
    """Return holder and last beat; no holder if a killed process left the file empty; None if there is no file."""
    try:
        text, beat = read_replaceable(lambda: _opened(path))
    except FileNotFoundError:
        return None
    try:
        return Holder(**json.loads(text)), beat
    except (ValueError, TypeError):
        return None, beat


def _opened(path: Path) -> tuple[str, float]:
    """Return content and time of a file that is opened: a network file system would answer stat() from a cache."""
    with open(path) as file:
        return file.read(), os.fstat(file.fileno()).st_mtime


def _host() -> str:
    """Return this host's name, with its process namespace if that is a container's: containers may share a name."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return socket.gethostname()
    initial = 0xEFFFFFFC  # the kernel's number for the machine's own namespace
    return socket.gethostname() + ("" if namespace == initial else f" (pid namespace {namespace})")


def _process_started(pid: int) -> str | None:
    """Return when a process of this host started, in kernel ticks; "" if that is unknown; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
