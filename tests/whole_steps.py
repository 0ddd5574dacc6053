"""Whole optimiser steps of any method in float64, on any number of ranks: all must compute the same."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from many_ranks import on_ranks
from selfsup.augment import Views, build_views
from selfsup.engine.distributed import Ranks
from selfsup.engine.gradients import GradientAverager
from selfsup.methods import Batch, Step, build_method
from selfsup.optim import build_optimizer
from selfsup.recipe import load_recipe

IMAGES, SIDE, STEPS, RATE = 16, 12, 3, 0.5


def steps_on(ranks: Ranks, overrides: Mapping, images: np.ndarray) -> tuple[list[float], dict[str, np.ndarray]]:
    """Each step's global loss, and all weights and buffers after the last. images: uint8 [IMAGES, 3, SIDE, SIDE]."""
    recipe = load_recipe("digits", overrides)
    method = build_method(recipe, seed=0, total_steps=20, ranks=ranks)
    method.networks.double()
    method.connect()
    treatments = method.parameter_groups()
    averager = GradientAverager([one.parameter for one in treatments], ranks)
    optimizer = build_optimizer(treatments, recipe.optimizer)
    mine = np.array_split(np.arange(IMAGES), ranks.size)[ranks.rank]
    losses = []
    for number in range(STEPS):
        step = Step(number)
        views = build_views(recipe, SIDE)(torch.from_numpy(images[mine]), seed=0, epoch=number, indices=mine)
        method.before_step(step)
        for group in optimizer.param_groups:
            group["lr"] = RATE * group["lr_scale"]
        optimizer.zero_grad(set_to_none=True)
        loss = method.loss(Batch.of(in_float64(views), mine), step).loss
        with averager.last_backward():
            loss.backward()
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
        losses.append(float(ranks.mean(loss.detach())))
    return losses, {name: value.numpy() for name, value in method.networks.state_dict().items()}


def in_float64(views: Views) -> Views:
    plain = None if views.plain is None else views.plain.double()
    return replace(views, images=tuple(view.double() for view in views), plain=plain)


def check_steps_over_ranks(overrides: Mapping, tolerance: float = 1e-9) -> None:
    """Two and four ranks give the losses, weights and buffers of one, in the norm of each tensor.

    The tolerance is the rounding of float64, 1e-16, grown over three steps of batch norms with few rows. Biases that a
    later batch norm takes away are rounding alone, far below a thousandth.
    """
    images = np.random.default_rng().integers(0, 256, (IMAGES, 3, SIDE, SIDE), np.uint8)
    losses, wanted = steps_on(Ranks(), overrides, images)
    for size in (2, 4):
        for others, found in on_ranks(steps_on, size, overrides, images):
            np.testing.assert_allclose(others, losses, rtol=tolerance)
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                assert np.linalg.norm(found[name] - value) <= tolerance * (np.linalg.norm(value) + 1e-3), name
