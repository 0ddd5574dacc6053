"""PASCAL VOC 2007's classification (Everingham et al. 2010): a picture may be of several of 20 classes."""

from collections import defaultdict

from selfsup.data.listing import Listing
from selfsup.data.published_files import Listed, PublishedFiles, PublishedSource
from selfsup.data.source import Counts

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LISTS = "ImageSets/Main"
VALUES = {1: 1, -1: 0, 0: -1}  # of the lists: of the class, not, "difficult"; and ours
SPLITS = ("train", "val", "test")


class Source(PublishedSource):
    counts = Counts(train=5_011, test=4_952, classes=20, validation=2_510)
    measure = "11-point mAP"
    needs = (*(f"{LISTS}/{name}_{split}.txt" for split in ("train", "val", "test") for name in CLASSES), "JPEGImages/")
    where = (
        "wanted a folder with VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar, from "
        "host.robots.ox.ac.uk/pascal/VOC/voc2007, or both unpacked into one VOCdevkit"
    )
    downloads = True

    @classmethod
    def urls(cls):
        from torchvision.datasets.voc import DATASET_YEAR_DICT

        for year in ("2007", "2007-test"):
            yield DATASET_YEAR_DICT[year]["url"], DATASET_YEAR_DICT[year]["md5"]

    def read(self, files: PublishedFiles) -> Listing:
        train, validation, test = (_listed(files, split) for split in SPLITS)
        splits = {"train": files.pictures([*train, *validation]), "test": files.pictures(test)}
        return Listing(list(CLASSES), splits, validation=len(validation))


def _listed(files: PublishedFiles, split: str) -> list[Listed]:
    labels = defaultdict(list)
    for name in CLASSES:
        for line in files.text(f"{LISTS}/{name}_{split}.txt").splitlines():  # 000005 -1
            number, value = line.split()
            labels[number].append(VALUES[int(value)])
    return [Listed(f"JPEGImages/{number}.jpg", tuple(of)) for number, of in sorted(labels.items())]
