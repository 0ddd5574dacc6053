"""Self-supervised methods.

A new one is a file here with a subclass of `Method`, its settings in <name>_settings.py, a recipe.
"""

from selfsup.lazily import lazily

__getattr__, __all__ = lazily(__name__, {"method": ("Batch", "Context", "Method", "Output", "Step", "build_method")})
