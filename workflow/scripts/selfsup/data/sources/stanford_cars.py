"""Stanford Cars (Krause et al. 2013)."""

from selfsup.data.listing import Listing
from selfsup.data.published_files import Listed, PublishedFiles, PublishedSource
from selfsup.data.source import Counts

ANNOTATIONS = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}


class Source(PublishedSource):
    counts = Counts(8_144, 8_041, 196)
    needs = ("devkit/cars_meta.mat", *ANNOTATIONS.values(), "cars_train/", "cars_test/")
    where = (
        "wanted a folder with devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat, packed or not; its "
        "publisher's page is gone, copies of cars_train.tgz, cars_test.tgz, car_devkit.tgz and the last are on Kaggle"
    )

    def read(self, files: PublishedFiles) -> Listing:
        classes = [str(name) for name in files.matlab("devkit/cars_meta.mat")["class_names"]]
        splits = {}
        for split, name in ANNOTATIONS.items():
            marked = files.matlab(name)["annotations"]
            listed = (Listed(f"cars_{split}/{one['fname']}", int(one["class"]) - 1) for one in marked)
            splits[split] = files.pictures(listed)
        return Listing(classes, splits)
