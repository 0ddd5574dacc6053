"""Is the encoder still alive? Cheap figures now and then, and at milestones k-NN, effective rank, uniformity.

All of it is a function of the weights alone: fixed training images, fixed draws, eval mode. It changes no bit of the
training, and a resumed run writes what an uninterrupted one does.
"""

import math

import numpy as np
import torch

from selfsup.augment import Views, apply, centre_view, crop, draw, stack_crops
from selfsup.engine.device import autocast
from selfsup.job.attempt import Attempt
from selfsup.measures import effective_rank, knn_top1, uniformity
from selfsup.methods import Method
from selfsup.models.modes import evaluation_mode
from selfsup.random_draws import Stream, shuffled
from selfsup.training.clock import History
from selfsup.training.tensorboard import Events

KNN = "knn.csv"
PROBE_IMAGES = 256  # of the cheap figures, at most
SHARE = 0.002  # of the training's arithmetic that each kind of figures may take: with those at segments' ends under 1 %
PASSES_OF_A_STEP = 8  # forward passes an image costs: two views, online forward and backward (1 + 2) and target (1)
PASSES_OF_A_PROBE = 3  # BYOL: two views through the online network, one through the target
MILESTONES = 20  # in a run, beside the segments' ends
QUERIES, QUERY_SHARE = 2000, 0.1  # of k-NN: held out from its bank; at most, and of the training images
BANK, BANK_SHARE = 5000, 0.4
IMAGES_PER_FEATURE = 4  # that effective rank and uniformity need; fewer images bound the rank, not the features
BATCH = 256


class Health:
    """The health of one run's training. Same images in every run on a dataset, so that runs can be compared."""

    def __init__(
        self,
        method: Method,
        run,
        attempt: Attempt,
        *,
        start: int,
        steps_per_epoch: int,
        row_interval: int,
        events: Events | None = None,
    ):
        """run: a `selfsup.training.pretraining.Run`. start: steps done; what knn.csv tells of later ones is cut off.

        row_interval: steps between two rows of history.csv, which is where the cheap figures go. events: get the
        milestones' figures too.
        """
        self._method, self._run, self._attempt = method, run, attempt
        self._split, self._steps_per_epoch = run.store.train, steps_per_epoch
        self._choose_images(method.encoder().out_features)
        ranks, batch = run.compute.ranks, run.recipe["global_batch"]
        probe = self._bank[: min(PROBE_IMAGES, batch)]
        interval = len(probe) * PASSES_OF_A_PROBE / (batch / ranks.size * PASSES_OF_A_STEP * SHARE)
        self._interval = math.ceil(interval / row_interval) * row_interval
        self._probe = self._views(probe) if ranks.is_main else None
        passes = (len(self._queries) + len(self._bank)) / (len(self._split) * PASSES_OF_A_STEP)
        every = math.ceil(run.recipe["epochs"] / MILESTONES)
        self._milestone_epochs = every if passes / every <= SHARE else None
        self._history = History(run.knn or run.folder / KNN, start=start + 1, also=events) if ranks.is_main else None

    def figures(self, step: int, *, last: bool) -> dict[str, float]:
        """Return the method's figures after `step` steps, where they are due or it is the last; else nothing.

        Rank 0 alone computes them.
        """
        if self._probe is None or not (last or step % self._interval == 0):
            return {}
        with autocast(self._run.compute.device, self._run.compute.precision):
            return self._method.health(self._probe)

    def is_milestone(self, step: int) -> bool:
        epoch, rest = divmod(step, self._steps_per_epoch)
        return rest == 0 and self._milestone_epochs is not None and epoch % self._milestone_epochs == 0

    def milestone(self, step: int) -> dict[str, float]:
        """Measure k-NN accuracy (in %), effective rank and uniformity, and add a row to knn.csv. Collective.

        Rank and uniformity are left out where the dataset has too few images for as many features.
        """
        bank, queries = self._features(self._bank), self._features(self._queries)
        if not self._run.compute.ranks.is_main:
            return {}
        known, asked = (
            torch.from_numpy(self._split.labels[chosen]).to(bank.device) for chosen in (self._bank, self._queries)
        )
        figures = {"knn_top1": knn_top1(bank, known, queries, asked, len(self._run.store.classes))}
        if len(bank) >= IMAGES_PER_FEATURE * bank.shape[1]:
            figures |= {"effective_rank": effective_rank(bank), "uniformity": uniformity(bank)}
        counts = {"bank": len(bank), "queries": len(queries)}
        self._history.append({"step": step, "epoch": step / self._steps_per_epoch, **figures, **counts})
        return figures

    def _choose_images(self, features: int) -> None:
        """Choose k-NN's queries and its bank from the training images, and the cheap figures' from the bank."""
        images = len(self._split)
        queries = min(QUERIES, math.ceil(QUERY_SHARE * images))
        bank = max(IMAGES_PER_FEATURE * features, min(BANK, round(BANK_SHARE * images)))
        places = np.arange(min(queries + bank, images))
        chosen = shuffled(places, seed=0, stream=Stream.KNN, epoch=0, size=images)
        self._queries, self._bank = chosen[:queries], chosen[queries:]

    def _views(self, indices: np.ndarray) -> Views:
        recipe, device = self._run.recipe, self._run.compute.device
        draws = draw(recipe, seed=0, epoch=0, indices=indices, sizes=self._split.sizes[indices], stage="pretrain")
        images = map(self._split.image, indices)
        crops = [crop(image, draws, sample, augment=recipe["augment"]) for sample, image in enumerate(images)]
        return apply(recipe, [view.to(device) for view in stack_crops(crops)], draws)

    def _features(self, indices: np.ndarray) -> torch.Tensor:
        """Return the encoder's features of training images as test images are prepared, float32 [N, D] on the device.

        Each rank computes its part; parts are of one length, the last ones filled up with images from the beginning.
        """
        ranks, device = self._run.compute.ranks, self._run.compute.device
        share = -(-len(indices) // ranks.size)
        mine = np.resize(indices, share * ranks.size)[ranks.rank * share : (ranks.rank + 1) * share]
        encoder, parts = self._method.encoder(), []
        with evaluation_mode(encoder):
            for start in range(0, share, BATCH):
                pictures = centre_view(self._run.recipe, map(self._split.image, mine[start : start + BATCH]))
                parts.append(encoder(pictures.to(device)).float())
                self._attempt.alive(f"health, image {start}")
        return ranks.all_gather(torch.cat(parts)).flatten(0, 1)[: len(indices)]
