"""The code behind simsiam_outside.py: SimSiam with a centre, descent by signs, three layers, means, lines of JSON."""

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from selfsup.evaluation.extraction import features_of
from selfsup.evaluation.task import Task
from selfsup.measures import accuracy
from selfsup.methods import Method, Output
from selfsup.methods.byol import byol_loss
from selfsup.models import BatchNorm, build_backbone, build_head, seeded_weights


class SimSiam(Method):
    """Chen and He 2021: both views predict each other's projection, whose gradient is stopped."""

    def __init__(self, settings, context):
        super().__init__(settings, context)
        norm = context.recipe.model.batch_norm
        with seeded_weights(context.seed):
            backbone = build_backbone(context.recipe)
            projector = build_head(backbone.out_features, settings.projector, norm)
            predictor = build_head(settings.projector.out, settings.predictor, norm)
        self.networks = nn.ModuleDict({"backbone": backbone, "projector": projector, "predictor": predictor})
        self.networks.register_buffer("centre", torch.zeros(settings.projector.out))

    def encoder(self):
        return self.networks["backbone"]

    def schedules(self, step):
        return {"pull": self.settings.pull * step / self.context.total_steps}

    def loss(self, batch, step):
        projections = self.networks["projector"](self.encoder()(torch.cat(batch.views)))
        predictions, wanted = self.networks["predictor"](projections), projections.detach() - self.networks.centre
        self._newest = self.context.ranks.mean(projections.detach().float().mean(0))
        (one, two), (first, second) = predictions.chunk(2), wanted.chunk(2)
        loss = (byol_loss(one, second) + byol_loss(two, first)) / 2
        return Output(loss, {"projection_length": projections.detach().norm(dim=1).mean()})

    def after_step(self, step):
        newest = self._newest if step.skipped is None else torch.where(step.skipped, self.networks.centre, self._newest)
        self.networks.centre.lerp_(newest, self.schedules(step.number)["pull"])


class SignDescent(torch.optim.Optimizer):
    """p <- p - lr sign(buf), buf <- momentum buf + g."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                    buffer.mul_(group["momentum"]).add_(parameter.grad)
                    parameter.sub_(buffer.sign() * group["lr"])


def build_sign(groups, settings):
    return SignDescent(groups, {"lr": settings.peak_lr, "momentum": settings.momentum})


def three_layers(recipe):
    """Return a network of three convolutions. recipe: the whole one, whose `model` is the settings."""
    width, norm = recipe.model.width, recipe.model.batch_norm
    layers, channels = [], 3
    for _ in range(3):
        layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False)]
        layers += [BatchNorm(width, momentum=norm.momentum, eps=norm.eps), nn.ReLU()]
        channels = width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.out_features = width
    return network


class ClassMeans(Task):
    """Each test picture is of the class whose mean feature is nearest."""

    total_steps = 1

    def run(self, attempt, saver, partial):
        features = features_of(self.judged, self.settings, attempt, partial)
        if features is None:
            return
        train, test = features.train, features.test
        labels, rows = train.labels(range(len(train))), self._scaled(train.rows(range(len(train))))
        means = torch.stack([rows[labels == one].mean(0) for one in range(self.classes)])
        mine = range(self.compute.ranks.rank, len(test), self.compute.ranks.size)
        logits = -torch.cdist(self._scaled(test.rows(mine)), means)
        self.rows.append(accuracy(logits, test.labels(mine), len(test), self.compute.ranks))
        self.step = 1
        yield self.rows[-1]

    def _scaled(self, features):
        return F.normalize(features, dim=1) if self.settings.normalise else features

    def figures(self):
        return self.rows[-1]


class Lines:
    """Writes each row as a line of JSON; a resume leaves out those of steps that are not done."""

    def __init__(self, folder: Path, *, start: int):
        self._path = folder / "rows.jsonl"
        rows = [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []
        kept = [row for row in rows if row["step"] < start]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    @staticmethod
    def check():
        pass

    def append(self, row):
        with open(self._path, "a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def close(self):
        pass
