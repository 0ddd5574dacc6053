"""ImageNet (ILSVRC 2012) from its official archives: a tar of 1,000 tars to train on, and a flat one to test on.

The test set is the 50,000 validation images. Their classes stand in the development kit: the n-th line of
ILSVRC2012_validation_ground_truth.txt is the class number of image n, and meta.mat maps numbers to synset names, as
torchvision.datasets.imagenet reads them.
"""

import re
import tarfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from selfsup.data.archives import UNPACK_ERRORS, ArchiveFolder
from selfsup.data.listing import Listing, Member, Picture
from selfsup.data.tar_listing import read_tar
from selfsup.errors import UserError

TRAIN, TEST = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
KIT = "ILSVRC2012_devkit_t12.tar.gz"
META, GROUND_TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
NUMBER = re.compile(r"ILSVRC2012_val_(\d+)\.JPEG$")


def is_official(folder: Path) -> bool:
    """Return whether `folder` holds one of the official archives."""
    return (folder / TRAIN).exists() or (folder / TEST).exists()


def list_official(folder: Path, pool: Executor, seen: Callable[[int], None] = lambda count: None) -> Listing:
    """List the official archives in `folder`. Classes are the synset names in sorted order, as in a class tree.

    Raises UserError when one of the three is missing or cannot be read.
    """
    missing = [name for name in (TRAIN, TEST, KIT) if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder}: has no {' and no '.join(missing)}; wanted {TRAIN}, {TEST} and {KIT} (the class of each test "
            "image), all from image-net.org"
        )
    by_class = _train_members(folder / TRAIN, pool, seen)
    classes = sorted(by_class)
    tests = _test_members(folder / TEST, validation_synsets(folder / KIT), seen)
    unknown = sorted(set(tests) - set(classes))
    if unknown:
        raise UserError(
            f"{folder / TEST}: {', '.join(unknown[:20])}: {TRAIN} has no tar of these {len(unknown)} classes"
        )
    return Listing(classes, {"train": _pictures(by_class, classes), "test": _pictures(tests, classes)})


def validation_synsets(kit: Path) -> list[str]:
    """Return the synset name, for example n01440764, of each validation image in the order of their numbers."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            "ImageNet's development kit is read with scipy, which is not installed: pip install scipy"
        ) from None
    try:
        with tarfile.open(kit) as tar:
            files = {info.name.split("/", 1)[-1]: info for info in tar if info.isfile()}
            synsets = loadmat(tar.extractfile(files[META]), squeeze_me=True)["synsets"]
            numbers = tar.extractfile(files[GROUND_TRUTH]).read().split()
        names = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets}
        return [names[int(number)] for number in numbers]
    except (tarfile.TarError, KeyError, ValueError, TypeError, *UNPACK_ERRORS) as error:
        raise UserError(f"{kit}: no development kit of ILSVRC 2012 ({error!r}): fetch it again") from error


def _train_members(archive: Path, pool: Executor, seen: Callable[[int], None]) -> dict[str, list[Member]]:
    tars = [one for one in read_tar(archive) if isinstance(one, Member) and one.name.endswith(".tar")]
    if not tars:
        raise UserError(f"{archive}: holds no tars, wanted one for each class")
    by_class = {}
    for outer, members in zip(tars, pool.map(partial(_inner_members, archive), tars), strict=True):
        synset = Path(outer.name).stem
        if synset in by_class:
            raise UserError(f"{archive}: {outer.name} is in the archive twice: fetch it again")
        if not members:
            raise UserError(f"{archive}: {outer.name} is empty: fetch the archive again")
        by_class[synset] = [member._replace(name=f"train/{synset}/{Path(member.name).name}") for member in members]
        seen(len(members))
    return by_class


def _inner_members(archive: Path, outer: Member) -> list[Member]:
    inside = read_tar(archive, outer.offset, outer.offset + outer.length)
    return [member for member in inside if not isinstance(member, ArchiveFolder)]


def _test_members(archive: Path, synsets: list[str], seen: Callable[[int], None]) -> dict[str, list[Member]]:
    by_class = defaultdict(list)
    for member in read_tar(archive):
        if isinstance(member, ArchiveFolder):
            continue
        found = NUMBER.search(member.name)
        if not found or not 1 <= int(found[1]) <= len(synsets):
            raise UserError(f"{archive}: {member.name}: wanted ILSVRC2012_val_<1 to {len(synsets)}>.JPEG")
        synset = synsets[int(found[1]) - 1]
        by_class[synset].append(member._replace(name=f"val/{synset}/{Path(member.name).name}"))
        seen(1)
    return by_class


def _pictures(by_class: dict[str, list[Member]], classes: list[str]) -> list[Picture]:
    return [Picture(member, label) for label, name in enumerate(classes) for member in sorted(by_class.get(name, []))]
