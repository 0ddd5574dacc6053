"""Draw a recipe's views of some training images as a picture grid: each image, then what the method sees of it.

    python workflow/scripts/show_views.py --recipe cifar10 --data data/cifar10 --output views.png

Reads a prepared dataset. A row is an image: itself, in their size, then its views in two epochs of the seed.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from selfsup.atomic_files import write_atomically
from selfsup.augment import Draws, Views, apply, crop, draw
from selfsup.data.store import PackedStore
from selfsup.errors import run_script
from selfsup.logs import logger
from selfsup.recipe import parse_recipe

IMAGES, EPOCHS = 8, 2
GAP, SIDE = 4, 96  # pixels between pictures; small views are enlarged to this side by whole factors


def main() -> None:
    arguments = parse_arguments()
    recipe = parse_recipe(arguments.recipe)
    split = PackedStore(arguments.data).train
    indices = np.linspace(0, len(split) - 1, min(IMAGES, len(split))).astype(np.int64)
    images = [split.image(index) for index in indices]
    columns = [originals(images, recipe["augment"]["size"])]
    for epoch in range(EPOCHS):
        columns += shown(views(recipe, images, indices, split.sizes[indices], arguments.seed, epoch), recipe)
    grid = Image.fromarray(tiled(torch.stack(columns, dim=1)))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    grid.save(content, format="PNG")
    write_atomically(arguments.output, content.getvalue())
    logger.info(f"{arguments.output}: {len(images)} images, {len(columns) - 1} views each")


def views(recipe: dict, images: list, indices: np.ndarray, sizes: np.ndarray, seed: int, epoch: int) -> Views:
    """Return the views that a run of this seed trains on in an epoch."""
    draws: Draws = draw(recipe, seed=seed, epoch=epoch, indices=indices, sizes=sizes)
    crops = [crop(image, draws, number, augment=recipe["augment"]) for number, image in enumerate(images)]
    return apply(recipe, crops, draws)


def originals(images: list[torch.Tensor], size: int) -> torch.Tensor:
    """Return whole images in squares, uint8 [N, 3, size, size]."""
    resized = (tv.center_crop(tv.resize(image, [size], antialias=True), [size]) for image in images)
    return torch.stack(list(resized))


def shown(views: Views, recipe: dict) -> list[torch.Tensor]:
    """Undo the normalisation: uint8 [N, 3, size, size] for each view."""
    mean, std = (torch.tensor(recipe["augment"][key]).view(3, 1, 1) for key in ("mean", "std"))
    return [((view * std + mean) * 255).round().clamp(0, 255).to(torch.uint8) for view in views]


def tiled(pictures: torch.Tensor) -> np.ndarray:
    """Return uint8 [rows, columns, 3, size, size] as one picture, uint8 [height, width, 3], on white."""
    factor = max(SIDE // pictures.shape[-1], 1)
    large = pictures.repeat_interleave(factor, dim=3).repeat_interleave(factor, dim=4)
    padded = torch.nn.functional.pad(large, [GAP] * 4, value=255)
    return torch.cat([torch.cat(list(row), dim=2) for row in padded], dim=1).permute(1, 2, 0).numpy()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", required=True, help="a name in workflow/recipes, or a whole one: a .json file, JSON"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared dataset")
    parser.add_argument("--output", type=Path, required=True, help="the picture, PNG")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
