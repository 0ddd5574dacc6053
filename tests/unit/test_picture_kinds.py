"""What a picture's file becomes: RGB of 8 bits, whatever its depth and colours; as in Pillow where that is right."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import encode_png

from selfsup.data.loader import CPU, Batches, ViewMaker
from selfsup.data.preparing import Packing, prepare
from selfsup.data.store import PackedStore, decode, decoded_size
from selfsup.errors import UserError
from selfsup.recipe import load_recipe
from tiny import TINY

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
KINDS = [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths]
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png(samples: np.ndarray, depth: int, kind: int, interlaced: bool = False, chunks=()) -> bytes:
    """A PNG of these samples, int [H, W, samples]: torchvision and Pillow write few of the kinds that there are."""
    height, width = samples.shape[:2]
    parts = [samples[y::down, x::across] for y, x, down, across in PASSES] if interlaced else [samples]
    rows = b"".join(b"\0" + row_bytes(row, depth) for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    written = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in written
    )


def row_bytes(row: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1) & 1
    return np.packbits(bits.astype(bool)).tobytes()


def decoded(content: bytes) -> np.ndarray:
    """Return a picture as the store reads it, int [H, W, 3]; what is checked when it is packed must agree."""
    encoded = np.frombuffer(bytearray(content), np.uint8)
    image = decode(encoded)
    assert image.dtype == torch.uint8 and decoded_size(encoded) == tuple(image.shape[1:])
    return image.permute(1, 2, 0).numpy().astype(int)


def by_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.array(picture.convert("RGB")).astype(int)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "depth"), KINDS)
def test_a_png_of_any_kind_and_depth_becomes_the_rgb_of_its_upper_eight_bits(kind, depth, interlaced, transparent):
    random = np.random.default_rng(depth)
    samples = random.integers(0, 2**depth, (11, 13, SAMPLES[kind]))
    grey = np.repeat(samples[:, :, :1], 3, axis=2)
    wanted = samples[:, :, :3] if SAMPLES[kind] >= 3 else grey
    wanted = wanted >> 8 if depth == 16 else wanted * 255 // (2**depth - 1)
    chunks = []
    if kind == PALETTE:
        palette = random.integers(0, 256, (2**depth, 3))
        wanted = palette[samples[:, :, 0]]
        chunks.append((b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparent and kind in (GREY, RGB):
        chunks.append((b"tRNS", samples[0, 0].astype(">u2").tobytes()))
    if transparent and kind == PALETTE:
        chunks.append((b"tRNS", bytes(range(2**depth))))
    content = png(samples, depth, kind, interlaced, chunks)
    assert np.array_equal(decoded(content), wanted)
    if (kind, depth) != (GREY, 16):  # there Pillow cuts off at 255
        assert np.array_equal(decoded(content), by_pillow(content))


@pytest.mark.parametrize("factor", [256, 257])
def test_a_picture_widened_to_16_bits_comes_back_exact(factor):
    every = np.arange(256).reshape(16, 16, 1)
    assert np.array_equal(decoded(png(every * factor, 16, GREY)), every.repeat(3, axis=2))


def store_of(folder, pictures, depths, resize):
    """Pack pictures of 8 bits, uint8 [H, W, 3], as RGB PNGs of the given depths in turn."""
    for split, name in itertools.product(("train", "test"), ("ant", "bee")):
        (folder / "tree" / split / name).mkdir(parents=True)
        for number, (picture, depth) in enumerate(zip(pictures, itertools.cycle(depths), strict=False)):
            samples = picture.astype(int) * (257 if depth == 16 else 1)
            (folder / "tree" / split / name / f"{number}.png").write_bytes(png(samples, depth, RGB))
    prepare("folder", folder / "tree", folder / "store", Packing(resize=resize))
    return PackedStore(folder / "store")


@pytest.mark.parametrize("quantize", ["none", "crop", "uint8"])
@pytest.mark.parametrize("resize", [None, 14])
@pytest.mark.parametrize("depths", [(16,), (8, 16)], ids=["alone", "mixed"])
def test_views_of_16_bit_pictures_are_those_of_the_same_pictures_of_8_bits(tmp_path, quantize, resize, depths):
    random = np.random.default_rng(3)
    pictures = [random.integers(0, 256, (*random.integers(10, 30, 2), 3), np.uint8) for _ in range(10)]
    recipe = load_recipe("digits", {**TINY, "augment": {"size": 8, "quantize": quantize}})
    views = []
    for name, kinds in (("plain", (8,)), ("deep", depths)):
        train = store_of(tmp_path / name, pictures, kinds, resize).train
        make = ViewMaker(train, recipe, CPU)
        read = Batches(train, recipe, seed=0, stage="pretrain").read(0, 2, workers=0, pin_memory=False)
        views.append([view for batch in read for view in make(batch)])
    assert len(views[0]) == len(views[1]) and all(map(torch.equal, *views))


def colours(height=72, width=96) -> Image.Image:
    noise = np.random.default_rng(2).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def moving(kind: str) -> bytes:
    return saved(colours(), kind, save_all=True, append_images=[colours().rotate(180)])


def ycck() -> bytes:
    """A CMYK JPEG that says its colours are YCCK: Pillow reads this kind and writes none."""
    content = bytearray(saved(colours().convert("CMYK"), "JPEG"))
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    content[transform] = 2
    return bytes(content)


def with_alpha() -> Image.Image:
    image = colours()
    image.putalpha(Image.fromarray(np.arange(72 * 96, dtype=np.uint8).reshape(72, 96)))
    return image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held upright
    return exif


PILLOWS = {
    "jpeg": lambda: saved(colours(), "JPEG"),
    "progressive jpeg": lambda: saved(colours(), "JPEG", progressive=True),
    "grey jpeg": lambda: saved(colours().convert("L"), "JPEG"),
    "cmyk jpeg": lambda: saved(colours().convert("CMYK"), "JPEG"),
    "ycck jpeg": ycck,
    "rgb jpeg": lambda: saved(colours(), "JPEG", keep_rgb=True),
    "jpeg with an orientation": lambda: saved(colours(), "JPEG", exif=turned()),
    "png with an orientation": lambda: saved(colours(), "PNG", exif=turned()),
    "webp": lambda: saved(colours(), "WEBP"),
    "webp with alpha": lambda: saved(with_alpha(), "WEBP", lossless=True, exact=True),
    "webp with an orientation": lambda: saved(colours(), "WEBP", exif=turned()),
    "gif": lambda: saved(colours(), "GIF"),
    "gif with alpha": lambda: saved(with_alpha(), "GIF"),
    "moving png": lambda: moving("PNG"),
}


@pytest.mark.parametrize("kind", PILLOWS)
def test_a_picture_is_read_as_pillow_reads_its_first_one_as_rgb(kind):
    """Neither applies an orientation or a colour profile; transparency is dropped."""
    found, wanted = decoded(PILLOWS[kind]()), by_pillow(PILLOWS[kind]())
    assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 1


def marked(offset: int, value: int) -> bytes:
    """A JPEG whose frame header says something else at this byte."""
    content = bytearray(saved(colours(), "JPEG"))
    content[content.index(b"\xff\xc0") + offset] = value
    return bytes(content)


REFUSED = {
    "a JPEG of 12 bits": (lambda: marked(4, 12), "precision 12"),
    "a lossless JPEG": (lambda: marked(1, 0xC3), "SOF type 0xc3"),
    "a moving GIF": (
        lambda: saved(colours(), "GIF", save_all=True, append_images=[colours().rotate(180)]),
        "2 pictures",
    ),
    "a moving WebP": (
        lambda: saved(colours(), "WEBP", save_all=True, append_images=[colours().rotate(180)]),
        "nimated",
    ),
    "a TIFF": (lambda: saved(colours(), "TIFF"), "no JPEG, PNG, WebP or GIF"),
    "a BMP": (lambda: saved(colours(), "BMP"), "no JPEG, PNG, WebP or GIF"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_told_by_what_it_is(kind):
    make, told = REFUSED[kind]
    with pytest.raises(ValueError, match=told):
        decode(np.frombuffer(bytearray(make()), np.uint8))


def class_tree(root):
    for split, name in itertools.product(("train", "test"), ("ant", "bee")):
        (root / split / name).mkdir(parents=True)
        (root / split / name / "0.png").write_bytes(saved(colours(20, 30), "PNG"))
    return root


def test_a_picture_is_known_by_its_content_whatever_its_name(tmp_path):
    tree = class_tree(tmp_path / "tree")
    contents = {"a.jfif": "JPEG", "b.jpe": "JPEG", "c": "PNG", "d.jpg.download": "WEBP", "e.JPG": "GIF"}
    for name, kind in contents.items():
        (tree / "train/ant" / name).write_bytes(saved(colours(20, 30), kind))
    prepare("folder", tree, tmp_path / "store")
    assert PackedStore(tmp_path / "store").train.labels.tolist() == [0] * 6 + [1]


def test_of_what_is_no_picture_the_first_bytes_alone_are_read(tmp_path):
    """A film of 20 GB among the pictures fills neither memory nor time; a sparse file stands for it."""
    tree = class_tree(tmp_path / "tree")
    with open(tree / "train/ant/film.mp4", "wb") as file:
        file.write(b"\0\0\0\x20ftypisom")
        file.truncate(20 << 30)
    with pytest.raises(UserError, match=r"film\.mp4: cannot be read as an image \(no JPEG, PNG, WebP or GIF\)"):
        prepare("folder", tree, tmp_path / "store")


def test_resize_keeps_what_is_longer_than_a_jpeg_may_be_as_a_png(tmp_path):
    tree = class_tree(tmp_path / "tree")
    strip = torch.arange(257, dtype=torch.uint8).reshape(1, -1, 1).expand(3, 257, 66_000).contiguous()
    (tree / "train/ant/strip.png").write_bytes(bytes(encode_png(strip).numpy()))
    prepare("folder", tree, tmp_path / "store", Packing(resize=256))
    train = PackedStore(tmp_path / "store").train
    height, width = train.sizes[1]
    assert (height, width) == (256, 66_000 * 256 // 257)
    assert train.encoded(1)[1:4].tobytes() == b"PNG" and tuple(train.image(1).shape) == (3, height, width)


def test_what_cannot_be_resized_is_told_among_the_damaged(tmp_path, monkeypatch):
    def out_of_memory(*arguments, **options):
        raise RuntimeError("[enforce fail] you tried to allocate 90 GB\nmore")

    tree = class_tree(tmp_path / "tree")
    monkeypatch.setattr("selfsup.data.packing.resize_image", out_of_memory)
    with pytest.raises(UserError, match=r"0\.png: cannot be resized \(\[enforce fail\] you tried to allocate 90 GB\)"):
        prepare("folder", tree, tmp_path / "store", Packing(resize=8))
