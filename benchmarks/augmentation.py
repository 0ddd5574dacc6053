"""Views in batches against torchvision's per-image pipeline, and how far their pixels lie from the paper's.

    python benchmarks/augmentation.py [--images FOLDER] [--pairs 2] [--workers 2]

1. 32-pixel views, CIFAR-10's policy with hue, one thread each: images in memory to finished, normalised views.
2. Pictures of a class-folder tree to finished pairs of 224-pixel views, ImageNet's policy: our store and loader beside
   torchvision's ImageFolder in a DataLoader, both with --workers processes. --images: train/<class>/*; without it JPEGs
   of ImageNet's mean size are made.
3. Pixels: whole views made with the same drawn parameters, beside Pillow's pipeline, which the paper's authors used.

1 and 2 run in turn with torchvision's and print the ratio of the median speeds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import encode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow
from torchvision.transforms.v2.functional import resize

from selfsup.augment import augment_batch, draw
from selfsup.data.loader import Batches, ViewMaker
from selfsup.data.sources import prepare
from selfsup.data.store import PackedStore
from selfsup.recipe import load_recipe

SMALL_BATCH, LARGE_BATCH = 512, 32
HEIGHT, WIDTH, QUALITY = 375, 500, 90  # ImageNet's mean size; enlarged noise of quality 90 has its mean of 110 KB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder with train/<class>/*")
    parser.add_argument("--pairs", type=int, default=3, help="how often each is measured, in turn")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of measurement 2")
    options = parser.parse_args()
    small_views(options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        large_views(options.images or made_tree(Path(folder) / "tree"), Path(folder) / "store", options)
    pixels()


def small_views(pairs: int) -> None:
    """Measure 32-pixel views on one thread."""
    torch.set_num_threads(1)
    recipe, images = load_recipe("cifar10"), noise(SMALL_BATCH, 32, 32)
    indices, sizes = np.arange(SMALL_BATCH), np.tile([32, 32], (SMALL_BATCH, 1))
    opened = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    policies = [torchvision_policy(recipe, view) for view in (0, 1)]

    def ours() -> None:
        augment_batch(recipe, images, draw(recipe, seed=0, epoch=0, indices=indices, sizes=sizes))

    def theirs() -> None:
        for image in opened:
            for policy in policies:
                policy(image)

    report("32-pixel views, one thread", *in_turn(ours, theirs, pairs), 2 * SMALL_BATCH, "views/s")


def large_views(tree: Path, folder: Path, options: argparse.Namespace) -> None:
    """Measure decoding, cropping and augmenting with loader processes."""
    torch.set_num_threads(options.workers)
    (tree / "test").exists() or (tree / "test").symlink_to(tree / "train")
    prepare("folder", tree, folder)
    store = PackedStore(folder)
    batch = min(LARGE_BATCH, len(store.train))
    recipe = load_recipe("imagenet", {"global_batch": batch})
    batches = Batches(store.train, recipe, seed=0, stage="pretrain")
    make_views = ViewMaker(store.train, recipe, torch.device("cpu"))
    policies = [torchvision_policy(recipe, view) for view in (0, 1)]
    dataset = ImageFolder(tree / "train", lambda image: tuple(policy(image) for policy in policies))
    steps = max(512 // batch, 1)

    def ours() -> None:
        for prepared in batches.read(0, steps, workers=options.workers, pin_memory=False):
            make_views(prepared)

    def theirs() -> None:
        order = [n % len(dataset) for n in range(steps * batch)]
        loader = torch.utils.data.DataLoader(dataset, batch, sampler=order, num_workers=options.workers)
        for _ in loader:
            pass

    name = f"pictures to pairs of 224 pixels, {options.workers} workers"
    report(name, *in_turn(ours, theirs, options.pairs), steps * batch, "images/s")


def pixels() -> None:
    """Print how far views lie from Pillow's with the same drawn parameters, in 255ths."""
    print("difference from Pillow's pipeline, of 255          mean    99 %     max")
    for name, size in (("cifar10", 32), ("imagenet", 256)):
        images = smooth(64, size, size)
        for quantize in ("none", "crop", "uint8"):
            recipe = load_recipe(name, {"augment": {"quantize": quantize, "mean": [0.0] * 3, "std": [1.0] * 3}})
            drawn = draw(recipe, seed=1, epoch=0, indices=np.arange(64), sizes=np.tile([size, size], (64, 1)))
            difference = torch.cat([255 * (a - b).abs() for a, b in by_pillow(recipe, images, drawn)]).flatten()
            high = difference.kthvalue(int(0.99 * len(difference))).values
            row = f"{name}, quantize: {quantize}"
            print(f"  {row:44} {difference.mean():8.4f} {high:7.2f} {difference.max():7.1f}")


def by_pillow(recipe: dict, images: torch.Tensor, drawn):
    """Yield our and Pillow's pictures for each view, in [0, 1]."""
    ours = augment_batch(recipe, images, drawn)
    size = [recipe["augment"]["size"]] * 2
    adjust = (pillow.adjust_brightness, pillow.adjust_contrast, pillow.adjust_saturation, pillow.adjust_hue)
    for view, policy, made in zip(drawn.views, drawn.policies, ours, strict=True):
        for n, image in enumerate(images):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture = pillow.resized_crop(picture, *map(int, view.boxes[n]), size, InterpolationMode.BICUBIC)
            picture = pillow.hflip(picture) if view.flip[n] else picture
            for operation in view.order[n] if view.jitter[n] else ():
                picture = adjust[operation](picture, float(view.factors[n, operation]))
            picture = pillow.rgb_to_grayscale(picture, 3) if view.grayscale[n] else picture
            if view.sigma[n] > 0:
                picture = pillow.gaussian_blur(picture, [policy["blur"]["kernel"]] * 2, [float(view.sigma[n])] * 2)
            picture = ImageOps.solarize(picture, 128) if view.solarize[n] else picture
            yield made[n], pillow.to_tensor(picture)


def torchvision_policy(recipe: dict, view: int) -> Callable:
    """Return the recipe's view as torchvision's transforms of Pillow pictures."""
    augment, policy = recipe["augment"], recipe["augment"]["views"][view]
    crop, jitter, blur, solarize = (policy[key] for key in ("crop", "jitter", "blur", "solarize"))
    size, mode = augment["size"], InterpolationMode.BICUBIC
    colours = transforms.ColorJitter(*(jitter[key] for key in ("brightness", "contrast", "saturation", "hue")))
    steps = [
        transforms.RandomResizedCrop(size, tuple(crop["scale"]), tuple(crop["ratio"]), interpolation=mode),
        transforms.RandomHorizontalFlip(policy["flip"]),
        transforms.RandomApply([colours], jitter["p"]),
        transforms.RandomGrayscale(policy["grayscale"]),
        transforms.RandomApply([transforms.GaussianBlur(blur["kernel"], tuple(blur["sigma"]))], blur["p"]),
        transforms.RandomSolarize(128, solarize["p"] if solarize else 0.0),
        transforms.ToTensor(),
        transforms.Normalize(augment["mean"], augment["std"]),
    ]
    return transforms.Compose(steps)


def in_turn(ours: Callable, theirs: Callable, pairs: int) -> tuple[float, float]:
    """Return the median seconds of each, measured in turn after one run of each to warm up."""
    ours(), theirs()
    seconds: dict[Callable, list[float]] = {ours: [], theirs: []}
    for _ in range(pairs):
        for run, taken in seconds.items():
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return statistics.median(seconds[ours]), statistics.median(seconds[theirs])


def report(name: str, ours: float, theirs: float, count: int, unit: str) -> None:
    print(f"{name}: ours {count / ours:,.0f} {unit}, torchvision's {count / theirs:,.0f}: {theirs / ours:.2f} times")


def noise(count: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, height, width), np.uint8))


def smooth(count: int, height: int, width: int) -> torch.Tensor:
    return resize(noise(count, height // 4, width // 4), [height, width], interpolation=InterpolationMode.BICUBIC)


def made_tree(folder: Path) -> Path:
    """Write 64 JPEGs of ImageNet's mean size and weight."""
    (folder / "train" / "class").mkdir(parents=True)
    for number, image in enumerate(smooth(64, HEIGHT + 1, WIDTH)):
        (folder / "train" / "class" / f"{number}.jpg").write_bytes(bytes(encode_jpeg(image, QUALITY).numpy()))
    return folder


if __name__ == "__main__":
    main()
