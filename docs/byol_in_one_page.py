"""BYOL on one page, in plain PyTorch: views, networks, loss, LARS, moving average, schedules, and the training step.

    python docs/byol_in_one_page.py --steps 100        ResNet-18 on scikit-learn's digits; prints the loss

This is Grill et al. 2020 ("Bootstrap your own latent", arXiv 2006.07733) as one would write it from the paper, to be
read: float32, one device, a forward pass for each view, loops over the parameters. The package in
workflow/scripts/selfsup does the same arithmetic, but faster, on many devices, and in segments that resume exactly. The
tests hold the page and the package together step by step, and the benchmarks compare their speed. Sections and
equations are those of Grill et al.
"""

import argparse
import copy
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode

# --- Views (section 3.3 and appendix B): two random views of a picture, each by a policy of its own ------------------

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def view(
    size: int,
    *,
    blur_p: float,
    solarize_p: float,
    blur_kernel: int = 23,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip_p: float = 0.5,
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1),  # brightness, contrast, saturation, hue
    jitter_p: float = 0.8,
    grayscale_p: float = 0.2,
    mean: Iterable[float] = IMAGENET_MEAN,
    std: Iterable[float] = IMAGENET_STD,
) -> Callable[[Image.Image], torch.Tensor]:
    """Return a function from a picture to a random view of it, float32 [3, size, size]."""
    steps = [
        transforms.RandomResizedCrop(size, scale, ratio, interpolation=InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(flip_p),
        transforms.RandomApply([transforms.ColorJitter(*jitter)], jitter_p),
        transforms.RandomGrayscale(grayscale_p),
        transforms.RandomApply([transforms.GaussianBlur(blur_kernel, blur_sigma)], blur_p),
        transforms.RandomSolarize(128, solarize_p),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    return transforms.Compose(steps)


# --- Networks and loss (section 3.1, equation 2) --------------------------------------------------------------------


def mlp(features: int, hidden: int = 4096, out: int = 256) -> nn.Sequential:
    """Return a projector or predictor."""
    first = nn.Linear(features, hidden, bias=False)  # the batch norm after it has a bias
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def byol_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance between normalised rows, which is 2 - 2 cos. Both: [N, D]."""
    return (2 - 2 * F.cosine_similarity(predictions, targets)).mean()


# --- Optimiser (section 3.3; You et al. 2017) and the target's moving average (equation 1) ---------------------------


class LARS(torch.optim.Optimizer):
    """SGD with momentum, with steps in proportion to each tensor's norm. Groups set `lars` and `weight_decay`."""

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
    """Return the weights of layers, and the biases and batch norms, which are left out of LARS and weight decay."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "lars": False}]


@torch.no_grad()
def move_average(averages: Iterable[torch.Tensor], values: Iterable[torch.Tensor], momentum: float) -> None:
    """average <- momentum average + (1 - momentum) value."""
    for average, value in zip(averages, values, strict=True):
        average.copy_(momentum * average + (1 - momentum) * value)


# --- Schedules (section 3.3): `step` counts from 0 --------------------------------------------------------------------


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Rise linearly from 0 to `peak` in `warmup` steps, then fall along half a cosine to 0."""
    if step < warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def tau(step: int, steps: int, base: float) -> float:
    """Rise along half a cosine from `base` to 1: the target follows the online network ever more slowly."""
    return 1 - (1 - base) * (1 + math.cos(math.pi * step / steps)) / 2


# --- The step ---------------------------------------------------------------------------------------------------------


class BYOL:
    """Online network with its predictor, target network, optimiser; `step` counts the steps done."""

    def __init__(
        self,
        online: nn.Module,
        predictor: nn.Module,
        *,
        steps: int,
        warmup: int,
        peak_lr: float,
        weight_decay: float = 1.5e-6,
        tau_base: float = 0.996,
    ):
        """online: backbone and projector. steps: of the whole training; warmup: how many of them."""
        self.step, self._steps, self._warmup, self._peak_lr, self._tau_base = 0, steps, warmup, peak_lr, tau_base
        self.online, self.predictor = online, predictor
        self.target = copy.deepcopy(online).requires_grad_(False)
        groups = parameter_groups(nn.ModuleList([online, predictor]), weight_decay)
        self.optimizer = LARS(groups, peak_lr, momentum=0.9, trust_coefficient=1e-3)

    def train_step(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Do one step on two views of the same pictures, [N, 3, S, S] each, and return the loss."""
        self.update_target(tau(self.step, self._steps, self._tau_base))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self._steps, self._warmup, self._peak_lr)
        loss = self.loss(first, second)
        self.update_online(loss)
        self.step += 1
        return loss.detach()

    def update_target(self, momentum: float) -> None:
        move_average(self.target.parameters(), self.online.parameters(), momentum)

    def loss(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Each view's prediction against the other view's target, so that the loss is symmetric in the views."""
        prediction_1, prediction_2 = self.predictor(self.online(first)), self.predictor(self.online(second))
        with torch.no_grad():  # no gradient reaches the target network
            target_1, target_2 = self.target(first), self.target(second)
        return byol_loss(prediction_1, target_2) + byol_loss(prediction_2, target_1)

    def update_online(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


# --- A run on 1,797 pictures of handwritten digits --------------------------------------------------------------------


def digits() -> list[Image.Image]:
    from sklearn.datasets import load_digits

    grey = (load_digits().images * 255 / 16).astype("uint8")
    return [Image.fromarray(one).convert("RGB") for one in grey]


def batches(pictures: list[Image.Image], policies: Iterable[Callable], size: int) -> Iterator[list[torch.Tensor]]:
    """Yield the views of shuffled batches, [size, 3, S, S] for each policy, without end."""
    while True:
        for chosen in torch.randperm(len(pictures)).split(size):
            if len(chosen) == size:
                yield [torch.stack([policy(pictures[place]) for place in chosen]) for policy in policies]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    policies = view(32, blur_p=1.0, solarize_p=0.0, blur_kernel=3), view(32, blur_p=0.1, solarize_p=0.2, blur_kernel=3)
    backbone = models.resnet18(zero_init_residual=True)
    features, backbone.fc = backbone.fc.in_features, nn.Identity()
    online, peak = nn.Sequential(backbone, mlp(features)), 0.2 * arguments.batch / 256  # section 3.3
    byol = BYOL(online, mlp(256), steps=arguments.steps, warmup=arguments.steps // 10, peak_lr=peak)
    for first, second in batches(digits(), policies, arguments.batch):
        loss = byol.train_step(first, second)
        print(f"step {byol.step}/{arguments.steps}  loss {loss:.4f}", flush=True)
        if byol.step == arguments.steps:
            break


if __name__ == "__main__":
    main()
