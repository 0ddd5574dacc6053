"""Pictures for benchmarks that need no dataset: their content does not matter, their size and weight do."""

from collections.abc import Iterator
from pathlib import Path

import measuring  # noqa: F401  puts selfsup on the path
import numpy as np
import torch
from torchvision.io import encode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from selfsup.data.preparing import prepare
from selfsup.data.store import PackedStore, StoreWriter

CLASSES = 10
# ImageNet's training images: 110 KB and 500 x 375 pixels in the mean. Enlarged noise of quality 90 comes to that.
HEIGHT, WIDTH, QUALITY = 375, 500, 90


def noise(count: int, height: int, width: int) -> torch.Tensor:
    """Return pictures of noise, uint8 [count, 3, height, width]."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, height, width), np.uint8))


def smooth(count: int, height: int, width: int) -> torch.Tensor:
    """Return pictures without an edge, uint8 [count, 3, height, width]."""
    return resize(noise(count, height // 4, width // 4), [height, width], interpolation=InterpolationMode.BICUBIC)


def jpegs(folder: Path | None, count: int = 100) -> Iterator[bytes]:
    """Yield the content of the JPEG files in `folder`, in any depth, or `count` made ones of ImageNet's mean size."""
    if folder:
        yield from (path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg"))
        return
    for image in noise(count, HEIGHT // 3, WIDTH // 3):
        enlarged = resize(image, [HEIGHT, WIDTH], antialias=True)
        yield encode_jpeg(enlarged, quality=QUALITY).numpy().tobytes()


def make_tree(root: Path, contents: list[bytes], splits: dict[str, int]) -> list[Path]:
    """Write a class tree with as many pictures in each split, the contents over and over, and return its files."""
    files = []
    for split, number in splits.items():
        for index in range(number):
            file = root / split / f"class{index % CLASSES}" / f"{index:06}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents[index % len(contents)])
            files.append(file)
    return files


def small_store(folder: Path, count: int, size: int = 32) -> PackedStore:
    """Return a packed store like CIFAR-10's, of `count` training and `count` // 5 test pictures."""
    writer, random = StoreWriter(folder, [f"class{number}" for number in range(CLASSES)]), np.random.default_rng(1)
    for split, number in {"train": count, "test": count // 5}.items():
        writer.write_raw(split, smooth(number, size, size).numpy(), random.integers(0, CLASSES, number))
    writer.finish()
    return PackedStore(folder)


def large_store(tree: Path, folder: Path) -> PackedStore:
    """Return a packed store of a class tree's files."""
    prepare("folder", tree, folder)
    return PackedStore(folder)
