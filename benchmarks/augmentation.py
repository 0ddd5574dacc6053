"""Views in batches against torchvision's per-image pipeline, and how far their pixels lie from the paper's.

    python benchmarks/augmentation.py [--images FOLDER] [--rounds 3] [--workers 2]

1. 32-pixel views, CIFAR-10's policy with hue, one thread each: images in memory to finished, normalised views.
2. Pictures of a class-folder tree to finished pairs of 224-pixel views, ImageNet's policy: our store and loader beside
   torchvision's ImageFolder in a DataLoader, both with --workers processes. --images: train/<class>/*; without it JPEGs
   of ImageNet's mean size are made.
3. Pixels: whole views made with the same drawn parameters, beside Pillow's pipeline, which the paper's authors used.
4. What `compute.static_views` costs on a processor: views as one sequence of operators beside those of subsets.
5. What it takes to draw the parameters of a batch's views, on one core.

1 and 2 run in turn with torchvision's and print the ratio of the median speeds, 4 that of the processor time.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import measuring
import numpy as np
import torch
from pictures import jpegs, large_store, make_tree, noise, smooth
from PIL import Image, ImageOps
from plain_byol import torchvision_policy
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow

from selfsup.augment import augment_batch, draw
from selfsup.augment.static_views import StaticViews, packed
from selfsup.data.loader import Batches, ViewMaker
from selfsup.recipe import load_recipe

SMALL_BATCH, LARGE_BATCH = 512, 32
LARGE_IMAGES = 512  # in a turn of measurement 2
DRAWS = 100  # in a turn of measurement 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder with train/<class>/*")
    parser.add_argument("--rounds", type=int, help="how often each is measured, in turn; default 3, quick 1")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of measurement 2")
    with measuring.report("augmentation", parser) as (report, options), tempfile.TemporaryDirectory() as folder:
        options.rounds = options.rounds or (1 if options.quick else 3)
        small_views(report, options.rounds)
        tree = options.images or Path(folder) / "tree"
        if not options.images:
            make_tree(tree, list(jpegs(None, 64)), {"train": 64})
        large_views(report, tree, Path(folder) / "store", options)
        pixels(report)
        static_views(report, options.rounds)
        drawing(report, options.rounds)


def small_views(report: measuring.Report, rounds: int) -> None:
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

    taken = measuring.in_turn({"ours": ours, "theirs": theirs}, rounds)
    tell(report, "32-pixel views, one thread", taken, 2 * SMALL_BATCH, "views/s")


def large_views(report: measuring.Report, tree: Path, folder: Path, options: argparse.Namespace) -> None:
    """Measure decoding, cropping and augmenting with loader processes."""
    torch.set_num_threads(options.workers)
    (tree / "test").exists() or (tree / "test").symlink_to(tree / "train")
    store = large_store(tree, folder)
    batch = min(LARGE_BATCH, len(store.train))
    recipe = load_recipe("imagenet", {"global_batch": batch})
    batches = Batches(store.train, recipe, seed=0, stage="pretrain")
    make_views = ViewMaker(store.train, recipe, torch.device("cpu"))
    policies = [torchvision_policy(recipe, view) for view in (0, 1)]
    dataset = ImageFolder(tree / "train", lambda image: tuple(policy(image) for policy in policies))
    steps = max(LARGE_IMAGES // batch // (4 if options.quick else 1), 1)

    def ours() -> None:
        for prepared in batches.read(0, steps, workers=options.workers, pin_memory=False):
            make_views(prepared)

    def theirs() -> None:
        order = [n % len(dataset) for n in range(steps * batch)]
        loader = torch.utils.data.DataLoader(dataset, batch, sampler=order, num_workers=options.workers)
        for _ in loader:
            pass

    name = f"pictures to pairs of 224 pixels, {options.workers} workers"
    tell(report, name, measuring.in_turn({"ours": ours, "theirs": theirs}, options.rounds), steps * batch, "images/s")


def tell(report: measuring.Report, name: str, taken: dict[str, measuring.Taken], count: int, unit: str) -> None:
    ours, theirs = (count / taken[way].wall for way in ("ours", "theirs"))
    times = measuring.ratio(taken["theirs"], taken["ours"])
    processor = measuring.processor_ratio(taken["theirs"], taken["ours"])
    figures = {name: {"ours": ours, "torchvision": theirs, "unit": unit, "ratio": times, "processor_ratio": processor}}
    text = f"{times:.2f} times, in processor time {processor:.2f}"
    report.say(f"{name}: ours {ours:,.0f} {unit}, torchvision's {theirs:,.0f}: {text}", **figures)


def pixels(report: measuring.Report) -> None:
    """Tell how far views lie from Pillow's with the same drawn parameters, in 255ths."""
    report.say("difference from Pillow's pipeline, of 255          mean    99 %     max")
    for name, size in (("cifar10", 32), ("imagenet", 256)):
        images = smooth(64, size, size)
        for quantize in ("none", "crop", "uint8"):
            recipe = load_recipe(name, {"augment": {"quantize": quantize, "mean": [0.0] * 3, "std": [1.0] * 3}})
            drawn = draw(recipe, seed=1, epoch=0, indices=np.arange(64), sizes=np.tile([size, size], (64, 1)))
            difference = torch.cat([255 * (a - b).abs() for a, b in by_pillow(recipe, images, drawn)]).flatten()
            high = difference.kthvalue(int(0.99 * len(difference))).values
            row = f"{name}, quantize: {quantize}"
            mean, most = float(difference.mean()), float(difference.max())
            figures = {row: {"mean": mean, "99 %": float(high), "max": most}}
            report.say(f"  {row:44} {mean:8.4f} {high:7.2f} {most:7.1f}", **figures)


def static_views(report: measuring.Report, rounds: int) -> None:
    """Measure views of one sequence of operators, on one thread."""
    torch.set_num_threads(1)
    for name in ("digits", "cifar10", "cifar10_authors"):
        recipe, indices = load_recipe(name), np.arange(SMALL_BATCH)
        size = recipe["augment"]["size"]
        images = noise(SMALL_BATCH, size, size)
        drawn = draw(recipe, seed=0, epoch=0, indices=indices, sizes=np.tile([size, size], (SMALL_BATCH, 1)))
        of_images = StaticViews(recipe, drawn.policies, images.device).of_images
        ways = {
            "subsets": partial(augment_batch, recipe, images, drawn),
            "static": partial(of_images, images, torch.from_numpy(packed(drawn, indices))),
        }
        taken = measuring.in_turn(ways, rounds)
        times = measuring.processor_ratio(taken["static"], taken["subsets"])
        report.say(
            f"static views, {name}: {times:.2f} times the processor time of subsets",
            **{f"static views, {name}": {"processor_ratio": times}},
        )


def drawing(report: measuring.Report, rounds: int) -> None:
    """Measure drawing alone: a loader does it before it touches a pixel."""
    for name, batch, size in (("digits", 16, (8, 8)), ("cifar10", 256, (32, 32)), ("imagenet", 128, (375, 500))):
        recipe, indices, sizes = load_recipe(name), np.arange(batch), np.tile(size, (batch, 1))

        def often(recipe=recipe, indices=indices, sizes=sizes) -> None:
            for epoch in range(DRAWS):
                draw(recipe, seed=0, epoch=epoch, indices=indices, sizes=sizes)

        ms = 1e3 * measuring.in_turn({name: often}, rounds)[name].wall / DRAWS
        report.say(f"parameters of {batch} pictures, {name}: {ms:.2f} ms", **{f"drawing, {name}": {"ms": ms}})


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


if __name__ == "__main__":
    main()
