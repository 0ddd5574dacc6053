"""Class trees of small random pictures, as folders and as tars."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torchvision.io import encode_png


def write_tree(
    root: Path, splits: Mapping[str, list[str]], encode: Callable = encode_png, suffix: str = "png", count: int = 3
) -> dict[tuple[str, str, int], torch.Tensor]:
    """Write random pictures of differing sizes as <split>/<class>/<n>.<suffix> and return them."""
    random = np.random.default_rng(0)
    pictures = {}
    for split, classes in splits.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (3, *random.integers(8, 20, 2))
                picture = torch.from_numpy(random.integers(0, 256, shape, np.uint8))
                (folder / f"{number}.{suffix}").write_bytes(bytes(encode(picture).numpy()))
                pictures[split, name, number] = picture
    return pictures


def tar_of(root: Path, archive: Path, mode: str = "w", top: str = ".") -> Path:
    """Write the folder `root` as a tar, its names in reverse order, and return its path."""
    with tarfile.open(archive, mode) as tar:
        for path in sorted(root.rglob("*"), reverse=True):
            tar.add(path, f"{top}/{path.relative_to(root)}", recursive=False)
    return archive


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file of this content to an open tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
