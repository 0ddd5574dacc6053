"""Pack a dataset into a few large files.

    python workflow/scripts/prepare_dataset.py --source digits --output data/digits
    python workflow/scripts/prepare_dataset.py --source cifar10 --path cifar-10-python.tar.gz --output data/cifar10
    python workflow/scripts/prepare_dataset.py --source cifar10 --download-only --output data/downloads

Reads the images of --path (digits: none). Writes <output>/store.json and the files it names; see selfsup/data/store.py.
With --download-only it only fetches CIFAR-10's archive into --output.
"""

import argparse
from pathlib import Path

from selfsup.data.sources import download_cifar10, prepare
from selfsup.errors import UserError, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, choices=["digits", "cifar10", "imagenet", "folder"])
    parser.add_argument("--path", type=Path, help="the folder or archive of the images")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--download-only", action="store_true", help="fetch CIFAR-10's archive and stop")
    arguments = parser.parse_args()
    if arguments.download_only:
        if arguments.source != "cifar10":
            raise UserError(f"--download-only is for cifar10, not {arguments.source}")
        print(f"downloaded {download_cifar10(arguments.output)}")
        return
    fingerprint = prepare(arguments.source, arguments.path, arguments.output)
    print(f"packed {arguments.source} into {arguments.output}, fingerprint {fingerprint[:16]}")


if __name__ == "__main__":
    run_script(main)
