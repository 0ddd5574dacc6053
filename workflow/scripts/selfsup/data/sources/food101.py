"""Food-101 (Bossard et al. 2014): 750 and 250 pictures of each class."""

import json

from selfsup.data.listing import Listing
from selfsup.data.published_files import PublishedFiles, PublishedSource, by_class
from selfsup.data.source import Counts


class Source(PublishedSource):
    counts = Counts(75_750, 25_250, 101)
    needs = ("meta/train.json", "meta/test.json", "images/")
    where = "wanted food-101.tar.gz, from data.vision.ee.ethz.ch/cvl/datasets_extra/food-101, or its unpacked folder"
    downloads = True

    @classmethod
    def urls(cls):
        from torchvision.datasets import Food101

        yield Food101._URL, Food101._MD5

    def read(self, files: PublishedFiles) -> Listing:
        lists = {split: json.loads(files.text(f"meta/{split}.json")) for split in ("train", "test")}
        names = {split: [f"{name}.jpg" for of in found.values() for name in of] for split, found in lists.items()}
        classes, listed = by_class(names["train"], "images")
        return Listing(classes, {split: files.pictures(map(listed, of)) for split, of in names.items()})
