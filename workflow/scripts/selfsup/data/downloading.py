"""Downloads of a source's files, each whole or not there."""

from pathlib import Path

from torchvision.datasets.utils import check_integrity, download_url

from selfsup.atomic_files import rename_over
from selfsup.errors import UserError

PARTIAL = "partial"  # folder in that of the downloads


def fetch(url: str, folder: Path, md5: str | None) -> Path:
    """Download a file into `folder`, check it, and return its path; one that is there and passes is kept."""
    name = url.rsplit("/", 1)[-1]
    path, partial = folder / name, folder / PARTIAL
    if check_integrity(path, md5):
        return path
    try:
        partial.mkdir(parents=True, exist_ok=True)
        (partial / name).unlink(missing_ok=True)  # of a process that was killed: without an MD5 it would count
        download_url(url, partial, name, md5)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} could not be downloaded from {url} ({error}). Fetch it on a machine with a network and set the "
            "dataset's path in config.yaml to its folder"
        ) from error
    rename_over(partial / name, path)
    return path
