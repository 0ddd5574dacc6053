"""Networks: backbones, heads, batch norm over the global batch."""

from selfsup.models.backbone import Backbone, build_backbone, initial_backbone
from selfsup.models.batch_norm import BatchNorm, configure_batch_norm
from selfsup.models.folding import fold_batch_norms
from selfsup.models.heads import build_head
from selfsup.models.initial_weights import seeded_weights
from selfsup.models.recomputation import recompute_activations
from selfsup.models.torchvision_twin import torchvision_recipe, torchvision_twin

__all__ = [
    "Backbone",
    "BatchNorm",
    "build_backbone",
    "build_head",
    "configure_batch_norm",
    "fold_batch_norms",
    "initial_backbone",
    "recompute_activations",
    "seeded_weights",
    "torchvision_recipe",
    "torchvision_twin",
]
