"""SUN397 (Xiao et al. 2010): the first of its ten partitions, 50 and 50 pictures of each class."""

from selfsup.data.listing import Listing
from selfsup.data.published_files import Listed, PublishedFiles, PublishedSource
from selfsup.data.source import Counts


class Source(PublishedSource):
    counts = Counts(19_850, 19_850, 397)
    needs = ("SUN397/ClassName.txt", "Training_01.txt", "Testing_01.txt")
    where = (
        "wanted a folder with SUN397.tar.gz (37 GB) and Partitions.zip, from vision.princeton.edu/projects/2010/SUN, "
        "packed or not"
    )

    def read(self, files: PublishedFiles) -> Listing:
        paths = files.text("SUN397/ClassName.txt").split()  # /a/abbey, /a/airplane_cabin
        labels = {path: label for label, path in enumerate(paths)}

        def listed(line: str) -> Listed:  # /a/abbey/sun_aakbdcgfpksytcwj.jpg
            return Listed(f"SUN397{line}", labels[line.rpartition("/")[0]])

        lists = {"train": "Training_01.txt", "test": "Testing_01.txt"}
        splits = {split: files.pictures(map(listed, files.text(name).split())) for split, name in lists.items()}
        return Listing([path.removeprefix("/").partition("/")[2] for path in paths], splits)
