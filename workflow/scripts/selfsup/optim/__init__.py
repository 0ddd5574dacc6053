"""The optimiser, its schedule, and which parameters it treats how."""

from selfsup.lazily import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "building": ("build_optimizer", "load_optimizer_state"),
        "lars": ("LARS",),
        "parameter_groups": ("optimizer_groups", "parameter_treatments", "treatment_table"),
        "schedules": ("cosine", "learning_rate"),
    },
)
