"""Small data sets in the layouts of their publishers: three classes or so, pictures of random pixels."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat
from torchvision.io import encode_jpeg

from selfsup.data.sources.voc2007 import CLASSES as VOC_CLASSES

RANDOM = np.random.default_rng(7)


def write_lines(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.from_numpy(RANDOM.integers(0, 256, (3, 9, 11), np.uint8))
    path.write_bytes(bytes(encode_jpeg(pixels).numpy()))


def food101(root: Path) -> None:
    base, lists = root / "food-101", {"train": {}, "test": {}}
    for name in ("waffles", "apple_pie", "sushi"):
        for split, numbers in {"train": (31, 4, 15), "test": (9, 2)}.items():
            lists[split][name] = [f"{name}/{number}" for number in numbers]
            for number in numbers:
                picture(base / "images" / name / f"{number}.jpg")
    for split, of in lists.items():
        write_lines(base / "meta" / f"{split}.json", [json.dumps(of)])


def dtd(root: Path) -> None:
    base = root / "dtd" / "dtd"
    for split, numbers in {"train": (5, 1), "val": (2,), "test": (4, 3)}.items():
        names = [f"{name}/{name}_{number:04d}.jpg" for name in ("zigzagged", "banded") for number in numbers]
        write_lines(base / "labels" / f"{split}1.txt", names)
        write_lines(base / "labels" / f"{split}2.txt", names[:1])
        for name in names:
            picture(base / "images" / name)


def sun397(root: Path) -> None:
    paths = ["/a/abbey", "/c/church/indoor", "/z/zoo"]
    write_lines(root / "SUN397" / "ClassName.txt", paths)
    for number, name in enumerate(("Training_01.txt", "Testing_01.txt", "Training_02.txt")):
        lines = [f"{path}/sun_{number}{letter}.jpg" for path in paths for letter in "ba"]
        write_lines(root / name, lines)
        for line in lines:
            picture(root / f"SUN397{line}")


def stanford_cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = ["AM General Hummer SUV 2000", "Audi 100 Sedan 1994", "Ram C/V Cargo Van Minivan 2012"]
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(names, object)})
    for split, place in {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}.items():
        rows = [(f"{number + 1:05d}.jpg", label) for number, label in enumerate((3, 1, 2, 1))]
        savemat(base / place, {"annotations": np.array(rows, [("fname", object), ("class", object)])})
        for name, _ in rows:
            picture(base / f"cars_{split}" / name)


def fgvc_aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    variants, number = ["707-320", "Cessna 172", "Spitfire"], 34309
    write_lines(base / "variants.txt", variants)
    whole = []
    for split in ("train", "val", "test"):
        lines = []
        for variant in variants[::-1]:
            lines.append(f"{number:07d} {variant}")
            picture(base / "images" / f"{number:07d}.jpg")
            number += 1
        whole += lines if split != "test" else []
        write_lines(base / f"images_variant_{split}.txt", lines)
    write_lines(base / "images_variant_trainval.txt", whole)


def oxford_pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    breeds = ("Abyssinian", "american_bulldog", "Bengal")
    for split, numbers in {"trainval": (10, 3), "test": (7,)}.items():
        lines = [f"{name}_{number} {one + 1} 1 1" for one, name in enumerate(breeds) for number in numbers]
        write_lines(base / "annotations" / f"{split}.txt", lines)
        for line in lines:
            picture(base / "images" / f"{line.split()[0]}.jpg")


def caltech101(root: Path) -> None:
    for name, count in {"accordion": 33, "BACKGROUND_Google": 32, "yin_yang": 31}.items():
        for number in range(1, count + 1):
            picture(root / "caltech101" / "101_ObjectCategories" / name / f"image_{number:04d}.jpg")


def flowers102(root: Path) -> None:
    base = root / "flowers-102"
    for number in range(1, 13):
        picture(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([2, 1, 3, 1, 2, 3, 1, 2, 3, 3, 2, 1])})
    savemat(base / "setid.mat", {"trnid": [5, 2, 3], "valid": [1, 4, 6], "tstid": [12, 7, 8, 9, 10, 11]})


def birdsnap(root: Path) -> None:
    base = root / "birdsnap"
    for name in ("Acadian_Flycatcher", "Yellow_Warbler"):
        for number in range(4):
            picture(base / "images" / name / f"{number}.jpg")
    gone = "Yellow_Warbler/gone.jpg"
    write_lines(base / "test_images.txt", ["path", "Yellow_Warbler/2.jpg", gone, "Acadian_Flycatcher/0.jpg"])


def voc2007(root: Path) -> None:
    base, number = root / "VOCdevkit" / "VOC2007", 1
    for split in ("train", "val", "test"):
        numbers = [f"{one:06d}" for one in range(number, number + 3)]
        number += 3
        for one in numbers:
            picture(base / "JPEGImages" / f"{one}.jpg")
        for place, name in enumerate(VOC_CLASSES):
            values = [1 if (int(one) + place) % 5 == 0 else 0 if (int(one) * place) % 7 == 6 else -1 for one in numbers]
            lines = [f"{one} {value:2d}" for one, value in zip(numbers, values, strict=True)]
            write_lines(base / "ImageSets" / "Main" / f"{name}_{split}.txt", lines)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    one.__name__: one
    for one in (
        *(food101, dtd, sun397, stanford_cars, fgvc_aircraft, oxford_pets),
        *(caltech101, flowers102, birdsnap, voc2007),
    )
}
