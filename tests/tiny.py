"""Overrides of the digits recipe: a network, pictures and a length that fit into a second."""

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
