"""BYOL as one would write it from the paper with PyTorch's and torchvision's own parts, to be measured against.

Nothing here is made slow on purpose, and nothing fast: float32, NCHW, a picture at a time through torchvision's
transforms in a DataLoader, a forward pass for each view, `cosine_similarity`, LARS and the moving average in loops over
the parameters. `precision` and `channels_last` give it the same arithmetic as ours.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext

import measuring  # noqa: F401  puts selfsup on the path
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode

from selfsup.engine.device import DTYPES


def torchvision_policy(recipe: Mapping, view: int) -> Callable:
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


def head(features: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


class LARS(torch.optim.Optimizer):
    """LARS, a parameter at a time. Groups set `lars` and `weight_decay`."""

    def __init__(self, groups: Iterable[dict], lr: float, momentum: float, trust_coefficient: float):
        defaults = {"lr": lr, "momentum": momentum, "trust_coefficient": trust_coefficient, "lars": True}
        super().__init__(groups, {**defaults, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                update = parameter.grad
                if group["weight_decay"]:
                    update = update + group["weight_decay"] * parameter
                if group["lars"]:
                    weight, gradient = parameter.norm(), update.norm()
                    if weight > 0 and gradient > 0:
                        update = update * (group["trust_coefficient"] * weight / gradient)
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
                parameter -= state["momentum_buffer"]


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Return the weights of convolutions and linear layers, and the rest, which LARS and weight decay leave alone."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "lars": False}]


@torch.no_grad()
def move_average(averages: Iterable[torch.Tensor], values: Iterable[torch.Tensor], momentum: float) -> None:
    for average, value in zip(averages, values, strict=True):
        average.copy_(momentum * average + (1 - momentum) * value)


class PlainBYOL:
    """Online and target network, loss and step."""

    transform = TwoViews

    def __init__(self, recipe: Mapping, device: torch.device, *, precision: str = "fp32", channels_last: bool = False):
        self._recipe, self._device, self._precision = recipe, device, precision
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._build()
        self.online.to(device, memory_format=self._layout)
        self.target.to(device, memory_format=self._layout)
        self.predictor.to(device)
        self.optimizer = self._build_optimizer()
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def _build(self) -> None:
        backbone, features = torchvision_backbone(self._recipe)
        byol = self._recipe["byol"]
        projector, predictor = byol["projector"], byol["predictor"]
        self.online = nn.Sequential(backbone, head(features, projector["hidden"], projector["out"]))
        self.predictor = head(projector["out"], predictor["hidden"], predictor["out"])
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        settings = self._recipe["optimizer"]
        groups = parameter_groups(nn.ModuleList([self.online, self.predictor]), settings["weight_decay"])
        return LARS(groups, 0.1, settings["momentum"], settings["trust_coefficient"])

    def step(self, views: Iterable[torch.Tensor]) -> torch.Tensor:
        """Do one optimiser step on two views, [N, 3, S, S] each, and return the loss, on the device."""
        first, second = (view.to(self._device, non_blocking=True, memory_format=self._layout) for view in views)
        self._move_average(self._recipe["byol"]["tau_base"])
        precision = nullcontext()
        if self._precision != "fp32":
            precision = torch.autocast(self._device.type, DTYPES[self._precision])
        with precision:
            loss = self._loss(first, second)
        self.optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return loss.detach()

    def _move_average(self, momentum: float) -> None:
        move_average(self.target.parameters(), self.online.parameters(), momentum)

    def _loss(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        predictions = self.predictor(self.online(first)), self.predictor(self.online(second))
        with torch.no_grad():
            targets = self.target(second), self.target(first)
        pairs = zip(predictions, targets, strict=True)
        return sum((2 - 2 * F.cosine_similarity(one, other)).mean() for one, other in pairs)
