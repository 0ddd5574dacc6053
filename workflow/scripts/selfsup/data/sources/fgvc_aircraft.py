"""FGVC-Aircraft 2013b (Maji et al. 2013), by its 100 variants."""

from selfsup.data.listing import Listing
from selfsup.data.published_files import Listed, PublishedFiles, PublishedSource
from selfsup.data.source import Counts

LISTS = {split: f"images_variant_{split}.txt" for split in ("train", "val", "test")}


class Source(PublishedSource):
    counts = Counts(train=6_667, test=3_333, classes=100, validation=3_333)
    measure = "mean per class"
    needs = ("variants.txt", *LISTS.values(), "images/")
    where = (
        "wanted fgvc-aircraft-2013b.tar.gz, from www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft, or its unpacked folder"
    )
    downloads = True

    @classmethod
    def urls(cls):
        from torchvision.datasets import FGVCAircraft

        yield FGVCAircraft._URL, None

    def read(self, files: PublishedFiles) -> Listing:
        classes = [line.strip() for line in files.text("variants.txt").splitlines()]
        labels = {name: label for label, name in enumerate(classes)}

        def listed(line: str) -> Listed:  # 0034309 707-320
            name, _, variant = line.strip().partition(" ")
            return Listed(f"images/{name}.jpg", labels[variant])

        train, validation, test = (list(map(listed, files.text(name).splitlines())) for name in LISTS.values())
        splits = {"train": files.pictures([*train, *validation]), "test": files.pictures(test)}
        return Listing(classes, splits, validation=len(validation))
