"""SimCLR: the two views of an image attract each other, all other pictures of the batch repel (Chen et al. 2020).

Both views go through one network (backbone, projector). Each picture has to find the other view of its image among all
pictures of the global batch by the cosine of their projections.
"""

import torch
from torch import nn
from torch.nn import functional as F

from selfsup.engine.distributed import Ranks
from selfsup.methods.method import Context, Method, Output
from selfsup.methods.simclr_settings import SimCLRSettings
from selfsup.models import build_backbone, build_head, seeded_weights


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float, ranks: Ranks | None = None) -> torch.Tensor:
    """Return the mean over this rank's 2N rows of -log softmax of the pair's cosine / temperature (eq. 1).

    first, second: projections [N, D] of the two views, N the same on all ranks; computed with in float32 or wider. The
    softmax is over the rows of all ranks but the row itself. Gradients flow into all ranks' rows; the mean over ranks
    of the gradients is that of the whole batch on one rank.
    """
    rows = torch.cat([first, second])
    rows = F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
    everyone, begin = (rows, 0) if ranks is None else (ranks.gather_with_gradient(rows), ranks.rank * len(rows))
    own = torch.arange(len(rows), device=rows.device)
    cosines = rows @ everyone.T / temperature
    others = cosines.index_put((own, begin + own), cosines.new_tensor(float("-inf")))
    return F.cross_entropy(others, begin + own.roll(-len(first)))


class SimCLR(Method):
    """The method, as training drives it: see `selfsup.methods.Method` for what each member means."""

    def __init__(self, settings: SimCLRSettings, context: Context):
        super().__init__(settings, context)
        with seeded_weights(context.seed):
            backbone = build_backbone(context.recipe)
            projector = build_head(backbone.out_features, settings.projector, context.recipe.model.batch_norm)
        self.networks = nn.ModuleDict({"backbone": backbone, "projector": projector})

    def encoder(self) -> nn.Module:
        return self.networks["backbone"]

    def loss_of(self, features: torch.Tensor, pictures: torch.Tensor) -> Output:
        projections = self.networks["projector"](features)
        mean = nt_xent(*projections.chunk(2), self.settings.temperature, self.context.ranks)
        return Output(mean if self.settings.loss_reduction == "mean" else 2 * mean)
