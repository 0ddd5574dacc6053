"""Networks: backbones, heads, batch norm over the global batch."""

from selfsup.lazily import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "backbone": ("Backbone", "build_backbone", "initial_backbone", "software"),
        "batch_norm": ("BatchNorm", "configure_batch_norm", "counted_together"),
        "folding": ("fold_batch_norms",),
        "heads": ("build_head",),
        "initial_weights": ("seeded_weights",),
        "recomputation": ("recompute_activations",),
        "timm_backbone": ("timm_eps", "timm_heads", "timm_recipe", "timm_twin"),
        "torchvision_network": ("torchvision_recipe", "torchvision_twin"),
    },
)
