"""scikit-learn's 1,797 handwritten digits, grey, 8 x 8, values 0 to 16, made RGB; 80/20 split, fixed by seed."""

from pathlib import Path

import numpy as np

from selfsup.data import source
from selfsup.errors import UserError

PIXELS = 32  # the 8-pixel originals are enlarged once, so that crops can begin between two of their pixels
TEST_SHARE = 0.2


class Source(source.Source):
    counts = source.Counts(1_437, 360, 10)
    packed_bytes = 3 * PIXELS**2
    files = False
    test_split = "test (a fixed fifth)"

    def check_path(self, name: str) -> None:
        """It has none."""

    def pack(self, folder: Path) -> str:
        from selfsup.data.statistics import of_images
        from selfsup.data.store import StoreWriter

        images, labels = _images()
        train, test = _split(labels)
        writer = StoreWriter(folder, [str(digit) for digit in range(10)])
        for split, chosen in {"train": train, "test": test}.items():
            writer.write_raw(split, images[chosen], labels[chosen])
        writer.note(**of_images(images[train]))
        return writer.finish()


def _images() -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [N, 3, PIXELS, PIXELS], and their labels."""
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "the digits dataset comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    pictures, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(pictures.reshape(-1, 1, 8, 8) / 16).float()
    large = resize(grey, [PIXELS, PIXELS], interpolation=InterpolationMode.BICUBIC).clamp(0, 1)
    return (large * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).numpy(), labels


def _split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    split = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=0)
    return tuple(map(np.sort, split))
