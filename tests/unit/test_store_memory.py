"""What processes have for themselves while they read a store: not more with more images or epochs, its pages shared."""

import re
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import encode_jpeg

from many_ranks import forking
from selfsup.data.store import PackedStore, StoreWriter, write_bytes_header

MB = 1 << 20
SIZES_MB = (12, 48)


def own_mb() -> float:
    """The memory that this process shares with no file."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"(?:Anonymous|Swap): +(\d+) kB", text)) / 1024


# A loader worker's part but for decoding; the test split's batch loads what is loaded once.
STEPS = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from selfsup.data.loader import Batches
from selfsup.data.store import PackedStore
from selfsup.recipe import load_recipe
from test_store_memory import own_mb

def batches_of(split):
    batches = Batches(split, load_recipe("imagenet", {"global_batch": 1000}), seed=0, stage="pretrain")
    batches._pictures = lambda indices, draws: ([split.encoded(index) for index in indices], None)
    return batches

batches_of(PackedStore(sys.argv[2]).test)[0]
before = own_mb()
batches = batches_of(PackedStore(sys.argv[2]).train)
done = 0
for steps in map(int, sys.argv[3:]):
    for step in range(done, steps):
        batches[step]
    done = steps
    print(own_mb() - before)
"""

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc"),
    pytest.mark.xdist_group("ranks"),  # see conftest.py: `read` forks as they do
]


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


def read(folder: Path, epochs: int, readers: int) -> tuple[list[list[float]], list[list[float]]]:
    """Return, by reader, how many MB its own memory had grown after each epoch, and Rss, Pss and anonymous MB of the
    images' pages while all readers are there."""
    context = forking()
    pipes, others = zip(*(context.Pipe() for _ in range(readers)), strict=True)
    processes = [context.Process(target=_reader, args=(other, folder, epochs)) for other in others]
    for process in processes:
        process.start()
    for other in others:
        other.close()  # so that a reader that has died is an error here
    grown = [pipe.recv() for pipe in pipes]
    pages = []
    for pipe in pipes:
        pipe.send("all readers have read all of it")
        pages.append(pipe.recv())
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send("end")
        process.join()
        assert process.exitcode == 0
    return grown, pages


def _reader(pipe: Connection, folder: Path, epochs: int) -> None:
    before, grown = own_mb(), []
    store = PackedStore(folder)
    for _ in range(epochs):
        for index in range(len(store.train)):
            store.train.image(index)
            store.train.labels[index], store.train.sizes[index]
        grown.append(own_mb() - before)
    pipe.send(grown)
    pipe.recv()
    pages, inside = {"Rss": 0.0, "Pss": 0.0, "Anonymous": 0.0}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith("train_images.npy")
        elif inside and line.split(":")[0] in pages:
            pages[line.split(":")[0]] += int(line.split()[1]) / 1024
    pipe.send(list(pages.values()))
    pipe.recv()


def test_own_memory_grows_neither_with_the_images_nor_with_the_epochs(stores):
    """Keeping what is read would be 36 MB more for more images, 144 MB for more epochs; 4 MB is the allocator's."""
    ((_, small),), _ = read(stores / "12", 2, 1)
    ((_, large, *_, longer),), _ = read(stores / "48", 5, 1)
    assert abs(large - small) < 4 and abs(longer - large) < 4


def growth_over_steps(folder: Path, images: int, steps: list[int], repository: Path) -> list[float]:
    """Return how many MB so many batches of a thousand of as many images, all the same few bytes, add to a reader's
    own."""
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
    folders = f"{repository / 'workflow/scripts'}:{repository / 'tests'}:{Path(__file__).parent}"
    command = [sys.executable, "-c", STEPS, folders, folder, *map(str, steps)]
    return [float(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


@pytest.mark.long
def test_own_memory_does_not_grow_with_the_number_of_images_or_epochs(tmp_path, repository):
    """An order kept of a million images would be 4 MB or more, a copy of labels, sizes or spans 8 to 16.

    Of a thousand images a step is an epoch; of a million the first steps have all that is loaded or kept once.
    """
    few, again = growth_over_steps(tmp_path / "few", 1_000, [2, 500], repository)
    (many,) = growth_over_steps(tmp_path / "many", 1_000_000, [50], repository)
    assert max(few, many, again) < 2


def test_processes_of_a_machine_share_a_stores_pages(stores):
    _, pages = read(stores / "48", 1, 2)
    for rss, pss, own in pages:  # every page is in both readers, and counts in each by half
        assert rss > 0.95 * 48 and pss < 0.55 * rss and own == 0
