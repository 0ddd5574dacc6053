"""Send pictures of your own through an encoder: features, sheets of nearest neighbours, and a map of them all.

    python workflow/scripts/embed.py --encoder results/digits/seed0/encoder.safetensors --pictures my_pictures \\
        --output results/embedded
    python workflow/scripts/embed.py --encoder ... --data data/digits --output results/embedded    # a prepared dataset

Reads the encoder and its card, and all pictures below --pictures, or those of a prepared dataset (its test pictures, or
the training ones if it has no others). Writes into --output:
    record.json       which encoder and pictures the files were made from
    features.npz      names (text [N]) and features (float32 [N, D]): numpy.load reads it
    neighbours.png    some pictures that differ from each other, each with those nearest to it by cosine
    map.png           all pictures in a plane, similar ones near each other (t-SNE)
    map.html          the same, to zoom into, with the pictures' names; it is one file and needs no network
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from selfsup.arguments import existing_path
from selfsup.atomic_files import write_atomically
from selfsup.augment import centre_view
from selfsup.cards import card_if_any
from selfsup.data.packing import progress_bar
from selfsup.data.store import PackedStore, decode
from selfsup.errors import UserError, run_script
from selfsup.evaluation.encoder import load_encoder
from selfsup.layout import EmbeddedPaths
from selfsup.logs import logger
from selfsup.recipe import Recipe
from selfsup.reports import neighbours
from selfsup.settings.extensions import load_extensions

BATCH = 128
SIDE = 64  # pixels of a thumbnail
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}

Named = Iterator[tuple[str, torch.Tensor]]


def main() -> None:
    arguments = parse_arguments()
    load_extensions(arguments.extension)
    encoder, card = encoder_with_card(arguments.encoder)
    recipe = Recipe.of(card["recipe"])
    pictures = from_store(arguments.data) if arguments.data else from_folder(arguments.pictures)
    names, features, thumbnails = embedded(encoder, recipe, pictures, arguments.limit)
    if len(names) < 2:
        raise UserError(
            f"{arguments.pictures or arguments.data} has {len(names)} pictures that can be read, wanted two"
        )
    record = {"encoder": card["encoder_sha256"], "data": data_named(arguments)}
    write(EmbeddedPaths(arguments.output), names, features, thumbnails, record)
    logger.info("%d pictures, %d features each: %s", *features.shape, arguments.output)


def encoder_with_card(path: Path) -> tuple[torch.nn.Module, dict]:
    """Return an encoder in eval mode and its card. Raises UserError where there is none."""
    recipe = card_if_any(path.with_suffix(".json")).get("recipe")
    if recipe is None:
        raise UserError(
            f"{path.with_suffix('.json')} is no card of an encoder: wanted the one that was exported with it, beside it"
        )
    return load_encoder(path, Recipe.of(recipe))


def data_named(arguments: argparse.Namespace) -> str:
    """Return what names the pictures: a prepared dataset's fingerprint, or the folder."""
    return PackedStore(arguments.data).fingerprint if arguments.data else str(arguments.pictures)


def from_folder(folder: Path) -> Named:
    """Yield the pictures below a folder, uint8 [3, H, W], by their paths in it, in order; tell of unreadable ones."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    with progress_bar(len(paths), "pictures", "embed") as bar:
        for path in paths:
            bar.update()
            try:
                yield str(path.relative_to(folder)), decode(np.fromfile(path, np.uint8))
            except (ValueError, OSError) as error:
                logger.warning("%s is left out: %s", path, error)


def from_store(folder: Path) -> Named:
    """Yield the test pictures of a prepared dataset, or the training ones where it has no others."""
    store = PackedStore(folder)
    name, split = ("test", store.test) if store.labelled and len(store.test) else ("train", store.train)
    with progress_bar(len(split), "pictures", "embed") as bar:
        for place in range(len(split)):
            bar.update()
            label = f", {store.classes[split.labels[place]]}" if store.labelled else ""
            yield f"{name} {place}{label}", split.image(place)


def embedded(
    encoder: torch.nn.Module, recipe: Recipe, pictures: Named, limit: int | None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return names, features float32 [N, D] and thumbnails uint8 [N, SIDE, SIDE, 3] of at most `limit` pictures."""
    names, features, thumbnails, waiting = [], [], [], []

    @torch.no_grad()
    def compute() -> None:
        features.append(encoder(centre_view(recipe, waiting)).numpy())
        waiting.clear()

    for name, picture in pictures:
        if limit is not None and len(names) == limit:
            break
        names.append(name)
        thumbnails.append(thumbnail(picture))
        waiting.append(picture)
        if len(waiting) == BATCH:
            compute()
    if waiting:
        compute()
    if not names:
        return names, np.empty((0, 0), np.float32), np.empty((0, SIDE, SIDE, 3), np.uint8)
    return names, np.concatenate(features), np.stack(thumbnails)


def thumbnail(picture: torch.Tensor) -> np.ndarray:
    """Return the middle of a picture, uint8 [SIDE, SIDE, 3]."""
    return tv.center_crop(tv.resize(picture, [SIDE], antialias=True), [SIDE]).permute(1, 2, 0).numpy()


def write(paths: EmbeddedPaths, names: list[str], features: np.ndarray, thumbnails: np.ndarray, record: dict) -> None:
    paths.folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, names=np.array(names), features=features)
    write_atomically(paths.features, content.getvalue())
    sheet = neighbours.neighbour_sheet(features, thumbnails, "nearest by the cosine of their features")
    write_atomically(paths.neighbours, _png(lambda file: sheet.savefig(file, dpi=110, format="png")))
    shown = np.linspace(0, len(names) - 1, min(len(names), neighbours.ON_THE_MAP)).astype(int)
    places = neighbours.positions(features[shown])
    picture = neighbours.map_picture(places, thumbnails[shown])
    write_atomically(paths.map_picture, _png(lambda file: picture.save(file, format="PNG")))
    title = f"{len(shown)} of {len(names)} pictures by their features"
    page = neighbours.map_page(places, thumbnails[shown], [names[place] for place in shown], title)
    write_atomically(paths.record, json.dumps(record) + "\n")
    write_atomically(paths.map_page, page)


def _png(save) -> bytes:
    content = io.BytesIO()
    save(content)
    return content.getvalue()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, type=existing_path, help="encoder.safetensors, its card beside it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pictures", type=existing_path, help="a folder of pictures, also in folders below it")
    source.add_argument("--data", type=existing_path, help="folder of a prepared dataset")
    parser.add_argument("--limit", type=int, help="at most this many pictures; default all")
    parser.add_argument("--extension", action="append", default=[], help="Python file that the recipe needs")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
