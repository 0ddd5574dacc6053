"""Which packed image files are kept as their pixels: equal small pictures, which then stay on the device as a whole.

A JPEG of 32 pixels costs a processor a third of a millisecond in every epoch anew, and a GPU asks for 20,000 of them a
second; their pixels take CIFAR-10 184 MB. The rule looks at the pictures alone, so that a tree and a tar of it give the
same store; the fingerprint is that of the files, so that it is the one of a store that an older version has packed.
"""

from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from selfsup.data.store import decode, named, to_disk

LONGEST_SIDE = 64  # pixels: above, a JPEG is an eighth of its pixels and less, and a data set soon too large to stay
MOST_BYTES = 2**31  # of all splits' pixels: a quarter of a small GPU's 8 GB, as `selfsup.data.loader` lets them take
AT_ONCE = 256  # pictures decoded before they are written


def size_of_all(sizes: Iterable[np.ndarray]) -> tuple[int, int] | None:
    """Return height and width where all pictures of all splits share them, and are small and few enough; else None.

    sizes: of each split, int64 [N, 2].
    """
    splits = list(sizes)
    if not all(len(one) for one in splits):
        return None
    found = np.concatenate(splits)
    height, width = map(int, found[0])
    fits = max(height, width) <= LONGEST_SIDE and 3 * height * width * len(found) <= MOST_BYTES
    return (height, width) if fits and bool((found == found[0]).all()) else None


def write_pixels(images: Path, spans: np.ndarray, size: tuple[int, int], target: Path, pool: Executor) -> bool:
    """Write the decoded pictures as a .npy, uint8 [N, 3, H, W]; return False if one cannot be decoded after all.

    images: the .npy that has the files' bytes at `spans`, int64 [N, 2].
    """
    content = np.load(images, mmap_mode="r", allow_pickle=False)

    def pixels(span: np.ndarray) -> bytes:
        return decode(np.array(content[span[0] : span[1]])).numpy().tobytes()

    header = {"descr": "|u1", "fortran_order": False, "shape": (len(spans), 3, *size)}
    with named(target), open(target, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        try:
            for start in range(0, len(spans), AT_ONCE):
                file.write(b"".join(pool.map(pixels, spans[start : start + AT_ONCE])))
        except ValueError:
            return False
        to_disk(file)
    return True
