"""Linear evaluation: a linear classifier on the frozen encoder (paper, section 6.5).

The encoder stays in eval mode. The headline is the last epoch's; the best epoch is recorded and decides nothing.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from selfsup.augment import centre_view
from selfsup.data.loader import Batch, Batches
from selfsup.data.store import PackedStore, Split
from selfsup.errors import UserError
from selfsup.evaluation.metrics import top_k_hits
from selfsup.models import Backbone, seeded_weights
from selfsup.optim import learning_rate
from selfsup.training.device import autocast
from selfsup.training.distributed import Ranks

TEST_BATCH = 256


@dataclass(frozen=True)
class Compute:
    """How this process computes: device, precision of the training pictures' forward pass, loader workers, ranks."""

    device: torch.device
    precision: str
    workers: int
    ranks: Ranks


def protocol(recipe: Mapping) -> str:
    """Return the protocol in words, for the table; what the pretraining did beside the common is in it too."""
    linear, parts = recipe["linear"], recipe["micro_batches"]
    rate = f"lr {linear['peak_lr']:g} cosine to {linear['lr_floor']:g}"
    words = [f"linear, {linear['epochs']} epochs", f"batch {linear['batch']}", rate, "last epoch"]
    return ", ".join(words + ([f"pretrained in {parts} micro-batches"] if parts > 1 else []))


def evaluate_linear(
    encoder: Backbone, store: PackedStore, recipe: Mapping, *, seed: int, compute: Compute
) -> Iterator[dict[str, float]]:
    """Train the classifier; yield a row after each epoch: epoch, lr, train_loss, top1, top5 (in %), images_per_s.

    encoder: frozen, in eval mode, on the device. Test features are computed once: neither they nor the encoder change.
    """
    linear, ranks = recipe["linear"], compute.ranks
    batches = Batches(store.train, recipe, seed=seed, stage="linear", rank=ranks.rank, ranks=ranks.size)
    steps_per_epoch, total_steps = batches.steps_per_epoch, batches.steps_per_epoch * linear["epochs"]
    if total_steps == 0:
        raise UserError(
            f"linear.batch is {linear['batch']}, more than the {len(store.train)} training images of "
            f"{store.folder}: make it smaller"
        )
    test_features, test_labels = _test_features(encoder, store.test, recipe, compute)
    with seeded_weights(seed, 2):
        classifier = nn.Linear(encoder.out_features, len(store.classes))
    classifier.to(compute.device)
    optimizer = torch.optim.SGD(
        classifier.parameters(),
        lr=linear["peak_lr"],
        momentum=linear["momentum"],
        nesterov=linear["nesterov"],
        weight_decay=linear["weight_decay"],
    )
    losses, began = torch.zeros((), device=compute.device), time.monotonic()
    for batch in batches.read(0, total_steps, workers=compute.workers, pin_memory=compute.device.type == "cuda"):
        rate = learning_rate(
            batch.step, total_steps=total_steps, warmup_steps=0, peak=linear["peak_lr"], floor=linear["lr_floor"]
        )
        losses += _train_step(encoder, classifier, optimizer, batch, rate, compute)
        epoch, place = divmod(batch.step + 1, steps_per_epoch)
        if place == 0:
            train_loss = float(ranks.all_reduce(losses)) / steps_per_epoch
            accuracy = _accuracy(classifier, test_features, test_labels, len(store.test), ranks)
            images = steps_per_epoch * linear["batch"]
            yield {
                "epoch": epoch,
                "lr": rate,
                "train_loss": train_loss,
                **accuracy,
                "images_per_s": images / (time.monotonic() - began),
            }
            losses, began = torch.zeros((), device=compute.device), time.monotonic()


def _train_step(
    encoder: Backbone, classifier: nn.Linear, optimizer: torch.optim.SGD, batch: Batch, rate: float, compute: Compute
) -> torch.Tensor:
    """Do one step; return this rank's share of the global batch's mean cross entropy."""
    pictures, labels = batch.views.to(compute.device)[0], batch.labels.to(compute.device, non_blocking=True)
    with torch.no_grad(), autocast(compute.device, compute.precision):
        features = encoder(pictures)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    # The sum over the global batch's size, not the mean over this rank's part: parts may differ in a short last batch.
    share = F.cross_entropy(classifier(features.float()), labels, reduction="sum") / batch.total
    (share * compute.ranks.size).backward()
    compute.ranks.average_gradients(classifier.parameters())
    optimizer.step()
    return share.detach()


@torch.no_grad()
def _test_features(
    encoder: Backbone, split: Split, recipe: Mapping, compute: Compute
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features and labels of this rank's test images; over all ranks each image stands once."""
    precision = "fp32" if recipe["linear"]["test_precision"] == "fp32" else compute.precision
    mine = np.arange(compute.ranks.rank, len(split), compute.ranks.size)
    parts = []
    for start in range(0, len(mine), TEST_BATCH):
        pictures = centre_view(recipe, map(split.image, mine[start : start + TEST_BATCH]))
        with autocast(compute.device, precision):
            parts.append(encoder(pictures.to(compute.device)).float())
    return torch.cat(parts), torch.from_numpy(split.labels[mine]).to(compute.device)


@torch.no_grad()
def _accuracy(
    classifier: nn.Linear, features: torch.Tensor, labels: torch.Tensor, images: int, ranks: Ranks
) -> dict[str, float]:
    logits = classifier(features)
    counts = torch.tensor(
        [len(labels), top_k_hits(logits, labels, 1), top_k_hits(logits, labels, 5)], device=features.device
    )
    counted, top1, top5 = ranks.all_reduce(counts).tolist()
    if counted != images:
        raise AssertionError(f"{counted} test images were counted, wanted each of {images} once")
    return {"top1": 100 * top1 / images, "top5": 100 * top5 / images}
