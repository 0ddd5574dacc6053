"""EquiMod: beside a method that makes an image's views alike, a module that predicts where each view lies (ICLR 2023).

Devillers & Lefort (arXiv 2211.01244), and their code, ADevillers/EquiMod. The picture itself and its views go through
the backbone together. A projector of the module's own maps their features to a space in which a predictor, told what
was done to a view, finds the view's place from that of the picture itself. All of it learns, the backbone too.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from selfsup.augment import Draws
from selfsup.engine.distributed import Ranks
from selfsup.measures import equivariance
from selfsup.methods.equimod_constants import parameter_count
from selfsup.methods.equimod_parameters import normalisation
from selfsup.methods.equimod_parameters import parameter_vector as parameter_vector  # by this name for others
from selfsup.methods.equimod_settings import EquiModSettings
from selfsup.methods.method import Batch, Context, Output, Step
from selfsup.methods.simclr import nt_xent
from selfsup.methods.wrapping import WrappingMethod
from selfsup.models import build_head, configure_batch_norm, seeded_weights


def prediction_loss(
    predictions: torch.Tensor, views: torch.Tensor, temperature: float, ranks: Ranks | None = None
) -> torch.Tensor:
    """Return the mean over this rank's predictions of -log softmax of the cosine with the view / temperature (eq. 4).

    predictions, views: [2N, D], the rows of the first view before those of the second, computed with in float32 or
    wider. The softmax is over the views of all ranks but the other view of the same image, and over no predictions.
    Gradients as in `nt_xent`.
    """
    wide = torch.promote_types(views.dtype, torch.float32)
    predictions, views = (F.normalize(one.to(wide), dim=1) for one in (predictions, views))
    everyone, begin = (views, 0) if ranks is None else (ranks.gather_with_gradient(views), ranks.rank * len(views))
    own = torch.arange(len(views), device=views.device)
    cosines = predictions @ everyone.T / temperature
    others = cosines.index_put((own, begin + own.roll(len(own) // 2)), cosines.new_tensor(float("-inf")))
    return F.cross_entropy(others, begin + own)


class EquiMod(WrappingMethod):
    """The module beside the wrapped method: see `selfsup.methods.Method` for what each member means."""

    def __init__(self, settings: EquiModSettings, context: Context):
        super().__init__(settings, context)
        self.normalisation = normalisation(context.recipe, settings.parameters)
        with seeded_weights(context.seed, 3):
            self.add("equivariance", self._build_module())

    def _build_module(self) -> nn.ModuleDict:
        settings, recipe = self.settings, self.context.recipe
        norm, codes = recipe.model.batch_norm, settings.parameter_encoder
        return nn.ModuleDict(
            {
                "projector": build_head(self.encoder().out_features, settings.projector, norm),
                "parameter_encoder": build_head(parameter_count(recipe.augment.views), codes, norm),
                "predictor": build_head(settings.projector.out + codes.out, settings.predictor, norm),
            }
        )

    def connect(self) -> None:
        self.wrapped.connect()
        recipe, views = self.context.recipe, len(self.context.recipe.augment.views)
        per_view = recipe.model.batch_norm.statistics == "per_view"
        groups = {self.encoder(): views + 1, self.module["projector"]: views + 1}  # the picture itself is one more
        groups |= {self.module[name]: views for name in ("parameter_encoder", "predictor")}
        for network, parts in groups.items():
            configure_batch_norm(network, groups=parts if per_view else 1, ranks=self.context.ranks)

    def loss(self, batch: Batch, step: Step) -> Output:
        count = len(batch.plain)
        pictures = torch.cat([batch.plain, *batch.views])  # one forward: 3N pictures
        features = self.encoder()(pictures)
        invariance = self.wrapped.loss_of(features[count:], pictures[count:])
        places = self.module["projector"](features)
        start, seen = places[:count].repeat(len(batch.views), 1), places[count:]
        told = self.told_of(batch).flatten(0, 1)  # rows as the views': view after view
        codes = self.module["parameter_encoder"](told.to(self.module["parameter_encoder"][0].weight.dtype))
        predicted = self.module["predictor"](torch.cat([start, codes], dim=1))
        beside = self._equivariance(seen, predicted)
        parts = {"invariance_loss": invariance.loss, "equivariance_loss": beside}
        scalars = {**invariance.scalars, **parts, **equivariance(seen, predicted, start)}
        return Output(invariance.loss + self.settings.weight * beside, scalars)

    def told(self, draws: Draws) -> np.ndarray:
        """Return the normalised parameter vectors, float32 [views, N, P]."""
        return self.normalisation.all_views(draws).reshape(len(draws.views), len(draws.sizes), -1)

    def _equivariance(self, seen: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        temperature, ranks = self.settings.temperature, self.context.ranks
        if self.settings.negatives == "all":
            return nt_xent(seen, predicted, temperature, ranks)
        return prediction_loss(predicted, seen, temperature, ranks)
