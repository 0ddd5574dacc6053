"""Oxford Flowers-102 (Nilsback & Zisserman 2008): 10 pictures of each class to train on and 10 for validation."""

from selfsup.data.listing import Listing
from selfsup.data.published_files import Listed, PublishedFiles, PublishedSource
from selfsup.data.source import Counts

SPLITS = ("trnid", "valid", "tstid")  # variables of setid.mat


class Source(PublishedSource):
    counts = Counts(train=2_040, test=6_149, classes=102, validation=1_020)
    measure = "mean per class"
    needs = ("jpg/image_00001.jpg", "setid.mat", "imagelabels.mat")
    where = (
        "wanted a folder with 102flowers.tgz, imagelabels.mat and setid.mat, from "
        "www.robots.ox.ac.uk/~vgg/data/flowers/102, packed or not"
    )
    downloads = True

    @classmethod
    def urls(cls):
        from torchvision.datasets import Flowers102

        for name, md5 in Flowers102._file_dict.values():
            yield f"{Flowers102._download_url_prefix}{name}", md5

    def read(self, files: PublishedFiles) -> Listing:
        labels, numbers = files.matlab("imagelabels.mat")["labels"], files.matlab("setid.mat")

        def listed(number: int) -> Listed:
            return Listed(f"jpg/image_{number:05d}.jpg", int(labels[number - 1]) - 1)

        train, validation, test = ([listed(int(number)) for number in numbers[name]] for name in SPLITS)
        classes = [str(number) for number in range(1, int(labels.max()) + 1)]  # its publisher's files have no names
        splits = {"train": files.pictures([*train, *validation]), "test": files.pictures(test)}
        return Listing(classes, splits, validation=len(validation))
