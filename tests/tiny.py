"""Overrides of the digits recipe: networks, pictures and a length that fit into a second."""

from pathlib import Path

import numpy as np
from torchvision.models.resnet import BasicBlock

from selfsup.data.store import StoreWriter

TINY = {
    "epochs": 4,
    "global_batch": 8,
    "model": {"width": 4},
    "byol": {
        "projector": {"hidden": 16, "out": 8},
        "predictor": {"hidden": 16, "out": 8},
    },
    "optimizer": {"warmup_epochs": 1},
    "augment": {"size": 8},
    "linear": {"epochs": 2, "batch": 8, "test": {"resize": 9, "crop": 8}},
}

# The least blocks that a ResNet can have, for `models.backbone.LAYERS`.
SHALLOW = (BasicBlock, (1, 1, 1, 1))


def with_timm(name: str, size: int = 16, **model) -> dict:
    """The same with a model of timm, and pictures of so many pixels. model: more of the recipe's block."""
    sizes = {"augment": {"size": size}, "linear": {**TINY["linear"], "test": {"resize": size + 2, "crop": size}}}
    return {**TINY, **sizes, "model": {"backbone": f"timm/{name}", **model}}


SMALL_VIT = {"patch_size": 4, "depth": 2, "embed_dim": 48, "num_heads": 3}
VIT = with_timm("vit_tiny_patch16_224", arguments=SMALL_VIT)
DROPPING_VIT = with_timm("vit_tiny_patch16_224", arguments=SMALL_VIT, drop_path=0.5)


def head(*layers: int, last: str = "none", bias_before_bn: bool = False, bias_last: bool = False) -> dict:
    """A projector or predictor of any number of layers."""
    biases = {"bias_before_bn": bias_before_bn, "bias_last": bias_last}
    return {"layers": list(layers), **biases, "last_batch_norm": last}


# The blocks of the methods of one projector, each as its recipe has it, but narrow.
BLOCKS = {
    "simsiam": {
        "projector": head(16, 16, 8, last="without_affine"),
        "predictor": head(4, 8, bias_last=True),
        "predictor_lr": "constant",
    },
    "barlow_twins": {
        "projector": head(16, 16, 8),
        "redundancy": 0.0051,
        "loss_scale": 1.0,
        "bias_and_norm_lr_scale": 0.024,
    },
    # A twenty-fifth of its recipe's loss, whose gradients of biases, which LARS does not adapt, are too large for the
    # digits' rate and eight pictures of noise: on some kinds of processors that training is not finite.
    "vicreg": {
        "projector": head(16, 16, 8, bias_before_bn=True),
        "invariance": 1.0,
        "variance": 1.0,
        "covariance": 0.04,
    },
    "moco_v3": {
        "projector": head(16, 8, last="without_affine"),
        "predictor": head(16, 8),
        "temperature": 0.2,
        "momentum_base": 0.9,
    },
}


def with_method(name: str, tiny: dict = TINY, **block) -> dict:
    """The same with another method, its batch statistics of each view. block: what is different in its settings."""
    others = {key: value for key, value in tiny.items() if key != "byol"}
    norm = {**tiny["model"].get("batch_norm", {}), "statistics": "per_view"}
    model = {"model": {**tiny["model"], "batch_norm": norm}}
    return {**others, **model, "method": name, name: {**BLOCKS[name], **block}}


def write_tiny_store(folder: Path) -> None:
    """Pack 43 training and 19 test images of noise, 12 pixels high and 10 wide, of three classes."""
    random = np.random.default_rng(7)
    writer = StoreWriter(folder, ["ant", "bee", "cat"])
    for split, count in {"train": 43, "test": 19}.items():
        writer.write_raw(split, random.integers(0, 256, (count, 3, 12, 10), np.uint8), random.integers(0, 3, count))
    writer.finish()
