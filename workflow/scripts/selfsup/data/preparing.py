"""A dataset's way from its source to a packed store: a train and a test split, or one split without labels."""

from pathlib import Path

from selfsup.data.source import Packing
from selfsup.data.store import named
from selfsup.errors import UserError
from selfsup.job.lock import held
from selfsup.settings.registries import SOURCES
from selfsup.settings.typed import suggest

__all__ = ["Packing", "download", "prepare"]

WHOLE = Packing()


def prepare(source: str, path: Path | None, folder: Path, packing: Packing = WHOLE) -> str:
    """Pack a dataset into `folder` and return its fingerprint. Raises UserError with what to do when it cannot."""
    found = _known(source)(path, packing)
    found.check_path(source)
    with named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with held(folder, f"packing {source}"):
        return found.pack(folder)


def download(source: str, folder: Path) -> Path:
    """Fetch a source's files into `folder`, checked; return what may be its path. Raises UserError when it cannot."""
    kind = _known(source)
    if not kind.downloads:
        raise UserError(f"--download-only is not for {source}: {kind.where or 'it has nothing to download'}")
    with named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return kind.download(folder)


def _known(source: str):
    if source not in SOURCES:
        raise UserError(f"--source is {source}, which does not exist{suggest(source, list(SOURCES))}")
    return SOURCES[source]
