"""The checkpoints of the paper's authors: ADevillers/BYOL, checkpoints/weights_byol_{cifar10,imagenet}.pt.

A torch file of a dictionary (their main.py): `model` is the online network's state dict, its parts `resnet`
(torchvision's names), `proj_head_inv` and `predictor_inv`; beside it `momentum_model`, the optimiser, the schedulers,
`last_epoch` (counted from 0) and `log_dir`. Their eval.py evaluates `model`, so that is what is read.

Those of their SimCLR are alike, without predictor and `momentum_model`: ADevillers/SimCLR,
checkpoints/weights_simclr_{cifar10,imagenet}.pt, by their size with heads of two layers.
"""

from pathlib import Path

import torch

from selfsup.errors import UserError
from selfsup.importing.published import Published, read_tensors

BACKBONE, HEADS = "resnet.", ("proj_head_inv.", "predictor_inv.")


def read_authors(path: Path) -> Published:
    """Return a checkpoint's (online) backbone; runs no code of the file's. Raises UserError for another format."""
    checkpoint = read_tensors(path, "checkpoint of the authors")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise UserError(f"{path}: no checkpoint of the authors: it lacks `model`, the online network's weights")
    weights, heads = {}, {}
    for name, value in checkpoint["model"].items():
        if name.startswith(BACKBONE):
            weights[name.removeprefix(BACKBONE)] = value
        elif name.startswith(HEADS):
            heads[name] = value
        else:
            raise UserError(
                f"{path}: {name} belongs to none of the authors' parts (resnet, proj_head_inv, predictor_inv)"
            )
    last = checkpoint.get("last_epoch")
    return Published(weights, {"epochs": last + 1} if isinstance(last, int) else {}, *_method_and_head(heads))


def _method_and_head(heads: dict[str, torch.Tensor]) -> tuple[str | None, list[int] | None]:
    """Return the method, BYOL's having a predictor, and the widths of the projector's layers; None without heads."""
    projector, predictor = HEADS
    layers = [len(value) for name, value in heads.items() if name.startswith(projector) and value.dim() == 2]
    method = "byol" if any(name.startswith(predictor) for name in heads) else "simclr"
    return (method, layers) if layers else (None, None)
