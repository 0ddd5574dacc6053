"""Pack a dataset into a few large files.

    python workflow/scripts/prepare_dataset.py --source digits --output data/digits
    python workflow/scripts/prepare_dataset.py --source cifar10 --path cifar-10-python.tar.gz --output data/cifar10
    python workflow/scripts/prepare_dataset.py --source imagenet --path /the/tars --cpus 16 --output data/imagenet
    python workflow/scripts/prepare_dataset.py --source cifar10 --download-only --output data/downloads

Reads the images of --path (digits: none). Writes <output>/store.json and the files it names; see selfsup/data/store.py.
Killed, it continues where it was when called again. Images that cannot be read are all listed in <output>/damaged.txt.
With --download-only it only fetches CIFAR-10's archive into --output.
"""

import argparse
import json
from pathlib import Path

from selfsup.data.sources import Packing, download_cifar10, prepare
from selfsup.data.store import PackedStore
from selfsup.errors import UserError, run_script
from selfsup.logs import logger


def main() -> None:
    arguments = parse_arguments()
    if arguments.download_only:
        if arguments.source != "cifar10":
            raise UserError(f"--download-only is for cifar10, not {arguments.source}")
        logger.info(f"downloaded {download_cifar10(arguments.output)}")
        return
    packing = Packing(arguments.resize, arguments.skip_damaged, arguments.expect, arguments.cpus)
    fingerprint = prepare(arguments.source, arguments.path, arguments.output, packing)
    store = PackedStore(arguments.output)
    counts = f"{len(store.classes):,} classes, {len(store.train):,} train and {len(store.test):,} test images"
    logger.info(f"packed {arguments.source} into {arguments.output}: {counts}, fingerprint {fingerprint[:16]}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, choices=["digits", "cifar10", "imagenet", "folder"])
    parser.add_argument("--path", type=Path, help="the folder or archive of the images")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--resize",
        type=positive,
        metavar="PIXELS",
        help="make the shorter side of larger images this long; default: keep",
    )
    parser.add_argument("--skip-damaged", action="store_true", help="go without images that cannot be read")
    parser.add_argument(
        "--expect",
        type=counts,
        default='"known"',
        metavar="JSON",
        help='numbers of images and classes to find, for example \'{"train": 1000, "test": 100, "classes": 10}\', '
        "or null for any; default: those that are known of cifar10 and imagenet",
    )
    parser.add_argument("--cpus", type=positive, default=1, help="processor cores to use; default 1")
    parser.add_argument("--download-only", action="store_true", help="fetch CIFAR-10's archive and stop")
    return parser.parse_args()


def positive(text: str) -> int:
    """Read a whole number of at least 1; argparse tells the user of one that is none."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def counts(text: str) -> dict[str, int] | str | None:
    """Read numbers of images and classes as JSON, null, or "known"; argparse tells the user of what is neither."""
    try:
        value = json.loads(text)
    except ValueError:
        value = 0
    names = {"train", "test", "classes"}
    if value in (None, "known") or (isinstance(value, dict) and value.keys() <= names):
        return value
    raise argparse.ArgumentTypeError(f'{text} is neither null nor numbers like {{"train": 1000, "test": 100}}')


if __name__ == "__main__":
    run_script(main)
