"""docs/byol_in_one_page.py as a peer to be measured against: set up by a recipe, fed by torchvision's data sets.

As shipped it is the page in float32 and NCHW, fed by torchvision's transforms, a picture at a time, in a DataLoader:
nothing in it is made slow on purpose, and nothing fast. `precision` and `channels_last` give it the arithmetic of ours.
Learning rate and tau hardly change in it, because they do not matter for the speed.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import measuring  # noqa: F401  puts selfsup and the page on the path
import numpy as np
import torch
from byol_in_one_page import BYOL, mlp, view
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision import models

from selfsup.engine.device import autocast

FLAT = {"steps": 10**9, "warmup": 0, "peak_lr": 0.1}  # schedules that stay where they begin


def torchvision_policy(recipe: Mapping, number: int) -> Callable:
    """Return the recipe's view as torchvision's transforms of Pillow pictures."""
    augment, policy = recipe["augment"], recipe["augment"]["views"][number]
    crop, jitter, blur, solarize = (policy[key] for key in ("crop", "jitter", "blur", "solarize"))
    return view(
        augment["size"],
        scale=tuple(crop["scale"]),
        ratio=tuple(crop["ratio"]),
        flip_p=policy["flip"],
        jitter=tuple(jitter[key] for key in ("brightness", "contrast", "saturation", "hue")),
        jitter_p=jitter["p"],
        grayscale_p=policy["grayscale"],
        blur_p=blur["p"],
        blur_kernel=blur["kernel"],
        blur_sigma=tuple(blur["sigma"]),
        solarize_p=solarize["p"] if solarize else 0.0,
        mean=augment["mean"],
        std=augment["std"],
    )


class TwoViews:
    """A picture's two views, as a dataset's transform."""

    def __init__(self, recipe: Mapping):
        self._policies = [torchvision_policy(recipe, view) for view in (0, 1)]

    def __call__(self, picture: Image.Image) -> tuple[torch.Tensor, ...]:
        return tuple(policy(picture) for policy in self._policies)


class Pictures(Dataset):
    """Pictures in memory, uint8 [N, 3, H, W], handed out as torchvision's CIFAR10 does: as Pillow, with a label."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable):
        self._images, self._labels = np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[tuple[torch.Tensor, ...], int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


def torchvision_backbone(recipe: Mapping) -> tuple[nn.Module, int]:
    """Return torchvision's ResNet with the recipe's stem and no classifier, and its number of features."""
    model = recipe["model"]
    backbone = models.get_model(model["backbone"], zero_init_residual=model["zero_init_residual"])
    features, backbone.fc = backbone.fc.in_features, nn.Identity()
    stem = model["stem"]
    backbone.conv1 = nn.Conv2d(3, 64, stem["kernel"], stem["stride"], stem["padding"], bias=False)
    if not stem["max_pool"]:
        backbone.maxpool = nn.Identity()
    return backbone, features


class PlainBYOL(BYOL):
    """The page's BYOL on a device, in a precision and a memory format."""

    transform = TwoViews

    def __init__(self, recipe: Mapping, device: torch.device, *, precision: str = "fp32", channels_last: bool = False):
        self._device, self._precision = device, precision
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        online, predictor = (network.to(device, memory_format=self._layout) for network in self.networks(recipe))
        decay, base = recipe["optimizer"]["weight_decay"], recipe["byol"]["tau_base"]
        super().__init__(online, predictor, **FLAT, weight_decay=decay, tau_base=base)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def networks(self, recipe: Mapping) -> tuple[nn.Module, nn.Module]:
        """Return backbone and projector as one, and the predictor."""
        backbone, features = torchvision_backbone(recipe)
        projector, predictor = (recipe["byol"][name] for name in ("projector", "predictor"))
        online = nn.Sequential(backbone, mlp(features, projector["hidden"], projector["out"]))
        return online, mlp(projector["out"], predictor["hidden"], predictor["out"])

    def train_on(self, views: Iterable[torch.Tensor]) -> torch.Tensor:
        """Do one step on two views in the host's memory and return the loss, on the device."""
        moved = (one.to(self._device, non_blocking=True, memory_format=self._layout) for one in views)
        return self.train_step(*moved)

    def loss(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        with self.precision():
            return super().loss(first, second)

    def precision(self) -> AbstractContextManager:
        """Return the context of a forward pass."""
        return autocast(self._device, self._precision)

    def update_online(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()
