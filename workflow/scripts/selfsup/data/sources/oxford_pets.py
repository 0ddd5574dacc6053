"""Oxford-IIIT Pets (Parkhi et al. 2012), by its 37 breeds."""

from selfsup.data.listing import Listing
from selfsup.data.published_files import Listed, PublishedFiles, PublishedSource
from selfsup.data.source import Counts


class Source(PublishedSource):
    counts = Counts(3_680, 3_669, 37)
    measure = "mean per class"
    needs = ("annotations/trainval.txt", "annotations/test.txt", "images/")
    where = (
        "wanted a folder with images.tar.gz and annotations.tar.gz, from www.robots.ox.ac.uk/~vgg/data/pets, packed or "
        "not"
    )
    downloads = True

    @classmethod
    def urls(cls):
        from torchvision.datasets import OxfordIIITPet

        yield from OxfordIIITPet._RESOURCES

    def read(self, files: PublishedFiles) -> Listing:
        lists = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
        splits = {split: list(map(_listed, files.text(name).splitlines())) for split, name in lists.items()}
        breeds = {label: _breed(name) for name, label in splits["train"]}
        classes = [breeds[label] for label in range(len(breeds))]
        return Listing(classes, {split: files.pictures(of) for split, of in splits.items()})


def _listed(line: str) -> Listed:  # Abyssinian_100 1 1 1
    name, breed, *_ = line.split()
    return Listed(f"images/{name}.jpg", int(breed) - 1)


def _breed(name: str) -> str:
    return name.removeprefix("images/").rpartition("_")[0]
