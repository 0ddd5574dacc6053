"""Overrides of the digits recipe: networks, pictures and a length that fit into a second."""

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


def with_timm(name: str, size: int = 16, **model) -> dict:
    """The same with a model of timm, and pictures of so many pixels. model: more of the recipe's block."""
    sizes = {"augment": {"size": size}, "linear": {**TINY["linear"], "test": {"resize": size + 2, "crop": size}}}
    return {**TINY, **sizes, "model": {"backbone": f"timm/{name}", **model}}


SMALL_VIT = {"patch_size": 4, "depth": 2, "embed_dim": 48, "num_heads": 3}
VIT = with_timm("vit_tiny_patch16_224", arguments=SMALL_VIT)
DROPPING_VIT = with_timm("vit_tiny_patch16_224", arguments=SMALL_VIT, drop_path=0.5)
