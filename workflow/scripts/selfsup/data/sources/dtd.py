"""DTD, Describable Textures (Cimpoi et al. 2014): the first of its ten splits."""

from selfsup.data.listing import Listing
from selfsup.data.published_files import PublishedFiles, PublishedSource, by_class
from selfsup.data.source import Counts


class Source(PublishedSource):
    counts = Counts(train=3_760, test=1_880, classes=47, validation=1_880)
    needs = ("labels/train1.txt", "labels/val1.txt", "labels/test1.txt", "images/")
    where = "wanted dtd-r1.0.1.tar.gz, from www.robots.ox.ac.uk/~vgg/data/dtd, or its unpacked folder"
    downloads = True

    @classmethod
    def urls(cls):
        from torchvision.datasets import DTD

        yield DTD._URL, DTD._MD5

    def read(self, files: PublishedFiles) -> Listing:
        train, validation, test = (files.text(f"labels/{split}1.txt").split() for split in ("train", "val", "test"))
        classes, listed = by_class(train, "images")
        splits = {"train": map(listed, [*train, *validation]), "test": map(listed, test)}
        return Listing(classes, {split: files.pictures(of) for split, of in splits.items()}, validation=len(validation))
