"""A packed dataset on a node's own disk: copied there by the node's first process, and used by all that come after.

For clusters whose shared file system is slower than the nodes' disks. Whatever goes wrong, the shared store serves.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selfsup.data.store import PackedStore
from selfsup.errors import UserError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 24
LINE_S = 30.0  # between two lines about a copy that takes long
POLL_S = 0.2
SPARE_BYTES = 1 << 28  # left free on the node's disk: logs and temporary files of others


class NoCopyError(Exception):
    """Why the node's own disk cannot be used, for the one line that says so."""


def open_store(
    shared: Path, local: str | None, *, heartbeat: Callable[[str], None] = lambda what: None, quiet: bool = False
) -> PackedStore:
    """Open the dataset in `shared`, or its copy in the folder `local` of this node's own disk, made if needed.

    local: may name $VARIABLES of this node; None for no copy. heartbeat: called now and then with what goes on. quiet:
    do not report that there is no copy; for a node's other ranks. The copy is known by the content's fingerprint and
    the files' sizes, and appears whole or not at all. Raises UserError as PackedStore does.
    """
    store = PackedStore(shared)
    if local is None:
        return store
    try:
        return _copy_of(store, _node_folder(local), heartbeat)
    except (NoCopyError, OSError) as error:
        if not quiet:
            logger.info("no copy of %s on this node (%s): its images are read from %s", shared, error, shared)
        return store


def _node_folder(local: str) -> Path:
    folder = os.path.expandvars(os.path.expanduser(local))
    if "$" in folder:
        raise NoCopyError(f"local_copy is {local}, which names a variable that is not set here")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def _copy_of(store: PackedStore, folder: Path, heartbeat: Callable) -> PackedStore:
    copy = folder / f"{store.folder.resolve().name}-{store.fingerprint[:16]}"
    with _one_at_a_time(copy.with_suffix(".lock"), heartbeat):
        found = _whole(copy, store)
        if found is None:
            _make(store, copy, heartbeat)
            found = _whole(copy, store)
    if found is None:
        raise NoCopyError(f"{copy} differs from it, although it was just copied")
    return found


def _whole(copy: Path, store: PackedStore) -> PackedStore | None:
    """Return the copy if it is one of this store and this user's own; on a disk of all users it might be anybody's."""
    try:
        found = PackedStore(copy)
    except UserError:
        return None
    ours = copy.stat().st_uid == os.getuid()
    return found if ours and (found.fingerprint, found.files) == (store.fingerprint, store.files) else None


def _make(store: PackedStore, copy: Path, heartbeat: Callable) -> None:
    total, unfinished = sum(store.files.values()), copy.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed, with the space that it took
    shutil.rmtree(copy, ignore_errors=True)
    free = shutil.disk_usage(copy.parent).free
    if free < total + SPARE_BYTES:
        raise NoCopyError(f"{copy.parent} has {free / 1e9:.1f} GB free, wanted {(total + SPARE_BYTES) / 1e9:.1f}")
    unfinished.mkdir()
    try:
        began = last = time.monotonic()
        for done in _copy_files(store, unfinished):
            heartbeat(f"copying the dataset to {copy.parent}")
            if time.monotonic() - last > LINE_S:
                last = time.monotonic()
                left = (last - began) / done * (total - done)
                logger.info(f"copying to {copy}: {done / 1e9:.1f} of {total / 1e9:.1f} GB  left {left:.0f} s")
        os.replace(unfinished, copy)
        seconds = time.monotonic() - began
        logger.info(f"copied {store.folder} to {copy}: {total / 1e9:.2f} GB in {seconds:.1f} s")
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _copy_files(store: PackedStore, folder: Path) -> Iterator[int]:
    """Copy the files, store.json last; yield the bytes done so far."""
    done = 0
    for name in [*store.files, "store.json"]:
        with open(store.folder / name, "rb") as source, open(folder / name, "wb") as out:
            while block := source.read(BLOCK_BYTES):
                out.write(block)
                done += len(block)
                yield done


@contextmanager
def _one_at_a_time(path: Path, heartbeat: Callable) -> Iterator[None]:
    """Hold a lock among this node's processes; the kernel gives it up when its holder dies."""
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                heartbeat("waiting for another process of this node, which copies the dataset")
                time.sleep(POLL_S)
        yield
