"""Draw a recipe's views of some training images as a picture grid: each image, then what the method sees of it.

    python workflow/scripts/show_views.py --recipe cifar10 --data data/cifar10 --output views.png

Reads a prepared dataset. A row is an image: the image itself, in the views' size; the unaugmented picture, if the
recipe asks for it; then its views in two epochs of the seed. Views of different sizes are enlarged to one size.
"""

import argparse
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import interpolate, pad
from torchvision.transforms.v2 import functional as tv

from selfsup.atomic_files import write_atomically
from selfsup.augment import Draws, Views, apply, crop_singly, draw
from selfsup.data.statistics import resolved
from selfsup.data.store import PackedStore
from selfsup.errors import run_script
from selfsup.logs import logger
from selfsup.recipe import parse_recipe

IMAGES, EPOCHS = 8, 2
GAP, SIDE = 4, 96  # pixels between pictures; small views are enlarged to this side, the largest by a whole factor
HEAD = 36  # pixels for the columns' heads


def main() -> None:
    arguments = parse_arguments()
    store = PackedStore(arguments.data)
    recipe, split = resolved(parse_recipe(arguments.recipe), store), store.train
    indices = np.linspace(0, len(split) - 1, min(IMAGES, len(split))).astype(np.int64)
    images = [split.image(index) for index in indices]
    columns, heads = [originals(images, recipe["augment"]["size"])], ["image"]
    made = [views(recipe, images, indices, split.sizes[indices], arguments.seed, epoch) for epoch in range(EPOCHS)]
    if made[0].plain is not None:
        columns, heads = columns + shown([made[0].plain], recipe), [*heads, "not\naugmented"]
    seen = [column for one in made for column in shown(one, recipe)]
    heads += [f"view {number}\nepoch {epoch}" for epoch, one in enumerate(made, 1) for number in range(1, len(one) + 1)]
    grid = with_heads(Image.fromarray(tiled(of_one_side(columns + seen))), heads)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    grid.save(content, format="PNG")
    write_atomically(arguments.output, content.getvalue())
    logger.info(f"{arguments.output}: {len(images)} images, {len(seen)} views each")


def views(recipe: dict, images: list, indices: np.ndarray, sizes: np.ndarray, seed: int, epoch: int) -> Views:
    """Return the views that a run of this seed trains on in an epoch."""
    draws: Draws = draw(recipe, seed=seed, epoch=epoch, indices=indices, sizes=sizes)
    crops, plain = crop_singly(images, draws, augment=recipe["augment"])
    return apply(recipe, crops, draws, plain)


def originals(images: list[torch.Tensor], size: int) -> torch.Tensor:
    """Return whole images in squares, uint8 [N, 3, size, size]."""
    resized = (tv.center_crop(tv.resize(image, [size], antialias=True), [size]) for image in images)
    return torch.stack(list(resized))


def shown(views: Iterable[torch.Tensor], recipe: dict) -> list[torch.Tensor]:
    """Undo the normalisation: uint8 [N, 3, size, size] for each view."""
    mean, std = (torch.tensor(recipe["augment"][key]).view(3, 1, 1) for key in ("mean", "std"))
    return [((view * std + mean) * 255).round().clamp(0, 255).to(torch.uint8) for view in views]


def of_one_side(columns: list[torch.Tensor]) -> torch.Tensor:
    """Enlarge columns of pictures, uint8 [rows, 3, size, size] each, to one side: uint8 [rows, columns, 3, side, side].

    Each pixel becomes a block.
    """
    largest = max(column.shape[-1] for column in columns)
    side = largest * max(SIDE // largest, 1)
    return torch.stack([interpolate(column, side, mode="nearest-exact") for column in columns], dim=1)


def tiled(pictures: torch.Tensor) -> np.ndarray:
    """Return uint8 [rows, columns, 3, side, side] as one picture, uint8 [height, width, 3], on white."""
    padded = pad(pictures, [GAP] * 4, value=255)
    return torch.cat([torch.cat(list(row), dim=2) for row in padded], dim=1).permute(1, 2, 0).numpy()


def with_heads(grid: Image.Image, heads: list[str]) -> Image.Image:
    """Return the picture grid with a head, of two lines at most, above each of its columns, which are equally wide."""
    whole = Image.new("RGB", (grid.width, grid.height + HEAD), "white")
    whole.paste(grid, (0, HEAD))
    pen, width = ImageDraw.Draw(whole), grid.width / len(heads)
    for place, head in enumerate(heads):
        middle = ((place + 0.5) * width, HEAD - 2)
        pen.multiline_text(middle, head, "black", ImageFont.load_default(13), anchor="md", align="center")
    return whole


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", required=True, help="a name in workflow/recipes, or a whole recipe: a .json file, or JSON"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared dataset")
    parser.add_argument("--output", type=Path, required=True, help="the picture, PNG")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
