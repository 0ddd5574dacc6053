"""What was done to a view, as numbers that a network is given: EquiMod's parameter vector and how it is normalised."""

from dataclasses import dataclass

import numpy as np

from selfsup.augment import Draws, draw
from selfsup.methods.equimod_constants import AUTHORS, parameter_count
from selfsup.recipe import Recipe

SAMPLES = 10_000  # of each view, to measure a policy: means to a hundredth of the deviation
BOXES = slice(0, 4)


def parameter_vector(draws: Draws, view: int) -> np.ndarray:
    """Return float32 [N, P]: what was drawn for one view of each image, raw, in the order of the published code.

    1 to 4: the crop's top, left, height and width in pixels of the source image. 5: mirrored. 6: jittered. 7 to 10:
    which of brightness (0), contrast (1), saturation (2) and hue (3) comes first to fourth, 0 1 2 3 without jitter.
    11 to 14: their factors, 1 1 1 0 without. 15: grey. If the policy of any view has a blur, then 16: blurred, 17: its
    sigma, 0 without. If one solarises, last: solarised. (ADevillers/EquiMod, transforms.py.)
    """
    one = draws.views[view]
    order = np.where(one.jitter[:, None], one.order, np.arange(4))
    columns = [one.boxes, one.flip, one.jitter, order, one.factors, one.grayscale]
    if any(policy.blur for policy in draws.policies):
        columns += [one.sigma > 0, one.sigma]
    if any(policy.solarize for policy in draws.policies):
        columns.append(one.solarize)
    return np.concatenate([np.asarray(one, np.float32).reshape(len(draws.sizes), -1) for one in columns], axis=1)


@dataclass(frozen=True)
class Normalisation:
    """Means and deviations of parameters, float64 [P].

    side: the pixels of the square picture for which the crop's hold, of which others' crops are taken as shares; None:
    they are for pixels of the source image, whatever its size.
    """

    mean: np.ndarray
    std: np.ndarray
    side: int | None = None

    def all_views(self, draws: Draws) -> np.ndarray:
        """Return float32 [views x N, P], view after view: the normalised parameters."""
        raw = np.concatenate([parameter_vector(draws, view) for view in range(len(draws.views))]).astype(np.float64)
        if self.side is not None:
            raw[:, BOXES] *= self.side / np.tile(draws.sizes, (len(draws.views), 2))  # height, width, height, width
        return ((raw - self.mean) / self.std).astype(np.float32)


def normalisation(recipe: Recipe, kind: str) -> Normalisation:
    """Return what a recipe's parameters are normalised by. kind: "authors" or "measured"."""
    if kind == "measured":
        return _measured(recipe)
    mean, std = AUTHORS[recipe.augment.size, parameter_count(recipe.augment.views)]
    return Normalisation(np.array(mean), np.array(std))


def _measured(recipe: Recipe) -> Normalisation:
    """Measure a recipe's policies, all views together, on pictures of a view's size. What never changes keeps its unit.

    The draws are the same whatever the run's seed.
    """
    side = recipe.augment.size
    sizes = np.full((SAMPLES, 2), side)
    draws = draw(recipe, seed=0, epoch=0, indices=np.arange(SAMPLES), sizes=sizes)
    vectors = np.concatenate([parameter_vector(draws, view) for view in range(len(draws.views))]).astype(np.float64)
    deviations = vectors.std(axis=0)
    return Normalisation(vectors.mean(axis=0), np.where(deviations > 1e-6, deviations, 1.0), side)
