"""MoCo v3: a query finds its key, of the momentum encoder and the other view, among the batch's (Chen et al. 2021).

Queries go through backbone, projector and predictor; keys through the momentum encoder, a moving average of the first
two. There is no queue: the other images of the global batch are the negatives.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from selfsup.engine.distributed import Ranks
from selfsup.measures import feature_spread
from selfsup.methods.byol import PROJECTION_SPREAD_FLOOR, tau
from selfsup.methods.joint_embedding import JointEmbedding, in_full, product
from selfsup.methods.method import Batch, Context, Output, Step
from selfsup.methods.moco_v3_settings import MoCoV3Settings
from selfsup.models.modes import keep_still
from selfsup.models.moving_average import follow

MOVING = ("backbone", "projector")


def moco_v3_loss(
    queries: torch.Tensor, keys: torch.Tensor, temperature: float, ranks: Ranks | None = None
) -> torch.Tensor:
    """Return 2 T times the mean over rows of -log softmax of cos(query, its key) / T (eq. 1 and algorithm 1).

    queries, keys: [N, D], computed with in float32 or wider; N is the same on all ranks. The softmax is over the keys
    of all ranks, which are constants: each rank's loss has the gradient of its own queries, and their mean over ranks
    is the whole batch's.
    """
    queries, keys = (F.normalize(one, dim=1) for one in in_full(queries, keys.detach()))
    everyone, begin = (keys, 0) if ranks is None else (ranks.all_gather(keys).flatten(0, 1), ranks.rank * len(keys))
    own = begin + torch.arange(len(queries), device=queries.device)
    return 2 * temperature * F.cross_entropy(product(queries, everyone.T) / temperature, own)


class MoCoV3(JointEmbedding):
    """The method, as training drives it: see `selfsup.methods.Method` for what each member means."""

    def __init__(self, settings: MoCoV3Settings, context: Context):
        super().__init__(settings, context)
        momentum = nn.ModuleDict({name: copy.deepcopy(self.networks[name]) for name in MOVING})
        momentum.requires_grad_(False)
        keep_still(momentum, batch_statistics=True)
        self.networks["momentum"] = momentum

    def schedules(self, step: int) -> dict[str, float]:
        return {"momentum": tau(step, total_steps=self.context.total_steps, base=self.settings.momentum_base)}

    def before_step(self, step: Step) -> None:
        online, momentum = self.networks, self.networks["momentum"]
        for name in MOVING:
            pair = list(momentum[name].parameters()), list(online[name].parameters())
            follow(*pair, self.schedules(step.number)["momentum"], step.skipped)

    def loss(self, batch: Batch, step: Step) -> Output:
        queries, momentum = self.networks["predictor"](self.projections(batch)), self.networks["momentum"]
        with torch.no_grad():
            keys = momentum["projector"](momentum["backbone"](torch.cat(batch.views)))
        (q1, q2), (k1, k2) = queries.chunk(2), keys.chunk(2)
        temperature, ranks = self.settings.temperature, self.context.ranks
        return Output(moco_v3_loss(q1, k2, temperature, ranks) + moco_v3_loss(q2, k1, temperature, ranks))

    @property
    def floors(self) -> dict[str, float]:
        return super().floors | {"projection_spread": PROJECTION_SPREAD_FLOOR}

    def projection_health(self, projections: torch.Tensor) -> dict[str, float]:
        return {"projection_spread": feature_spread(projections)}
