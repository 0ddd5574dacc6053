"""What processes have for themselves while they read a store: not more with more images or epochs, its pages shared."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import encode_jpeg

from selfsup.data.store import StoreWriter, write_bytes_header

MB = 1 << 20
SIZES_MB = (12, 48)

OWN_MEMORY = """
import re, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from selfsup.data.store import PackedStore

def own_mb():
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall("(?:Anonymous|Swap): +(\\d+) kB", text)) / 1024

"""

READER = (
    OWN_MEMORY
    + """
before = own_mb()
store = PackedStore(sys.argv[2])
for epoch in range(int(sys.argv[3])):
    for index in range(len(store.train)):
        store.train.image(index)
        store.train.labels[index], store.train.sizes[index]
print(own_mb() - before, flush=True)
sys.stdin.readline()                      # both readers have read all of it: now their pages are counted
pages = {"Rss": 0, "Pss": 0, "Anonymous": 0}
inside = False
for line in Path("/proc/self/smaps").read_text().splitlines():
    if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
        inside = line.endswith("train_images.npy")
    elif inside and line.split(":")[0] in pages:
        pages[line.split(":")[0]] += int(line.split()[1]) / 1024
print(*pages.values(), flush=True)
sys.stdin.readline()
"""
)

# A loader worker's part but for decoding; the test split's batch loads what is loaded once.
EPOCHS = (
    OWN_MEMORY
    + """
from selfsup.data.loader import Batches
from selfsup.recipe import load_recipe

def batches_of(split):
    batches = Batches(split, load_recipe("imagenet", {"global_batch": 1000}), seed=0, stage="pretrain")
    batches._pictures = lambda indices, draws: ([split.encoded(index) for index in indices], None)
    return batches

batches_of(PackedStore(sys.argv[2]).test)[0]
before = own_mb()
batches = batches_of(PackedStore(sys.argv[2]).train)
for step in range(int(sys.argv[3]) * batches.steps_per_epoch):
    batches[step]
print(own_mb() - before)
"""
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")


@pytest.fixture(params=["raw", "encoded"])
def stores(request, tmp_path):
    """A store of each of SIZES_MB, with images of 48 kB."""
    random = np.random.default_rng(0)
    for size in SIZES_MB:
        writer, count = StoreWriter(tmp_path / str(size), ["ant"]), size * MB // 49152
        images = random.integers(0, 256, (count, 3, 128, 128), np.uint8)
        if request.param == "raw":
            for split in ("train", "test"):
                writer.write_raw(split, images, np.zeros(count, np.int64))
        else:
            content = bytes(encode_jpeg(torch.from_numpy(images[0]), quality=100).numpy())
            count = size * MB // len(content)
            ends = np.arange(1, count + 1) * len(content)
            for split in ("train", "test"):
                with open(writer.unfinished / f"{split}_images.npy", "wb") as file:
                    write_bytes_header(file, count * len(content))
                    file.write(content * count)
                writer.add_encoded(
                    split,
                    spans=np.stack([ends - len(content), ends], 1),
                    sizes=np.full((count, 2), 128),
                    labels=np.zeros(count, np.int64),
                    digests=np.zeros((count, 32), np.uint8),
                )
        writer.finish()
    return tmp_path


def read(folder: Path, epochs: int, readers: int, repository: Path) -> tuple[list[float], list[list[float]]]:
    """Return, by reader, how many MB its own memory grew, and Rss, Pss and anonymous MB of the images' pages."""
    command = [sys.executable, "-c", READER, repository / "workflow/scripts", folder, str(epochs)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(readers)]
    grown = [float(process.stdout.readline()) for process in processes]
    pages = []
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
        pages.append([float(word) for word in process.stdout.readline().split()])
    for process in processes:
        process.communicate("\n")
        assert process.returncode == 0
    return grown, pages


def test_own_memory_grows_neither_with_the_images_nor_with_the_epochs(stores, repository):
    """Keeping what is read would be 36 MB more for more images, 144 MB for more epochs; 4 MB is the allocator's."""
    small, _ = read(stores / "12", 2, 1, repository)
    large, _ = read(stores / "48", 2, 1, repository)
    longer, _ = read(stores / "48", 5, 1, repository)
    assert abs(large[0] - small[0]) < 4 and abs(longer[0] - large[0]) < 4


def growth_over_epochs(folder: Path, images: int, epochs: int, repository: Path) -> float:
    """Return how many MB whole epochs of a store of as many images, all the same few bytes, add to a reader's own."""
    content = bytes(encode_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8)).numpy())
    writer = StoreWriter(folder, ["ant"])
    for split, count in {"train": images, "test": 1_000}.items():
        with open(writer.unfinished / f"{split}_images.npy", "wb") as file:
            write_bytes_header(file, len(content))
            file.write(content)
        writer.add_encoded(
            split,
            spans=np.tile([0, len(content)], (count, 1)),
            sizes=np.full((count, 2), 8),
            labels=np.zeros(count, np.int64),
            digests=np.zeros((count, 32), np.uint8),
        )
    writer.finish()
    command = [sys.executable, "-c", EPOCHS, repository / "workflow/scripts", folder, str(epochs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_own_memory_does_not_grow_with_the_number_of_images_or_epochs(tmp_path, repository):
    """An order kept of a million images would be 4 MB or more, a copy of labels, sizes or spans 8 to 16."""
    few = growth_over_epochs(tmp_path / "few", 1_000, 2, repository)
    many = growth_over_epochs(tmp_path / "many", 1_000_000, 1, repository)
    again = growth_over_epochs(tmp_path / "again", 1_000, 500, repository)
    assert max(few, many, again) < 2


def test_processes_of_a_machine_share_a_stores_pages(stores, repository):
    _, pages = read(stores / "48", 1, 2, repository)
    for rss, pss, own in pages:  # every page is in both readers, and counts in each by half
        assert rss > 0.95 * 48 and pss < 0.55 * rss and own == 0
