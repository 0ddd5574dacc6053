"""A shim that is preloaded into trainers: faults.c says what it does. It needs gcc, or another C compiler as cc."""

import contextlib
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
COMPILER = shutil.which("gcc") or shutil.which("cc")


@dataclass(frozen=True)
class Writing:
    """A line of the journal: which process gave a file its name, or opened it to append. at: seconds of the machine's
    monotonic clock."""

    at: float
    pid: int
    job: str
    appends: bool
    path: Path


class Faults:
    """The shim, built in a folder, with its clock and its journal for the trainers of one run."""

    def __init__(self, folder: Path, program: str = "pretrain.py"):
        folder.mkdir(parents=True, exist_ok=True)
        self._clock, self._journal, self._library = (folder / name for name in ("clock", "journal", "faults.so"))
        self._program = program
        self.jump(0)
        self._journal.touch()
        build(self._library)

    def environment(self, **more: object) -> dict[str, str]:
        """What is added to the environment of whatever starts the trainers. more: further FAULTS_* of faults.c."""
        told = {"CLOCK": self._clock, "JOURNAL": self._journal, "PROGRAM": self._program, **more}
        return {"LD_PRELOAD": str(self._library), **{f"FAULTS_{name}": str(value) for name, value in told.items()}}

    def jump(self, seconds: int) -> None:
        """Let the time of day be so many seconds ahead of the true one, in trainers that run and in later ones."""
        if not self._clock.exists():
            self._clock.write_bytes(bytes(8))
        with open(self._clock, "r+b") as file:  # in place: the trainers have mapped it
            file.write(struct.pack("=q", seconds))

    def writings(self) -> list[Writing]:
        """Return what was renamed into place or appended to, in the order of time."""
        rows = [line.split(" ", 4) for line in self._journal.read_text().splitlines()]
        found = (Writing(float(at), int(pid), job, how == "append", Path(path)) for at, pid, job, how, path in rows)
        return sorted(found, key=_moment)


def _moment(one: Writing) -> float:
    return one.at


def build(library: Path) -> None:
    """Compile the shim."""
    if COMPILER is None:
        raise SystemExit("error: found no C compiler, wanted gcc or cc for tests/faults.c: install gcc")
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)


class SmallDisk:
    """A file system of its own in a folder, which can be filled or made read-only: a tmpfs, for which one is root."""

    def __init__(self, folder: Path, megabytes: int = 64):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._filler = folder, folder / "filler"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)

    def fill(self) -> None:
        """Take all space that is left."""
        with contextlib.suppress(OSError), open(self._filler, "ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def clear(self) -> None:
        """Give the space back."""
        self._filler.unlink(missing_ok=True)

    def remount(self, how: str) -> bool:
        """Make it read-only ("ro") or writable ("rw"); False while a file is open for writing."""
        command = ["mount", "-o", f"remount,{how}", self.folder]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0

    def close(self) -> None:
        """Take it away; what is on it lies in the folder afterwards."""
        with tempfile.TemporaryDirectory() as name:
            kept = Path(name) / "kept"
            shutil.copytree(self.folder, kept)
            subprocess.run(["umount", "-l", self.folder], check=True)
            shutil.copytree(kept, self.folder, dirs_exist_ok=True)


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", name]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", name], check=True)
        return True


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A context in which `folder` is a small disk."""
    disk = SmallDisk(folder)
    try:
        yield disk
    finally:
        disk.remount("rw")
        disk.clear()
        disk.close()
