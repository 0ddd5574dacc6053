"""SimCLR, SimSiam, Barlow Twins and VICReg of lightly's blocks (pip: lightly), as its own examples put them together.

A forward pass for each view, its heads, losses and LARS with the recipe's parameters, on torchvision's backbone. Losses
are computed in float32, as ours are: under autocast lightly's would have their products in 16 bits.
EquiMod, which lightly lacks, is restated plainly around its SimCLR.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules import heads
from lightly.models.utils import get_weight_decay_parameters
from lightly.utils.lars import LARS
from plain_byol import torchvision_backbone
from torch import nn

from selfsup.engine.device import autocast
from selfsup.methods.equimod_constants import parameter_count


class InFull(nn.Module):
    """A loss, computed in float32 whatever the precision of what it is given."""

    def __init__(self, criterion: nn.Module):
        super().__init__()
        self._criterion = criterion

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(outputs[0].device.type, enabled=False):
            return self._criterion(*(one.float() for one in outputs))


class LightlyMethod:
    """One network, a head, perhaps a predictor, a loss of two views' outputs."""

    def __init__(self, recipe: Mapping, device: torch.device, *, precision: str, channels_last: bool):
        self._device, self._precision, self._settings = device, precision, recipe[recipe["method"]]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        backbone, features = torchvision_backbone(recipe)
        self.networks = self.build(backbone, features).to(device, memory_format=layout)
        self.optimizer = self._optimizer(recipe["optimizer"])
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def build(self, backbone: nn.Module, features: int) -> nn.ModuleDict:
        """Return the networks by name: "backbone", "projector" and what else there is."""
        raise NotImplementedError

    def loss(self, batch) -> torch.Tensor:
        """Return the loss of `methods.ReadyViews`."""
        raise NotImplementedError

    def train_step(self, batch) -> None:
        """Do one step on views, normalised and on the device."""
        with autocast(self._device, self._precision):
            loss = self.loss(batch)
        self.optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _optimizer(self, settings: Mapping) -> torch.optim.Optimizer:
        if settings["name"] == "sgd":
            decay = settings["weight_decay"]
            return torch.optim.SGD(self.networks.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
        weights, others = get_weight_decay_parameters(list(self.networks.values()))
        groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
        known = {key: settings[key] for key in ("momentum", "weight_decay", "trust_coefficient")}
        return LARS(groups, lr=0.1, **known)


def simclr_head(features: int, settings: Mapping) -> nn.Module:
    """Return lightly's head with the recipe's layers."""
    widths = settings["projector"]["layers"]
    return heads.SimCLRProjectionHead(features, widths[0], widths[-1], num_layers=len(widths))


class SimCLR(LightlyMethod):
    def build(self, backbone, features):
        self._criterion = InFull(NTXentLoss(self._settings["temperature"]))
        return nn.ModuleDict({"backbone": backbone, "projector": simclr_head(features, self._settings)})

    def loss(self, batch):
        return self._criterion(*(self.networks["projector"](self.networks["backbone"](view)) for view in batch))


class SimSiam(LightlyMethod):
    def build(self, backbone, features):
        hidden, _, out = self._settings["projector"]["layers"]
        narrow = self._settings["predictor"]["layers"][0]
        self._criterion = InFull(NegativeCosineSimilarity())
        projector = heads.SimSiamProjectionHead(features, hidden, out)
        predictor = heads.SimSiamPredictionHead(out, narrow, out)
        return nn.ModuleDict({"backbone": backbone, "projector": projector, "predictor": predictor})

    def loss(self, batch):
        projections = [self.networks["projector"](self.networks["backbone"](view)) for view in batch]
        first, second = (self.networks["predictor"](one) for one in projections)
        targets = [one.detach() for one in projections]
        return 0.5 * (self._criterion(targets[0], second) + self._criterion(targets[1], first))


class BarlowTwins(SimCLR):
    def build(self, backbone, features):
        hidden, _, out = self._settings["projector"]["layers"]
        self._criterion = InFull(BarlowTwinsLoss(lambda_param=self._settings["redundancy"]))
        projector = heads.BarlowTwinsProjectionHead(features, hidden, out)
        return nn.ModuleDict({"backbone": backbone, "projector": projector})


class VICReg(SimCLR):
    def build(self, backbone, features):
        hidden, _, out = self._settings["projector"]["layers"]
        weights = (self._settings[name] for name in ("invariance", "variance", "covariance"))
        self._criterion = InFull(VICRegLoss(*weights))
        projector = heads.VICRegProjectionHead(features, hidden, out, num_layers=3)
        return nn.ModuleDict({"backbone": backbone, "projector": projector})


def layers(inputs: int, settings: Mapping) -> nn.Sequential:
    """Return linear layers with batch norm and ReLU between them, the last with batch norm where the recipe says so."""
    made: list[nn.Module] = []
    for width, following in pairwise([inputs, *settings["layers"]]):
        made += [nn.Linear(width, following), nn.BatchNorm1d(following), nn.ReLU()]
    return nn.Sequential(*made[: -1 if settings["last_batch_norm"] != "none" else -2])


class EquiMod(LightlyMethod):
    """The authors' arrangement: the picture itself and both views in one forward, the module beside SimCLR."""

    def __init__(self, recipe: Mapping, device: torch.device, **settings):
        self._wrapped, self._length = recipe["simclr"], parameter_count(recipe["augment"]["views"])
        super().__init__(recipe, device, **settings)

    def build(self, backbone, features):
        self._criterion = InFull(NTXentLoss(self._wrapped["temperature"]))
        self._equivariance = InFull(NTXentLoss(self._settings["temperature"]))
        projector, encoder = self._settings["projector"], self._settings["parameter_encoder"]
        width = projector["layers"][-1] + encoder["layers"][-1]
        return nn.ModuleDict(
            {
                "backbone": backbone,
                "projector": simclr_head(features, self._wrapped),
                "equivariance": layers(features, projector),
                "parameter_encoder": layers(self._length, encoder),
                "predictor": layers(width, self._settings["predictor"]),
            }
        )

    def loss(self, batch):
        networks, count = self.networks, len(batch.plain)
        features = networks["backbone"](torch.cat([batch.plain, *batch]))
        invariance = self._criterion(*networks["projector"](features[count:]).chunk(2))
        places = networks["equivariance"](features)
        codes = networks["parameter_encoder"](batch.vectors)
        predicted = networks["predictor"](torch.cat([places[:count].repeat(2, 1), codes], dim=1))
        return invariance + self._settings["weight"] * self._equivariance(places[count:], predicted)


PEERS: dict[str, Callable[..., LightlyMethod]] = {
    "simclr_cifar10": SimCLR,
    "equimod_simclr_cifar10": EquiMod,
    "simsiam_cifar10_solo": SimSiam,
    "barlow_twins_cifar10_solo": BarlowTwins,
    "vicreg_cifar10_solo": VICReg,
}
