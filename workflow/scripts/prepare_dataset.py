"""Pack a dataset into a few large files.

    python workflow/scripts/prepare_dataset.py --source digits --output data/digits
    python workflow/scripts/prepare_dataset.py --source cifar10 --path cifar-10-python.tar.gz --output data/cifar10
    python workflow/scripts/prepare_dataset.py --source imagenet --path /the/tars --cpus 16 --output data/imagenet
    python workflow/scripts/prepare_dataset.py --source folder --path photos --no-labels --output data/photos
    python workflow/scripts/prepare_dataset.py --source cifar10 --download-only --output data/downloads
    python workflow/scripts/prepare_dataset.py --measure --output data/cifar10

Reads the images of --path (digits: none). Writes <output>/store.json and the files it names; see selfsup/data/store.py.
After a kill, the same call continues where it was. Images that cannot be read are all listed in <output>/damaged.txt.
With --download-only it only fetches the source's files into --output. With --measure it only adds mean and std of the
training pictures to a dataset that an older version packed, and changes nothing else.
"""

import argparse
import json
from pathlib import Path

from selfsup.data.packing import progress_bar
from selfsup.data.preparing import Packing, download, prepare
from selfsup.data.statistics import add_statistics
from selfsup.data.store import PackedStore
from selfsup.errors import UserError, run_script
from selfsup.logs import logger
from selfsup.settings.extensions import load_extensions
from selfsup.settings.registries import SOURCES


def main() -> None:
    arguments = parse_arguments()
    load_extensions(arguments.extension)
    if arguments.measure:
        measure(arguments.output, arguments.cpus)
        return
    if arguments.source is None:
        raise UserError(f"--source is not given, wanted one of {', '.join(SOURCES)}")
    if arguments.download_only:
        logger.info(f"downloaded {download(arguments.source, arguments.output)}")
        return
    packing = Packing(
        arguments.resize,
        arguments.skip_damaged,
        arguments.expect,
        not arguments.no_labels,
        arguments.test_share,
        arguments.image_column,
        arguments.label_column,
        arguments.cpus,
    )
    fingerprint = prepare(arguments.source, arguments.path, arguments.output, packing)
    store = PackedStore(arguments.output)
    logger.info(f"packed {arguments.source} into {arguments.output}: {counted(store)}, fingerprint {fingerprint[:16]}")


def counted(store: PackedStore) -> str:
    if store.test is None:
        return f"{len(store.train):,} images without labels"
    return f"{len(store.classes):,} classes, {len(store.train):,} train and {len(store.test):,} test images"


def measure(folder: Path, cpus: int) -> None:
    """Add the mean and standard deviation of its training pictures to a packed dataset."""
    with progress_bar(None, "images", "measure") as bar:
        found = add_statistics(folder, bar.update, cpus)
    told = ", ".join(f"{name} {' '.join(f'{value:.4f}' for value in found[name])}" for name in found)
    logger.info(f"{folder}: {told}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help=f"one of {', '.join(SOURCES)}, or an extension's")
    parser.add_argument("--extension", action="append", default=[], metavar="FILE", help="Python file with a source")
    parser.add_argument("--path", type=Path, help="the folder or archive of the images")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--resize",
        type=positive,
        metavar="PIXELS",
        help="make the shorter side of larger images this long; default: keep",
    )
    parser.add_argument("--no-labels", action="store_true", help="the pictures have no classes; all are trained on")
    parser.add_argument(
        "--test-share",
        type=share,
        metavar="SHARE",
        help="share of the pictures that becomes the test set, if they have none",
    )
    parser.add_argument("--image-column", metavar="NAME", help="of Parquet files; default: the one that holds pictures")
    parser.add_argument("--label-column", metavar="NAME", help="of Parquet files; default: the ClassLabel, or label")
    parser.add_argument("--measure", action="store_true", help="add mean and std to a packed dataset that has none")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out images that cannot be read")
    parser.add_argument(
        "--expect",
        type=counts,
        default='"known"',
        metavar="JSON",
        help='numbers of images and classes to find, for example \'{"train": 1000, "test": 100, "classes": 10}\', '
        "or null for any; default: the source's known numbers",
    )
    parser.add_argument("--cpus", type=positive, default=1, help="processor cores to use; default 1")
    parser.add_argument("--download-only", action="store_true", help="fetch the source's files and stop")
    return parser.parse_args()


def positive(text: str) -> int:
    """Read a whole number of at least 1; argparse tells the user of one that is none."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def share(text: str) -> float:
    """Read a number between 0 and 1; argparse tells the user of one that is none."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number between 0 and 1, for example 0.2")
    return value


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
