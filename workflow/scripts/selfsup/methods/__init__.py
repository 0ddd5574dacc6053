"""Self-supervised methods.

A new one is a file here with a class that has `Method`'s members, its settings in <name>_settings.py, a recipe.
"""

from selfsup.lazily import lazily

__getattr__, __all__ = lazily(__name__, {"method": ("Method", "build_method", "takes_skipped")})
