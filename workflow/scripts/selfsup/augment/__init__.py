"""Augmentation: parameters drawn on the host (`draw`), pixels changed with them (`crop`, `apply`)."""

from selfsup.lazily import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "draws": ("Draws", "Policies", "ViewDraws", "draw", "policies_of"),
        "views": (
            "Views",
            "apply",
            "augment_batch",
            "build_views",
            "centre_view",
            "crop",
            "crop_singly",
            "plain_crops",
            "stack_crops",
        ),
    },
)
