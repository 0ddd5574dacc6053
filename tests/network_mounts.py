"""A folder that is mounted twice, each mount with caches of its own: what two hosts see of a network file system.

- An NFS export, by nfs-ganesha: a server that is a process as others are, on a port of its own.
- Where the kernel has no client for NFS, a FUSE file system, bindfs. It caches names and attributes, as NFS does, and
  stat() through one mount answers for seconds what was true before the other mount changed it. It has no cache of
  content (direct_io): a client of NFS asks for the length when it opens a file, and FUSE would cut it at the old one.

SELFSUP_SHARED=/mnt/a:/mnt/b names two mounts of one export that is there already.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from selfsup.job.local_ranks import reserved_port
from workflows import wait_until

FILESYSTEMS, FUSE_DEVICE = Path("/proc/filesystems"), Path("/dev/fuse")
CACHED_S = 3
SERVER = """
NFS_CORE_PARAM {{ NFS_Port = {port}; Protocols = 4; Bind_addr = 127.0.0.1; Enable_RQUOTA = false; Enable_NLM = false; }}
NFSv4 {{ Graceless = true; }}
EXPORT {{
    Export_Id = 1; Path = {folder}; Pseudo = /shared; Protocols = 4; Transports = TCP;
    Access_Type = RW; Squash = None; SecType = sys; FSAL {{ Name = VFS; }}
}}
"""

Mounts = tuple[Path, Path]


def lacking_for_nfs() -> str:
    """Return what is missing on this machine for an export of its own that is mounted twice; "" for nothing."""
    if os.environ.get("SELFSUP_SHARED"):
        return ""
    programs = {"mount.nfs": "nfs-common", "ganesha.nfsd": "nfs-ganesha and nfs-ganesha-vfs"}
    return _lacking("nfs", "this kernel has no NFS client", programs)


def lacking_for_fuse() -> str:
    """Return what is missing on this machine for a FUSE file system that is mounted twice; "" for nothing."""
    lacking = _lacking("fuse", "this kernel has no FUSE", {"bindfs": "bindfs"})
    return lacking or ("" if FUSE_DEVICE.exists() else f"there is no {FUSE_DEVICE}")


def _lacking(filesystem: str, without: str, programs: dict[str, str]) -> str:
    lacks = [] if os.geteuid() == 0 else ["this user is not root"]
    if not FILESYSTEMS.exists() or filesystem not in FILESYSTEMS.read_text().split():
        lacks.append(f"{without}: {FILESYSTEMS} lists no {filesystem}")
    lacks += [f"{one} is not there (Debian: {package})" for one, package in programs.items() if not shutil.which(one)]
    return "; ".join(lacks)


@contextlib.contextmanager
def over_nfs(folder: Path) -> Iterator[Mounts]:
    """A context with two mounts of an NFS export, on the loopback, or of the one that SELFSUP_SHARED names."""
    if told := os.environ.get("SELFSUP_SHARED"):
        first, second = map(Path, told.split(":"))
        yield first, second
        return
    with reserved_port() as port, _served(folder, port):
        # Mounts of one export share their caches, unless they are told not to.
        options = f"vers=4.1,tcp,port={port},nosharecache,actimeo={CACHED_S}"
        with _mounted(folder, lambda where: ["mount", "-t", "nfs", "-o", options, "127.0.0.1:/shared", where]) as both:
            yield both


@contextlib.contextmanager
def over_fuse(folder: Path) -> Iterator[Mounts]:
    """A context with two mounts of a folder through FUSE."""
    options = ",".join(f"{what}_timeout={CACHED_S}" for what in ("attr", "entry", "negative")) + ",direct_io"
    with _mounted(folder, lambda where: ["bindfs", "-o", options, _exported(folder), where]) as both:
        yield both


def _exported(folder: Path) -> Path:
    (folder / "exported").mkdir(exist_ok=True)
    return folder / "exported"


@contextlib.contextmanager
def _mounted(folder: Path, command: Callable[[Path], list]) -> Iterator[Mounts]:
    with contextlib.ExitStack() as mounted:
        both = folder / "a", folder / "b"
        for where in both:
            where.mkdir()
            subprocess.run(command(where), check=True)
            mounted.callback(_unmount, where)
        yield both


def _unmount(where: Path) -> None:
    """Unmount what may be busy for a moment."""
    wait_until(lambda: subprocess.run(["umount", where], check=False).returncode == 0, f"the end of {where}", 60)


@contextlib.contextmanager
def _served(folder: Path, port: int) -> Iterator[None]:
    settings, log = folder / "ganesha.conf", folder / "ganesha.log"
    settings.write_text(SERVER.format(port=port, folder=_exported(folder)))
    command = ["ganesha.nfsd", "-F", "-f", settings, "-L", log, "-p", folder / "ganesha.pid"]
    with subprocess.Popen(command) as server:
        try:
            wait_until(
                lambda: server.poll() is not None or "NFS SERVER INITIALIZED" in _text(log), "the NFS server", 60
            )
            if server.poll() is not None:
                raise OSError(f"ganesha.nfsd ended with {server.returncode}: {_text(log)[-500:]}")
            yield
        finally:
            server.terminate()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
