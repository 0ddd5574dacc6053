"""Figures that show whether an encoder has collapsed: cheap ones often; k-NN, effective rank, uniformity at milestones.

They depend on the weights alone: the training images and draws are fixed, and the networks are in eval mode. They
change no bit of the training, and a resumed run writes the same figures as an uninterrupted one.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from selfsup.augment import Views, apply, centre_view, crop_singly, draw
from selfsup.engine.device import autocast, without_trials
from selfsup.job.attempt import Attempt
from selfsup.measures import effective_rank, knn_top1, uniformity
from selfsup.methods import Method
from selfsup.models.modes import evaluation_mode
from selfsup.random_draws import Stream, shuffled
from selfsup.training.history import History
from selfsup.training.kept_pictures import KeptPictures
from selfsup.training.run import Run
from selfsup.training.sinks import Sink

PROBE_IMAGES = 256  # for the cheap figures, at most
SHARE = 0.002  # of the training's arithmetic, for each kind of figures; under 1 % with those at the ends of segments
PASSES_OF_A_STEP = 8  # per image, in forward passes: for each of two views online forward, backward (1 + 2), target (1)
PASSES_OF_A_PROBE = 3  # BYOL: two views through the online network, one through the target
MILESTONES = 20  # in a run, apart from the ends of segments
QUERIES, QUERY_SHARE = 2000, 0.1  # of k-NN, not in its bank: at most, and as a share of the training images
BANK, BANK_SHARE = 5000, 0.4
IMAGES_PER_FEATURE = 4  # for effective rank and uniformity: with fewer, the number of images limits the rank
BATCH = 256


def steps_between(images: int, batch: float, row_interval: int) -> int:
    """Return the steps from one look at so many images to the next. batch: of a step on one device.

    That is by arithmetic. A look also launches up to 0.37 times the operators of a step: under 1 % from 38 steps on,
    which is up to 1,200 images on a device. With more there are fewer steps between, but each takes longer.
    """
    interval = images * PASSES_OF_A_PROBE / (batch * PASSES_OF_A_STEP * SHARE)
    return math.ceil(interval / row_interval) * row_interval


class Health:
    """Measures one run's health, on the same images in every run on a dataset, so that runs can be compared."""

    def __init__(
        self,
        method: Method,
        run: Run,
        attempt: Attempt,
        *,
        start: int,
        steps_per_epoch: int,
        row_interval: int,
        trackers: Sequence[Sink] = (),
    ):
        """start: how many steps are done; rows of knn.csv for later steps are removed.

        row_interval: steps between two rows of history.csv, which holds the cheap figures. trackers: get the figures
        of milestones too.
        """
        self._method, self._run, self._attempt = method, run, attempt
        self._split, self._steps_per_epoch = run.store.train, steps_per_epoch
        self._choose_images(method.encoder().out_features)
        self._pictures = KeptPictures(self._centred, run.compute.device)
        self._labels: list[torch.Tensor] = []  # of the bank and of the queries
        ranks, batch = run.compute.ranks, run.recipe["global_batch"]
        probe = self._bank[: min(PROBE_IMAGES, batch)]
        self._interval = steps_between(len(probe), batch / ranks.size, row_interval)
        self._probe = self._views(probe) if ranks.is_main else None
        passes = (len(self._queries) + len(self._bank)) / (len(self._split) * PASSES_OF_A_STEP)
        every = math.ceil(run.recipe["epochs"] / MILESTONES)
        self._milestone_epochs = every if passes / every <= SHARE else None
        self._trackers = trackers
        rows = {"steps_per_epoch": steps_per_epoch, "counts_from": 1}
        self._history = History(run.knn_rows, start=start + 1, **rows) if ranks.is_main else None

    @without_trials()
    def figures(self, step: int, *, last: bool) -> dict[str, float]:
        """Return the method's figures after `step` steps if they are due or the step is the last, otherwise none.

        Only rank 0 computes them.
        """
        if self._probe is None or not (last or step % self._interval == 0):
            return {}
        with autocast(self._run.compute.device, self._run.compute.precision), self._eager():
            return self._method.health(self._probe)

    def is_milestone(self, step: int) -> bool:
        epoch, rest = divmod(step, self._steps_per_epoch)
        return rest == 0 and self._milestone_epochs is not None and epoch % self._milestone_epochs == 0

    @without_trials()
    def milestone(self, step: int) -> dict[str, float]:
        """Measure k-NN accuracy (in %), effective rank and uniformity, and add a row to knn.csv. Collective.

        k-NN is left out where the images have no labels, effective rank and uniformity if the dataset has too few
        images for the number of features.
        """
        with self._eager():
            bank, queries = self._features(self._bank), self._features(self._queries)
        if not self._run.compute.ranks.is_main:
            return {}
        figures = self._knn(bank, queries) if self._run.store.labelled else {}
        if len(bank) >= IMAGES_PER_FEATURE * bank.shape[1]:
            figures |= {"effective_rank": effective_rank(bank), "uniformity": uniformity(bank)}
        if not figures:
            return {}
        counts = {"bank": len(bank), "queries": len(queries)}
        row = {"step": step, "epoch": step / self._steps_per_epoch, **figures, **counts}
        self._history.append(row)
        for tracker in self._trackers:  # they count steps from 0, as history.csv does
            tracker.append({**row, "step": step - 1})
        return figures

    def _eager(self) -> AbstractContextManager:
        """Around networks in eval mode: compiled ones would be compiled anew for it, and round otherwise."""
        return torch.compiler.set_stance("force_eager") if self._run.compute.compile else nullcontext()

    def _knn(self, bank: torch.Tensor, queries: torch.Tensor) -> dict[str, float]:
        if not self._labels:
            labels = (torch.from_numpy(self._split.labels[chosen]) for chosen in (self._bank, self._queries))
            self._labels = [one.to(bank.device) for one in labels]
        known, asked = self._labels
        return {"knn_top1": knn_top1(bank, known, queries, asked, len(self._run.store.classes))}

    def _choose_images(self, features: int) -> None:
        """Choose the queries and the bank of k-NN from the training images."""
        images = len(self._split)
        queries = min(QUERIES, math.ceil(QUERY_SHARE * images))
        bank = max(IMAGES_PER_FEATURE * features, min(BANK, round(BANK_SHARE * images)))
        places = np.arange(min(queries + bank, images))
        chosen = shuffled(places, seed=0, stream=Stream.KNN, epoch=0, size=images)
        self._queries, self._bank = chosen[:queries], chosen[queries:]

    def _views(self, indices: np.ndarray) -> Views:
        recipe, device = self._run.recipe_of_views, self._run.compute.device
        draws = draw(recipe, seed=0, epoch=0, indices=indices, sizes=self._split.sizes[indices], stage="pretrain")
        crops, plain = crop_singly(map(self._split.image, indices), draws, augment=recipe["augment"])
        plain = None if plain is None else plain.to(device)
        return apply(recipe, [view.to(device) for view in crops], draws, plain)

    def _centred(self, indices: np.ndarray) -> torch.Tensor:
        return centre_view(self._run.recipe_of_views, map(self._split.image, indices))

    def _features(self, indices: np.ndarray) -> torch.Tensor:
        """Return features of training images, prepared like test images: float32 [N, D] on the device. Collective.

        Each rank computes a part. The parts are equally long: the last ones are filled up with images from the start.
        """
        ranks = self._run.compute.ranks
        share = -(-len(indices) // ranks.size)
        mine = np.resize(indices, share * ranks.size)[ranks.rank * share : (ranks.rank + 1) * share]
        encoder, parts = self._method.encoder(), []
        with evaluation_mode(encoder):
            for start in range(0, share, BATCH):
                parts.append(encoder(self._pictures.of(mine[start : start + BATCH])).float())
                self._attempt.heartbeat(f"health, image {start}")
        return ranks.all_gather(torch.cat(parts)).flatten(0, 1)[: len(indices)]
